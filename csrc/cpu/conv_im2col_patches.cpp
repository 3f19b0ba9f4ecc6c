// Contiguous planes, windows that do not overlap (patch embeddings, downsampling by 2x2, strided 1x1; and, as gradients
// of the input, upsampling): unfolding such an input only moves its elements, so it is unfolded whole, once, into
//
//   xp[c, t r s][place]                 as a weight lies: k, (c, t r s)
//
// and what is left is a pointwise convolution of xp, in all three directions. The gradient of the input is that of xp,
// moved back, with zeros where no window is.
//
// Traffic: the input, or its gradient, once more, read and written. Limits: stride at least the window's extent, and no
// padding that repeats; forward, only rows shorter than a vector.
#include "conv_im2col.h"
#include "input_gradient.h"
#include "phases.h"
#include "strided.h"

namespace convext::cpu::im2col {
namespace {

constexpr int64_t kPieceBytes = int64_t(4) << 20;  // of xp, but at least an image's

int64_t images_at_once(const ConvGeometry& g, DType dtype) {
  const int64_t image = patches_geometry(g).input_offset(1, 0, 0) * size_of(dtype);
  return images_within(kPieceBytes, image, g.batch);
}

// The taps of a row, and where their planes are in xp, of a channel: as a contiguous weight's taps lie, or with
// `taps_first` as those of a channels_last one.
struct RowTaps {
  std::vector<Reached> seen;
  int64_t covered = 0;  // places, together
  bool alike = true;    // all are seen by the same outputs, side by side

