#include "dilation.h"

#include <algorithm>
#include <vector>

#include "dtype.h"
#include "isa.h"
#include "parallel.h"
#include "phases.h"
#include "strided.h"

namespace convext::cpu {
namespace {

// One axis of a tensor and of its phases: place u of phase j is place j + step u - before.
struct Axis {
  int64_t size, before, after;
  PaddingMode mode;
  int64_t part, phases, step;

  int64_t source(int64_t phase, int64_t u) const {
    const int64_t place = phase + step * u - before;
    return place < size + after ? padded_source(place, size, mode) : -1;
  }
  // The places of a phase that are places of the tensor itself.
  Span inside(int64_t phase) const { return steps_inside(phase - before, step, part, size); }
};

// A tensor, and how its phases lie.
struct Cut {
  Axis axis[kMaxSpatial];
  int64_t images, channels;
  Layout layout, parts;

  int64_t phases() const { return axis[0].phases * axis[1].phases * axis[2].phases; }
  int64_t places() const { return axis[0].size * axis[1].size * axis[2].size; }
  int64_t part_places() const { return axis[0].part * axis[1].part * axis[2].part; }
  // Channels of a place lie side by side in the parts, or planes are cut one by one.
  int64_t together() const { return parts == Layout::contiguous ? 1 : channels; }
  int64_t planes() const { return parts == Layout::contiguous ? channels : 1; }
  bool turned() const { return layout != parts; }
};

// A row of one plane in the parts, of all phases of the width; the row of the tensor it shows, in places from its
// plane's first on, or < 0: zeros.
struct Row {
  int64_t image, plane, source, part, next_phase;  // part: the first place, of phase 0
};
template <typename Visit>
void for_rows(const Cut& cut, const Visit& visit) {
  const Axis &d = cut.axis[0], &h = cut.axis[1], &w = cut.axis[2];
  const int64_t planes = cut.planes(), high = h.phases * h.part, deep = d.phases * d.part;
  const int64_t next_phase = planes * cut.part_places();
  parallel_for(cut.images * planes * deep * high, [&](int64_t task, int) {
    const int64_t u = task % h.part, of_h = task / h.part % h.phases, t = task / high % d.part,
                  of_d = task / high / d.part % d.phases, plane = task / high / deep;
    const int64_t at_d = d.source(of_d, t), at_h = h.source(of_h, u), image = plane / planes;
    const int64_t phase = (image * d.phases + of_d) * h.phases + of_h;
    visit(Row{image, plane % planes, at_d < 0 || at_h < 0 ? -1 : (at_d * h.size + at_h) * w.size,
              phase * w.phases * next_phase + plane % planes * cut.part_places() + (t * h.part + u) * w.part,
              next_phase});
  });
}

// Places a step apart, `together` elements each, to places side by side; and back.
template <typename Bits>
void take_places(const Bits* from, int64_t step, Bits* to, int64_t count, int64_t together) {
  if (together == 1) return take_every(from, step, to, count);
  for (int64_t i = 0; i < count; ++i, from += step * together, to += together) std::copy(from, from + together, to);
}
template <typename Bits>
void put_places(const Bits* from, Bits* to, int64_t step, int64_t count, int64_t together) {
  if (together == 1) return put_every(from, to, step, count);
  for (int64_t i = 0; i < count; ++i, from += together, to += step * together) std::copy(from, from + together, to);
}

template <typename Bits>
void split(const Cut& cut, const Bits* from, Bits* to) {
  const Axis& w = cut.axis[2];
  const int64_t together = cut.together(), places = cut.places();
  for_rows(cut, [&](const Row& row) {
    std::vector<Bits> turned(cut.turned() && row.source >= 0 ? w.size * together : 0);
    const Bits* shown = from + ((row.image * cut.planes() + row.plane) * places + row.source) * together;
    if (!turned.empty()) {
      turn(from + row.image * cut.channels * places + row.source, places, cut.channels, w.size, turned.data(),
           together);
      shown = turned.data();
    }
    for (int64_t phase = 0; phase < w.phases; ++phase) {
      Bits* into = to + (row.part + phase * row.next_phase) * together;
      const Span inside = row.source < 0 ? Span{0, 0} : w.inside(phase);
      const auto edge = [&](int64_t u) {
        const int64_t place = row.source < 0 ? -1 : w.source(phase, u);
        if (place < 0)
          std::fill(into + u * together, into + (u + 1) * together, Bits(0));
        else
          std::copy(shown + place * together, shown + (place + 1) * together, into + u * together);
      };
      for (int64_t u = 0; u < inside.begin; ++u) edge(u);
      if (inside.size() > 0)
        take_places(shown + (phase + inside.begin * w.step - w.before) * together, w.step,
                    into + inside.begin * together, inside.size(), together);
      for (int64_t u = inside.end; u < w.part; ++u) edge(u);
    }
  });
}

template <typename Bits>
void join(const Cut& cut, const Bits* from, Bits* to) {
  const Axis& w = cut.axis[2];
  const int64_t together = cut.together(), places = cut.places();
  for_rows(cut, [&](const Row& row) {
    if (row.source < 0) return;
    std::vector<Bits> turned(cut.turned() ? w.size * together : 0);
    Bits* into = turned.data();
    if (!cut.turned()) into = to + ((row.image * cut.planes() + row.plane) * places + row.source) * together;
    for (int64_t phase = 0; phase < w.phases; ++phase)
      put_places(from + (row.part + phase * row.next_phase) * together, into + phase * together, w.step,
                 w.inside(phase).end, together);
    if (cut.turned())
      turn(turned.data(), together, w.size, cut.channels, to + row.image * cut.channels * places + row.source, places);
  });
}

int64_t step_of(const ConvGeometry& g, int axis) { return g.kernel[axis] > 1 ? g.dilation[axis] : 1; }

Cut cut_input(const ConvGeometry& g, const ConvGeometry& parts) {
  Cut cut = {{}, g.batch, g.in_channels, g.layout, parts.layout};
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    const int64_t step = step_of(g, axis);
    cut.axis[axis] = {g.input[axis],
                      g.pad_before[axis],
                      g.pad_after[axis],
                      g.padding_mode,
                      parts.input[axis],
                      std::min(step, g.output[axis]),
                      step};
  }
  return cut;
}

Cut cut_output(const ConvGeometry& g, const ConvGeometry& parts) {
  Cut cut = {{}, g.batch, g.out_channels, g.layout, parts.layout};
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    const int64_t step = step_of(g, axis);
    cut.axis[axis] = {
        g.output[axis], 0, 0, PaddingMode::zeros, parts.output[axis], std::min(step, g.output[axis]), step};
  }
  return cut;
}

}  // namespace

