// Gradient of the input by im2col: forward convolutions of the output gradient, one per stride phase
// (input_gradient.h), whose weights are packed straight from the weight: packed[phase][group][panel][row][lane], lanes
// being input channels, rows the output channels and taps of the phase in the order of the unfolded dy.
#include <type_traits>

#include "conv_im2col.h"
#include "input_gradient.h"
#include "phases.h"

namespace convext::cpu::im2col {
namespace {

constexpr int64_t kPackedOutputs = 32;  // output channels in a task of packing

// Where the packed weight of each phase begins, in elements, and at last where all end; lanes: of all panels.
std::vector<int64_t> packed_offsets(const ConvGeometry& g, const StridePhases& phases, int64_t lanes) {
  std::vector<int64_t> offsets = {0};
  for (int64_t i = 0; i < phases.count(); ++i)
    offsets.push_back(offsets.back() + g.groups * lanes * g.group_outputs() * phases[i].geometry.taps());
  return offsets;
}

struct WeightPanels {
  int64_t width, count;

  int64_t lanes() const { return width * count; }
};

WeightPanels weight_panels(const ConvGeometry& g, DType dtype) {
  ConvGeometry any = StridePhases(g)[0].geometry;
  for (int64_t& taps : any.kernel) taps = 1;  // the first phase may see nothing
  const int64_t width = weight_width(any, dtype);
  return {width, ceil_div(g.group_inputs(), width)};
}

template <typename T>
void pack_weight(const PackArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry g = gradient_geometry(args.geometry);
  const WeightPanels panels = weight_panels(g, args.dtype);
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs(), taps = g.taps(), width = panels.width;
  const StridePhases phases(g);
  const std::vector<int64_t> offsets = packed_offsets(g, phases, panels.lanes());
  std::vector<std::vector<int64_t>> phase_taps(phases.count());  // of the kernel
  for (int64_t i = 0; i < phases.count(); ++i)
    for (int64_t u = 0; u < phases[i].geometry.taps(); ++u) phase_taps[i].push_back(phases[i].kernel_tap(g, u));
  const Blocks blocks = cut(outputs, 1, kPackedOutputs);
  const bool taps_first = g.layout == Layout::channels_last;
  const T* w = static_cast<const T*>(args.weight);
  parallel_for(g.groups * blocks.count, [&](int64_t task, int) {
    const Phase timed("pack weight");
    const Span some = blocks[task % blocks.count];
    const int64_t group = task / blocks.count;
    std::vector<A> line(taps * width);  // [tap][lane]
    for (int64_t panel = 0; panel < panels.count; ++panel) {
      const int64_t c = panel * width, count = std::min(width, inputs - c);
      for (int64_t k = some.begin; k < some.end; ++k) {
        const T* from = w + (group * outputs + k) * inputs * taps;
        if (taps == 1 || args.channels_last) {
          for (int64_t tap = 0; tap < taps; ++tap)
            for (int64_t lane = 0; lane < count; ++lane)
              line[tap * width + lane] = to_accumulate(from[tap * inputs + c + lane]);
        } else {
          unfold<T>().transpose(from + c * taps, taps, count, taps, line.data(), width, width);
        }
        for (size_t i = 0; i < phase_taps.size(); ++i) {
          const int64_t seeing = int64_t(phase_taps[i].size()), rows = outputs * seeing;
          A* to = static_cast<A*>(args.packed) + offsets[i] + (group * panels.count + panel) * rows * width;
          for (int64_t u = 0; u < seeing; ++u) {
            const int64_t tap = phase_taps[i][u];
            const A* lanes = line.data() + (g.flip_kernel ? taps - 1 - tap : tap) * width;
            std::copy(lanes, lanes + width, to + (taps_first ? u * outputs + k : k * seeing + u) * width);
          }
        }
      }
    }
  });
}

template <typename T>
void run(const ConvArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry& g = args.geometry;
  const WeightPanels panels = weight_panels(g, args.dtype);
  const StridePhases phases(g);
  const std::vector<int64_t> offsets = packed_offsets(g, phases, panels.lanes());
  Workspace workspace(args.workspace);
  char* results = workspace.take<char>(phases.result_bytes(args.dtype));
  char* rest = static_cast<char*>(args.workspace) + workspace.used();
  phases.run(args, results, [&](ConvArguments& part, const StridePhase&, int64_t i) {
    part.packed_weight = static_cast<const A*>(args.packed_weight) + offsets[i];
    part.workspace = rest;
    forward(part);
  });
}

}  // namespace

Packing backward_input_packing(const ConvGeometry& geometry, DType dtype) {
  const ConvGeometry g = gradient_geometry(geometry);
  return dispatch_floating(dtype, [&](auto type) -> Packing {
    using A = Accumulate<typename decltype(type)::type>;
    const WeightPanels panels = weight_panels(g, dtype);
    const StridePhases phases(g);
    uint64_t mix = uint64_t(panels.width);  // of all that says which taps are whose
    for (int64_t i = 0; i < phases.count(); ++i) {
      const StridePhase phase = phases[i];
      for (int64_t u = 0; u < phase.geometry.taps(); ++u)
        mix = (mix ^ uint64_t(2 * phase.kernel_tap(g, u) + (u == 0))) * 0x9E3779B97F4A7C15u;
    }
    return {packed_offsets(g, phases, panels.lanes()).back() * int64_t(sizeof(A)), int64_t(mix)};
  });
}

void pack_backward_input(const PackArguments& args) {
  dispatch_floating(args.dtype, [&](auto type) { pack_weight<typename decltype(type)::type>(args); });
}

int64_t backward_input_bytes(const ConvGeometry& geometry, DType dtype) {
  return input_gradient_bytes(geometry, dtype, [](const ConvGeometry& g, DType type) {
    const StridePhases phases(g);
    Workspace own(nullptr);
    own.take<char>(phases.result_bytes(type));
    return own.used() + phases.most(type, [&](const ConvGeometry& phase) { return forward_bytes(phase, type); });
  });
}

void backward_input(const ConvArguments& args) {
  compute_input_gradient(args, [](const ConvArguments& part) {
    dispatch_floating(part.dtype, [&](auto type) { run<typename decltype(type)::type>(part); });
  });
}

}  // namespace convext::cpu::im2col
