// The gradient of a pointwise weight, a plain product of matrices: per group dw[k][c] = sum over images and places of
// dy[k] x[c].
//
// A block of about kPlaces places at a time is brought to the form that gemm reads: one operand as lanes, panels
// [place][nr channels], the other as rows, broadcast. channels_last, either is a copy in whole vectors, of rows to
// panels [place][mr channels], and goes through several images. Contiguous, lanes are turned, and rows are read where
// they lie, or where images are small copied from several of them, [channel][place]. Usually lanes are channels of the
// input, and dw itself holds the sums; the operands are exchanged, and the sums turned at the end, where that is
// cheaper.
//
// A task is a block of dw over all places in order: its lanes are packed once per block of places, its rows in pieces
// that stay in L2 while panels of lanes pass by; threads without a task take some of the pieces. Few weights would keep
// few threads busy: then places are cut into parts with sums of their own, added up in order. Both depend on the
// geometry only, so bits do not depend on threads. Traffic: operands are read once (rows in place once per panel of
// lanes, from L2), sums read and written once per block of places. Limits: no padding; contiguous, no stride.
#include "conv_im2col_pointwise_weight.h"

#include <type_traits>
#include <utility>

#include "conv_direct.h"
#include "conv_im2col.h"
#include "phases.h"
#include "simd.h"
#define CONVEXT_KERNELS "conv_im2col_pointwise_weight.inl"
#include "for_each_isa.inl"

namespace convext::cpu::im2col {
namespace {

template <typename A>
constexpr int64_t kPlaces = 1536 / int64_t(sizeof(A));  // of a block: a panel of lanes takes 24 kB with AVX2
constexpr int64_t kSmallImage = 128;                    // of so few places, several make a block
constexpr int64_t kRowBytes = 3 << 15;                  // rows packed together
constexpr int64_t kMostLanes = 1024;                    // of a task
constexpr int64_t kPartSums = 32 * 1024;                // weights of so few elements are summed in parts
constexpr int64_t kPartPlaces = 1024, kParts = 16;      // of so many places at least; so many at most
constexpr int64_t kSlack = 16;                          // elements, behind each panel: a vector may run over

bool is_strided(const ConvGeometry& g) { return g.stride[0] != 1 || g.stride[1] != 1 || g.stride[2] != 1; }

// The places of dw's sum, over all images, in the order of dy.
struct Places {
  const ConvGeometry& g;
  int64_t total, run;  // places, and how many lie evenly in x

  explicit Places(const ConvGeometry& geometry) : g(geometry), total(g.batch * g.output_places()) {
    run = is_strided(g) ? g.output[2] : g.layout == Layout::channels_last ? total : g.output_places();
  }
  // f(image, place of dy, place of x, count) for runs within [begin, end).
  template <typename F>
  void each(Span span, const F& f) const {
    for (int64_t m = span.begin; m < span.end;) {
      const int64_t count = std::min(span.end, (m / run + 1) * run) - m;
      const int64_t image = m / g.output_places(), place = m % g.output_places();
      const OutputPlace out = output_place(g, place);
      const int64_t seen = (out.o * g.stride[0] * g.input[1] + out.p * g.stride[1]) * g.input[2] + out.q * g.stride[2];
      f(image, place, seen, count);
      m += count;
    }
  }
};

template <typename T>
struct Plan {
  using A = Accumulate<T>;
  bool input_lanes;          // lanes are channels of x, else of dy
  bool direct;               // dw holds the sums
  bool in_place;             // rows are read where they lie
  int64_t total, places;     // in all, in a block
  int64_t parts;             // of the sum
  Blocks rows, lanes;        // of a task
  int64_t at_once, panels;   // rows packed together, panels of lanes in a task
  int64_t pitch, lane_step;  // contiguous: from row to row; from panel to panel of lanes
  int64_t a, b, sums;        // elements of a thread
  int64_t tasks;             // in a part