bool dilated(const ConvGeometry& g) { return step_of(g, 0) > 1 || step_of(g, 1) > 1 || step_of(g, 2) > 1; }

DilationPhases::DilationPhases(const ConvGeometry& geometry) : geometry_(geometry), undilated_(geometry) {
  ConvGeometry& u = undilated_;
  u.padding_mode = PaddingMode::zeros;
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    count_ *= std::min(step_of(geometry, axis), geometry.output[axis]);
    u.dilation[axis] = 1;
    u.pad_before[axis] = u.pad_after[axis] = 0;
    u.output[axis] = ceil_div(geometry.output[axis], step_of(geometry, axis));
    u.input[axis] = u.output[axis] + geometry.kernel[axis] - 1;
  }
  u.batch = geometry.batch * count_;
  const bool few = std::min(geometry.group_inputs(), geometry.group_outputs()) < kWidestVector;
  if (!few) u.layout = Layout::channels_last;
}

void DilationPhases::split_input(const void* input, void* parts, DType dtype) const {
  const Phase timed("split");
  with_bits(size_of(dtype), [&](auto bits) {
    using Bits = decltype(bits);
    split(cut_input(geometry_, undilated_), static_cast<const Bits*>(input), static_cast<Bits*>(parts));
  });
}

void DilationPhases::split_output(const void* output, void* parts, DType dtype) const {
  const Phase timed("split");
  with_bits(size_of(dtype), [&](auto bits) {
    using Bits = decltype(bits);
    split(cut_output(geometry_, undilated_), static_cast<const Bits*>(output), static_cast<Bits*>(parts));
  });
}

void DilationPhases::join_output(const void* parts, void* output, DType dtype) const {
  const Phase timed("join");
  with_bits(size_of(dtype), [&](auto bits) {
    using Bits = decltype(bits);
    join(cut_output(geometry_, undilated_), static_cast<const Bits*>(parts), static_cast<Bits*>(output));
  });
}

}  // namespace convext::cpu
