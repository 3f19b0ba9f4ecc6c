// Gradient of the input by im2col: forward convolutions of the output gradient, one per stride phase
// (input_gradient.h), whose weights are packed straight from the weight: packed[phase][group][panel][row][lane], lanes
// being input channels, rows the output channels and taps of the phase in the order of the unfolded dy. Where those
// would mostly multiply zeros, it goes the other way round (conv_im2col_col2im.cpp).
#include <type_traits>

#include "conv_im2col.h"
#include "input_gradient.h"
#include "phases.h"

namespace convext::cpu::im2col {
namespace {

constexpr int64_t kPackedOutputs = 32;  // output channels in a task of packing

// Output channels in an element.
template <typename E>
constexpr int64_t kChannels = kPairs<E> ? 2 : 1;

// Where the packed weight of each phase begins, in elements, and at last where all end; lanes: of all panels.
template <typename E>
std::vector<int64_t> packed_offsets(const ConvGeometry& g, const StridePhases& phases, int64_t lanes) {
  std::vector<int64_t> offsets = {0};
  const int64_t outputs = ceil_div(g.group_outputs(), kChannels<E>);
  for (int64_t i = 0; i < phases.count(); ++i)
    offsets.push_back(offsets.back() + g.groups * lanes * outputs * phases[i].geometry.taps());
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

template <typename T, typename E>
void pack_weight(Elements<T, E>, const PackArguments& args) {
  using A = Accumulate<T>;
  const ConvGeometry g = gradient_geometry(args.geometry);
  const WeightPanels panels = weight_panels(g, args.dtype);
  const int64_t inputs = g.group_inputs(), outputs = g.group_outputs(), taps = g.taps(), width = panels.width;
  const StridePhases phases(g);
  const std::vector<int64_t> offsets = packed_offsets<E>(g, phases, panels.lanes());
  std::vector<std::vector<int64_t>> phase_taps(phases.count());  // of the kernel
  for (int64_t i = 0; i < phases.count(); ++i)
    for (int64_t u = 0; u < phases[i].geometry.taps(); ++u) phase_taps[i].push_back(phases[i].kernel_tap(g, u));
  const int64_t channels = kChannels<E>, steps = ceil_div(outputs, channels);
  const Blocks blocks = cut(outputs, channels, kPackedOutputs);
  const bool taps_first = g.layout == Layout::channels_last;
  const T* w = static_cast<const T*>(args.weight);
  parallel_for(g.groups * blocks.count, [&](int64_t task, int) {
    const Phase timed("pack weight");
    const Span some = blocks[task % blocks.count];
    const int64_t group = task / blocks.count;
    std::vector<A> line(channels * taps * width);  // [channel of an element][tap][lane]
    const auto widen = [&](const T* from, int64_t count, A* to) {
      if (taps == 1 || args.channels_last) {
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int64_t lane = 0; lane < count; ++lane)
            to[tap * width + lane] = to_accumulate(from[tap * inputs + lane]);
      } else {
        unfold<T>().transpose(from, taps, count, taps, to, width, width);
      }
    };
    const int64_t step = args.channels_last ? 1 : taps;  // from input channel to input channel
    for (int64_t k = some.begin; k < some.end; k += channels) {
      for (int64_t panel = 0; panel < panels.count; ++panel) {
        const int64_t c = panel * width, count = std::min(width, inputs - c);
        const T* from = w + (group * outputs + k) * inputs * taps + c * step;
        for (int64_t i = 0; i < channels && k + i < some.end; ++i)
          widen(from + i * inputs * taps, count, line.data() + i * taps * width);
        for (size_t i = 0; i < phase_taps.size(); ++i) {
          const int64_t seeing = int64_t(phase_taps[i].size()), rows = steps * seeing, element = k / channels;
          E* to = static_cast<E*>(args.packed) + offsets[i] + (group * panels.count + panel) * rows * width;
          for (int64_t u = 0; u < seeing; ++u) {
            const int64_t tap = phase_taps[i][u];
            const A* lanes = line.data() + (g.flip_kernel ? taps - 1 - tap : tap) * width;
            E* row = to + (taps_first ? u * steps + element : element * seeing + u) * width;
            if constexpr (kPairs<E>)
              bfloat16_pairs().join(lanes, k + 1 < some.end ? lanes + taps * width : nullptr, width, row);
            else
              std::copy(lanes, lanes + width, row);
          }
        }
      }
    }
  });
}

template <typename T, typename E>
void run(Elements<T, E>, const ConvArguments& args) {
  const ConvGeometry& g = args.geometry;
  const WeightPanels panels = weight_panels(g, args.dtype);
  const StridePhases phases(g);
  const std::vector<int64_t> offsets = packed_offsets<E>(g, phases, panels.lanes());
  Workspace workspace(args.workspace);
  char* results = workspace.take<char>(phases.result_bytes(args.dtype));
  char* rest = static_cast<char*>(args.workspace) + workspace.used();
  phases.run(args, results, [&](ConvArguments& part, const StridePhase&, int64_t i) {
    part.weight = args.weight;
    if (args.packed_weight != nullptr) part.packed_weight = static_cast<const E*>(args.packed_weight) + offsets[i];
    part.workspace = rest;
    forward(part, WeightIs::transposed);
  });
}

// Where padding repeats, the gradient is computed in the type of the sums: no pairs then.
bool goes_by_col2im(const ConvGeometry& g, DType dtype) {
  return col2im_pays(gradient_geometry(g), repeats_padding(g) ? RepeatedPadding(g, dtype).wide : dtype);
}

}  // namespace

Packing backward_input_packing(const ConvGeometry& geometry, DType dtype) {
  const ConvGeometry g = gradient_geometry(geometry);
  if (goes_by_col2im(geometry, dtype)) return col2im_packing(g, dtype);
  const auto packing = [&](auto elements) -> Packing {
    using E = typename decltype(elements)::Packed;
    const WeightPanels panels = weight_panels(g, dtype);
    const StridePhases phases(g);
    uint64_t mix = uint64_t(panels.width);  // of all that says which taps are whose
    for (int64_t i = 0; i < phases.count(); ++i) {
      const StridePhase phase = phases[i];
      for (int64_t u = 0; u < phase.geometry.taps(); ++u)
        mix = (mix ^ uint64_t(2 * phase.kernel_tap(g, u) + (u == 0))) * 0x9E3779B97F4A7C15u;
    }
    return {packed_offsets<E>(g, phases, panels.lanes()).back() * int64_t(sizeof(E)), int64_t(mix)};
  };
  return dispatch_elements(dtype, packing, !repeats_padding(geometry));
}

bool backward_input_packs_on_the_way(const ConvGeometry& g, DType dtype) {
  if (g.taps() != 1 || repeats_padding(g) || goes_by_col2im(g, dtype)) return false;
  const StridePhases phases(g);
  return forward_packs_on_the_way(phases[0].geometry, dtype);
}

void pack_backward_input(const PackArguments& args) {
  if (goes_by_col2im(args.geometry, args.dtype)) return pack_col2im(args);
  const bool pairs = !repeats_padding(args.geometry);
  dispatch_elements(args.dtype, [&](auto elements) { pack_weight(elements, args); }, pairs);
}

int64_t backward_input_bytes(const ConvGeometry& geometry, DType dtype) {
  return input_gradient_bytes(geometry, dtype, [](const ConvGeometry& g, DType type) {
    if (col2im_pays(g, type)) return col2im_bytes(g, type);
    const StridePhases phases(g);
    Workspace own(nullptr);
    own.take<char>(phases.result_bytes(type));
    return own.used() + phases.most(type, [&](const ConvGeometry& phase) { return forward_bytes(phase, type); });
  });
}

void backward_input(const ConvArguments& args) {
  compute_input_gradient(args, [](const ConvArguments& part) {
    if (col2im_pays(part.geometry, part.dtype)) return col2im(part);
    dispatch_elements(part.dtype, [&](auto elements) { run(elements, part); });
  });
}

}  // namespace convext::cpu::im2col