  Span part(int64_t i) const { return {total * i / parts, total * (i + 1) / parts}; }
  // The block of places that begins at m.
  Span block(const ConvGeometry& g, int64_t m, int64_t end) const {
    const int64_t image = g.output_places();
    return {m, std::min({m + places, end, in_place ? (m / image + 1) * image : end})};
  }
};

// Of `rows` times `lanes`, in twentieths of a cycle a place, by the rates of AVX2.
template <typename A>
int64_t cost(const ConvGeometry& g, int64_t rows, int64_t lanes) {
  const int64_t nr = gemm<A>().nr, rest = lanes % nr, high = std::max(rows, int64_t(4));
  const int64_t vectors = lanes / nr * 20 + (rest == 0 ? 0 : 2 * rest > nr ? 20 : 14);
  return high * vectors + (g.layout == Layout::channels_last ? 2 * lanes + 5 * rows : 8 * lanes);
}

template <typename T>
Plan<T> make_plan(const ConvGeometry& g) {
  using A = Accumulate<T>;
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs(), nr = gemm<A>().nr, mr = gemm<A>().mr;
  Plan<T> plan;
  plan.total = g.batch * g.output_places();
  plan.parts = inputs * outputs > kPartSums ? 1 : std::clamp(plan.total / kPartPlaces, int64_t(1), kParts);
  const bool gathered = g.layout == Layout::contiguous && is_strided(g);
  const int64_t image = g.output_places();
  plan.in_place =
      g.layout == Layout::contiguous && !gathered && std::is_same_v<T, A> && (g.batch == 1 || image >= kSmallImage);
  plan.places = cut(plan.in_place ? image : ceil_div(plan.total, plan.parts), 1, kPlaces<A>).size;
  const int64_t turn = 20 * inputs * outputs / std::max(plan.total, int64_t(1));
  plan.input_lanes = !gathered && cost<A>(g, outputs, inputs) <= cost<A>(g, inputs, outputs) + turn;
  plan.direct = plan.input_lanes && plan.parts == 1 && std::is_same_v<T, A>;
  const int64_t rows = plan.input_lanes ? outputs : inputs, lanes = plan.input_lanes ? inputs : outputs;
  int64_t high = rows, wide = std::min(lanes, kMostLanes);
  for (;;) {
    plan.rows = cut(rows, 1, high);
    plan.lanes = cut(lanes, nr, wide);
    plan.tasks = g.groups * plan.rows.count * plan.lanes.count;
    if (plan.tasks * plan.parts >= wanted_tasks() || (high <= 2 * mr && wide <= 2 * nr)) break;
    if (high > 2 * mr && (high >= wide || wide <= 2 * nr))
      high = ceil_div(high, 2);
    else
      wide = ceil_div(wide, 2);
  }
  plan.at_once = std::clamp(kRowBytes / (plan.places * int64_t(sizeof(A))), mr, std::max(plan.rows.size, mr));
  plan.at_once = ceil_div(plan.rows.size, ceil_div(plan.rows.size, plan.at_once));
  plan.panels = ceil_div(plan.lanes.size, nr);
  plan.pitch = round_up(plan.places, kSlack) + kSlack;
  plan.lane_step = plan.places * nr + kSlack;
  plan.a = plan.in_place                       ? 0
           : g.layout == Layout::channels_last ? plan.at_once * (plan.places + kSlack)
                                               : plan.at_once * plan.pitch;
  plan.b = plan.panels * plan.lane_step;
  plan.sums = plan.direct ? 0 : plan.rows.size * plan.panels * nr;
  return plan;
}

template <typename T>
struct Buffers {
  using A = Accumulate<T>;
  A* sums;  // of each thread, or of each part and task
  int64_t step, thread_bytes, bytes;

  Buffers(void* start, const Plan<T>& plan) {
    Workspace shared(start), own(nullptr);
    step = round_up(plan.sums, 16);
    sums = shared.take<A>(step * (plan.parts > 1 ? plan.parts * plan.tasks : max_threads()));
    own.take<A>(plan.a);
    own.take<A>(plan.b);
    thread_bytes = own.used();
    threads_ = static_cast<char*>(start) + shared.used();
    bytes = shared.used() + max_threads() * thread_bytes;
  }
  std::pair<A*, A*> thread(int i, const Plan<T>& plan) const {
    Workspace own(threads_ + i * thread_bytes);
    A* a = own.take<A>(plan.a);
    return {a, own.take<A>(plan.b)};
  }

 private:
  char* threads_;
};

template <typename T>
struct Work {
  using A = Accumulate<T>;
  const ConvArguments& args;
  const Plan<T>& plan;
  const PointwiseKernels<T>& kernels;

  struct Block {
    int64_t group;
    Span rows, lanes;
  };
  Block block(int64_t task) const {
    const int64_t i = task / plan.lanes.count;
    return {i / plan.rows.count, plan.rows[i % plan.rows.count], plan.lanes[task % plan.lanes.count]};
  }
  T* gradient(const Block& block) const {
    const ConvGeometry& g = args.geometry;
    const int64_t inputs = g.group_inputs();
    const Span& k = plan.input_lanes ? block.rows : block.lanes;
    const Span& c = plan.input_lanes ? block.lanes : block.rows;
    return static_cast<T*>(args.output) + (block.group * g.group_outputs() + k.begin) * inputs + c.begin;
  }

  // One operand: f(address, places, at) for each run of places, the operand's channels from `channel` on.
  template <typename F>
  void each_run(bool of_input, int64_t channel, Span span, const F& f) const {
    const ConvGeometry& g = args.geometry;
    const T* from = static_cast<const T*>(of_input ? args.input : args.grad_output);
    int64_t at = 0;
    Places(g).each(span, [&](int64_t image, int64_t place, int64_t seen, int64_t count) {
      f(from + (of_input ? g.input_offset(image, channel, seen) : g.output_offset(image, channel, place)), count, at);
      at += count;
    });
  }