  explicit RowTaps(const ConvGeometry& g) {
    for (int64_t s = 0; s < g.kernel[2]; ++s) {
      seen.emplace_back(g, 2, s);
      covered += seen[s].outputs.size();
      alike = alike && seen[s].outputs.begin == seen[0].outputs.begin && seen[s].outputs.end == seen[0].outputs.end &&
              seen[s].place == seen[0].place + s && !g.flip_kernel;
    }
  }
};
constexpr int64_t kTurned = 4;  // taps of a row from which on they are moved together

struct TapPlanes {
  int64_t first, next;  // in planes of xp; from tap to tap
  TapPlanes(const ConvGeometry& g, int64_t c, bool taps_first) {
    const int64_t inputs = g.group_inputs();
    first = taps_first ? c / inputs * inputs * g.taps() + c % inputs : c * g.taps();
    next = taps_first ? inputs : 1;
  }
  int64_t operator()(const ConvGeometry& g, int64_t tap) const { return first + g.weight_tap(tap) * next; }
};

template <typename Bits>
void unfold_patches(const ConvGeometry& g, const Bits* x, int64_t images, bool taps_first, Bits* xp) {
  const int64_t places = g.output_places(), width = g.output[2], taps = g.kernel[2];
  const RowTaps row_taps(g);
  parallel_for(images * g.in_channels, [&](int64_t task, int) {
    const TapPlanes planes(g, task % g.in_channels, taps_first);
    const Bits* plane = x + task * g.input_places();
    Bits* image = xp + task / g.in_channels * g.in_channels * g.taps() * places;
    for (int64_t o = 0; o < g.output[0]; ++o)
      for (int64_t p = 0; p < g.output[1]; ++p)
        for (int64_t t = 0; t < g.kernel[0]; ++t)
          for (int64_t r = 0; r < g.kernel[1]; ++r) {
            const int64_t d = g.source(0, o, t), h = g.source(1, p, r), tap = (t * g.kernel[1] + r) * taps;
            const Bits* from = plane + (d * g.input[1] + h) * g.input[2];
            Bits* to = image + (o * g.output[1] + p) * width;
            const bool zeros = d < 0 || h < 0;
            if (row_taps.alike && taps >= kTurned && !zeros && row_taps.covered == taps * width) {
              turn(from + row_taps.seen[0].place, g.stride[2], width, taps, to + planes(g, tap) * places,
                   planes.next * places);
              continue;
            }
            for (int64_t s = 0; s < taps; ++s) {
              const Reached& seen = row_taps.seen[s];
              Bits* row = to + planes(g, tap + s) * places;
              if (zeros || seen.outputs.size() < width) std::fill(row, row + width, Bits(0));
              if (!zeros && seen.outputs.size() > 0)
                take_every(from + seen.place, g.stride[2], row + seen.outputs.begin, seen.outputs.size());
            }
          }
  });
}

// The tap through which place i of an axis is seen, and by which output; tap < 0: by none.
struct Seer {
  int64_t output = 0, tap = -1;
  Seer(const ConvGeometry& g, int axis, int64_t i) {
    const int64_t at = i + g.pad_before[axis], rest = at % g.stride[axis];
    output = at / g.stride[axis];
    if (output < g.output[axis] && rest % g.dilation[axis] == 0 && rest / g.dilation[axis] < g.kernel[axis])
      tap = rest / g.dilation[axis];
  }
};

template <typename Bits>
void fold_patches(const ConvGeometry& g, const Bits* xp, int64_t images, Bits* dx) {
  const int64_t places = g.output_places(), width = g.input[2], taps = g.kernel[2];
  const RowTaps row_taps(g);
  const std::vector<Reached>& seen = row_taps.seen;
  const bool pairs = g.stride[2] == 2 && taps <= 2 && g.pad_before[2] == 0;
  const int64_t paired = pairs ? std::min(seen[taps - 1].outputs.end, width / 2) : 0;
  std::vector<Seer> by_h;
  for (int64_t h = 0; h < g.input[1]; ++h) by_h.emplace_back(g, 1, h);
  parallel_for(images * g.in_channels, [&](int64_t task, int) {
    const TapPlanes planes(g, task % g.in_channels, false);
    const Bits* image = xp + task / g.in_channels * g.in_channels * g.taps() * places;
    Bits* row = dx + task * g.input_places();
    for (int64_t d = 0; d < g.input[0]; ++d) {
      const Seer by_d(g, 0, d);
      for (int64_t h = 0; h < g.input[1]; ++h, row += width) {
        const bool shown = by_d.tap >= 0 && by_h[h].tap >= 0;
        if (!shown || (row_taps.covered < width && 2 * paired < width)) std::fill(row, row + width, Bits(0));
        if (!shown) continue;
        const int64_t tap = (by_d.tap * g.kernel[1] + by_h[h].tap) * taps;
        const Bits* from = image + (by_d.output * g.output[1] + by_h[h].output) * g.output[2];
        if (row_taps.alike && taps >= kTurned) {
          turn(from + planes(g, tap) * places + seen[0].outputs.begin, places, taps, seen[0].outputs.size(),
               row + seen[0].place, g.stride[2]);
          continue;
        }
        if (pairs)
          interleave(from + planes(g, tap) * places, taps > 1 ? from + planes(g, tap + 1) * places : nullptr, row,
                     paired);
        for (int64_t s = 0; s < taps; ++s) {
          const int64_t done = std::max(paired - seen[s].outputs.begin, int64_t(0));
          if (seen[s].outputs.size() > done)
            put_every(from + planes(g, tap + s) * places + seen[s].outputs.begin + done,
                      row + seen[s].place + done * g.stride[2], g.stride[2], seen[s].outputs.size() - done);
        }
      }
    }
  });
}

// Of xp's convolution, `images` images of a call.
ConvGeometry some_images(const ConvGeometry& g, int64_t images) {
  ConvGeometry some = patches_geometry(g);
  some.batch = images;
  return some;
}

}  // namespace

bool is_patches(const ConvGeometry& g, Direction direction) {
  // Longer rows are as fast unfolded panel by panel.
  if (direction == Direction::forward && g.output[2] >= kWidestVector) return false;
  if (g.layout != Layout::contiguous || repeats_padding(g)) return false;
  for (int axis = 0; axis < kMaxSpatial; ++axis)
    if ((g.kernel[axis] - 1) * g.dilation[axis] + 1 > g.stride[axis]) return false;
  return g.stride[0] * g.stride[1] * g.stride[2] > 1;
}

ConvGeometry patches_geometry(const ConvGeometry& geometry) {
  ConvGeometry g = geometry;
  g.in_channels *= g.taps();
  g.flip_kernel = false;
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    g.input[axis] = g.output[axis];
    g.kernel[axis] = g.stride[axis] = g.dilation[axis] = 1;
    g.pad_before[axis] = g.pad_after[axis] = 0;
  }
  if (g.output_places() == 1)
    g.layout = Layout::channels_last;  // a place lies alike in both, and its channels together
  return g;
}