  // What rows of a block see of `some` places, times what its lanes see, to sums.
  void add_rows(const Block& all, Span rows, Span some, const Panels<A>& lanes, A* a, bool first, A* sums,
                int64_t sums_step) const {
    const ConvGeometry& g = args.geometry;
    const Gemm<A>& multiply = gemm<A>();
    const bool channels_last = g.layout == Layout::channels_last;
    const int64_t row_channels = plan.input_lanes ? g.out_channels : g.in_channels;
    const int64_t first_row = all.group * plan.rows.total, row_step = step_of(!plan.input_lanes);
    // Panels as equal as can be: those of one row more, then the others.
    const int64_t panels = ceil_div(rows.size(), multiply.mr);
    const int64_t fewer = rows.size() / panels, longer = rows.size() - panels * fewer;
    int64_t row = rows.begin;
    for (int64_t width = fewer + 1; width >= fewer; --width) {
      const int64_t count = width > fewer ? longer : panels - longer, high = count * width;
      if (count == 0) continue;
      Panels<A> panel = rows_of_matrix(a, width, plan.pitch);
      if (channels_last) panel = {a, width, width * some.size() + kSlack, width};
      Phase phase("pack rows");
      each_run(!plan.input_lanes, first_row + row, some, [&](const T* from, int64_t places, int64_t at) {
        if constexpr (std::is_same_v<T, A>)
          if (plan.in_place) {
            panel = rows_of_matrix(from, width, row_step);
            return;
          }
        if (channels_last)
          kernels.pack_rows(from, row_step, row_channels - first_row - row, places, count, width, a + at * width,
                            panel.stride);
        else
          kernels.copy_rows(from, row_step, plan.input_lanes ? 1 : g.stride[2], high, places, a + at, plan.pitch);
      });
      phase.next("multiply");
      multiply.multiply(high, all.lanes.size(), some.size(), panel, lanes, sums + (row - all.rows.begin) * sums_step,
                        sums_step, {/*accumulate=*/!first});
      row += high;
    }
  }

  // From place to place of an operand, channels_last, or from channel to channel.
  int64_t step_of(bool of_input) const {
    const ConvGeometry& g = args.geometry;
    if (g.layout != Layout::channels_last) return of_input ? g.input_places() : g.output_places();
    return of_input ? g.in_channels * g.stride[2] : g.out_channels;
  }

  // A part of a task's sums; its rows, in pieces, are shared with threads that have no task left.
  void sum(int64_t task, int64_t part, const Buffers<T>& own, int thread, A* sums, int64_t sums_step) const {
    const ConvGeometry& g = args.geometry;
    const Block all = block(task);
    const int64_t first_lane = all.group * plan.lanes.total, nr = gemm<A>().nr;
    A* const b = own.thread(thread, plan).second;
    const Span places = plan.part(part);
    for (int64_t m = places.begin; m < places.end;) {
      const Span some = plan.block(g, m, places.end);
      {
        const Phase phase("pack lanes");
        each_run(plan.input_lanes, first_lane + all.lanes.begin, some, [&](const T* from, int64_t count, int64_t at) {
          kernels.pack_lanes(from, g.layout == Layout::channels_last, step_of(plan.input_lanes), all.lanes.size(),
                             count, b + at * nr, nr, plan.lane_step);
        });
      }
      share(ceil_div(all.rows.size(), plan.at_once), [&](int64_t piece, int here) {
        const int64_t row = all.rows.begin + piece * plan.at_once;
        add_rows(all, {row, std::min(row + plan.at_once, all.rows.end)}, some, {b, nr, plan.lane_step, nr},
                 own.thread(here, plan).first, m == places.begin, sums, sums_step);
      });
      m = some.end;
    }
  }

  void write(int64_t task, const A* sums, int64_t sums_step) const {
    const Block all = block(task);
    kernels.write(sums, sums_step, all.rows.size(), all.lanes.size(), !plan.input_lanes, gradient(all),
                  args.geometry.group_inputs());
  }

  void run() const {
    const Buffers<T> own(args.workspace, plan);
    const int64_t step = plan.panels * gemm<A>().nr;
    if (plan.parts == 1) {
      parallel_for(plan.tasks, [&](int64_t task, int thread) {
        A* sums = own.sums + thread * own.step;
        if constexpr (std::is_same_v<T, A>)
          if (plan.direct) return sum(task, 0, own, thread, gradient(block(task)), args.geometry.group_inputs());
        sum(task, 0, own, thread, sums, step);
        const Phase phase("write");
        write(task, sums, step);
      });
      return;
    }
    parallel_for(plan.tasks * plan.parts, [&](int64_t i, int thread) {
      sum(i % plan.tasks, i / plan.tasks, own, thread, own.sums + i * own.step, step);
    });
    parallel_for(plan.tasks, [&](int64_t task, int) {
      const Phase phase("write");
      A* sums = own.sums + task * own.step;
      kernels.add_parts(sums, plan.sums, plan.parts, plan.tasks * own.step);
      write(task, sums, step);
    });
  }
};

}  // namespace

bool is_pointwise_weight(const ConvGeometry& g) { return g.taps() == 1 && !g.padded(); }

int64_t pointwise_weight_bytes(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return Buffers<T>(nullptr, make_plan<T>(g)).bytes;
  });
}

void pointwise_weight(const ConvArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const Plan<T> plan = make_plan<T>(args.geometry);
    Work<T>{args, plan, CONVEXT_SELECT_ISA(kPointwiseKernels<T>)}.run();
  });
}

}  // namespace convext::cpu::im2col