int64_t patches_bytes(const ConvGeometry& g, DType dtype, Direction direction) {
  const ConvGeometry all = patches_geometry(g);
  Workspace own(nullptr);
  if (direction == Direction::backward_weight) {
    own.take<char>(all.input_elements() * size_of(dtype));
    return own.used() + backward_weight_bytes(all, dtype);
  }
  const int64_t at_once = images_at_once(g, dtype);
  own.take<char>(some_images(g, at_once).input_elements() * size_of(dtype));
  return own.used() + most_of_batches(g.batch, at_once, [&](int64_t images) {
           const ConvGeometry some = some_images(g, images);
           return direction == Direction::forward ? forward_bytes(some, dtype) : backward_input_bytes(some, dtype);
         });
}

void run_patches(const ConvArguments& args, Direction direction) {
  const ConvGeometry& g = args.geometry;
  const bool weight = direction == Direction::backward_weight;
  const int64_t at_once = weight ? g.batch : images_at_once(g, args.dtype), element = size_of(args.dtype);
  Workspace workspace(args.workspace);
  char* xp = workspace.take<char>(some_images(g, at_once).input_elements() * element);
  ConvArguments part = args;
  part.workspace = static_cast<char*>(args.workspace) + workspace.used();
  for (int64_t n = 0; n < g.batch; n += at_once) {
    const int64_t images = std::min(at_once, g.batch - n), out = g.output_offset(n, 0, 0) * element,
                  in = g.input_offset(n, 0, 0) * element;
    part.geometry = some_images(g, images);
    const auto unfold = [&] {
      const Phase phase("unfold");
      with_bits(element, [&](auto bits) {
        using Bits = decltype(bits);
        unfold_patches(g, reinterpret_cast<const Bits*>(static_cast<const char*>(args.input) + in), images,
                       weight && args.weight_channels_last, reinterpret_cast<Bits*>(xp));
      });
      part.input = xp;
    };
    switch (direction) {
      case Direction::backward_weight:
        unfold();
        part.weight_channels_last = false;  // a place's taps are channels
        backward_weight(part);
        break;
      case Direction::forward:
        unfold();
        part.output = static_cast<char*>(args.output) + out;
        if (args.epilogue.residual != nullptr)
          part.epilogue.residual = static_cast<const char*>(args.epilogue.residual) + out;
        forward(part);
        break;
      default: {
        part.grad_output = static_cast<const char*>(args.grad_output) + out;
        part.output = xp;
        backward_input(part);
        const Phase phase("fold");
        with_bits(element, [&](auto bits) {
          using Bits = decltype(bits);
          fold_patches(g, reinterpret_cast<const Bits*>(xp), images,
                       reinterpret_cast<Bits*>(static_cast<char*>(args.output) + in));
        });
      }
    }
  }
}

PackArguments patches_weight(const PackArguments& args, std::vector<char>* moved) {
  PackArguments part = args;
  const ConvGeometry& g = args.geometry;
  part.geometry = patches_geometry(g);
  part.channels_last = false;
  if (!args.channels_last) return part;
  const int64_t inputs = g.group_inputs(), taps = g.taps(), element = size_of(args.dtype);
  moved->resize(g.weight_elements() * element);
  with_bits(element, [&](auto bits) {
    using Bits = decltype(bits);
    const Bits* from = static_cast<const Bits*>(args.weight);
    Bits* to = reinterpret_cast<Bits*>(moved->data());
    for (int64_t k = 0; k < g.out_channels; ++k, from += inputs * taps, to += inputs * taps)
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t c = 0; c < inputs; ++c) to[c * taps + tap] = from[tap * inputs + c];
  });
  part.weight = moved->data();
  return part;
}

}  // namespace convext::cpu::im2col
