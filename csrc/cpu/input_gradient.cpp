#include "input_gradient.h"

#include <algorithm>
#include <numeric>

#include "blocking.h"
#include "phases.h"
#include "strided.h"

namespace convext::cpu {
namespace {

// Of results that wait to be spread or folded, but at least an image's.
constexpr int64_t kResultBytes = int64_t(4) << 20;
constexpr int64_t kWidened = 4096;   // elements of a task
constexpr int64_t kSpreadRows = 16;  // of a task

// Places of one axis of the phase that starts at `first`.
int64_t places(const ConvGeometry& g, int axis, int64_t first) {
  return first < g.input[axis] ? ceil_div(g.input[axis] - first, g.stride[axis]) : 0;
}

// One phase of the width: a row of its results (null: zeros), how many.
template <typename Bits>
struct Piece {
  const Bits* row;
  int64_t count;
};

// A row of dx from its pieces, `channels` elements a place; piece s holds places s, s + step, ...
template <typename Bits>
void spread_pieces(Bits* to, const std::vector<Piece<Bits>>& pieces, int64_t step, int64_t channels) {
  const int64_t parts = int64_t(pieces.size());
  if (channels > 1) {
    for (int64_t s = 0; s < parts; ++s)
      for (int64_t i = 0; i < pieces[s].count; ++i) {
        Bits* place = to + (s + i * step) * channels;
        if (pieces[s].row == nullptr)
          std::fill(place, place + channels, Bits(0));
        else
          std::copy(pieces[s].row + i * channels, pieces[s].row + (i + 1) * channels, place);
      }
    return;
  }
  if (step == 1 && pieces[0].row != nullptr) {
    std::copy(pieces[0].row, pieces[0].row + pieces[0].count, to);
    return;
  }
  int64_t done = 0;
  if (step == 2 && parts == 2) {
    done = pieces[1].count;
    interleave(pieces[0].row, pieces[1].row, to, done);
  }
  for (int64_t s = 0; s < parts; ++s)
    put_every(pieces[s].row == nullptr ? nullptr : pieces[s].row + done, to + s + done * step, step,
              pieces[s].count - done);
}

}  // namespace

int64_t StridePhase::kernel_tap(const ConvGeometry& g, int64_t u) const {
  const int64_t* k = geometry.kernel;
  const int64_t at[] = {u / (k[1] * k[2]), u / k[2] % k[1], u % k[2]};
  int64_t kernel = 0;
  for (int axis = 0; axis < kMaxSpatial; ++axis)
    kernel = kernel * g.kernel[axis] + tap[axis] + at[axis] * tap_step[axis];
  return kernel;
}

Span reached_outputs(const ConvGeometry& g, int axis, int64_t tap) {
  return steps_inside(g.padded_place(axis, 0, tap), g.stride[axis], g.output[axis], g.input[axis]);
}

StridePhases::StridePhases(const ConvGeometry& geometry) : geometry_(geometry) {
  for (int axis = 0; axis < kMaxSpatial; ++axis) count_[axis] = std::min(geometry.stride[axis], geometry.input[axis]);
}

StridePhase StridePhases::operator[](int64_t i) const {
  const ConvGeometry& g = geometry_;
  StridePhase phase;
  ConvGeometry& p = phase.geometry;
  p = g;
  std::swap(p.in_channels, p.out_channels);
  p.padding_mode = PaddingMode::zeros;
  p.flip_kernel = false;
  const int64_t first[] = {i / (count_[1] * count_[2]), i / count_[2] % count_[1], i % count_[2]};
  for (int a = 0; a < kMaxSpatial; ++a) {
    const int64_t stride = g.stride[a], dilation = g.dilation[a], divisor = std::gcd(stride, dilation);
    const int64_t period = stride / divisor;
    const int64_t start = (first[a] + g.pad_before[a]) / stride, number = (first[a] + g.pad_before[a]) % stride;
    int64_t tap = 0;
    while (tap < std::min(period, g.kernel[a]) && tap * dilation % stride != number) ++tap;
    const int64_t taps = tap < std::min(period, g.kernel[a]) ? (g.kernel[a] - 1 - tap) / period + 1 : 0;
    const int64_t last = tap + (taps - 1) * period;
    phase.first[a] = first[a];
    phase.tap[a] = last;
    phase.tap_step[a] = -period;
    p.input[a] = g.output[a];
    p.output[a] = places(g, a, first[a]);
    p.kernel[a] = taps;
    p.stride[a] = 1;
    p.dilation[a] = dilation / divisor;
    p.pad_before[a] = (last * dilation - number) / stride - start;
    p.pad_after[a] = p.output[a] + (taps - 1) * p.dilation[a] - p.pad_before[a] - p.input[a];
  }
  return phase;
}

ConvGeometry StridePhases::largest() const {
  ConvGeometry most = (*this)[0].geometry;
  for (int64_t i = 1; i < count(); ++i)
    if (const ConvGeometry other = (*this)[i].geometry; other.taps() > most.taps()) most = other;
  return most;
}

double StridePhases::excess() const {
  double products = 0;
  for (int64_t i = 0; i < count(); ++i) {
    const ConvGeometry phase = (*this)[i].geometry;
    products += double(phase.taps()) * double(phase.output_places());
  }
  double needed = 1;
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    int64_t seen = 0;
    for (int64_t tap = 0; tap < geometry_.kernel[axis]; ++tap) seen += reached_outputs(geometry_, axis, tap).size();
    needed *= double(std::max(seen, int64_t(1)));
  }
  return products / needed;
}

int64_t StridePhases::images_at_once(DType dtype) const {
  if (!strided()) return std::max(geometry_.batch, int64_t(1));
  const int64_t image = geometry_.in_channels * geometry_.input_places() * size_of(dtype);
  return images_within(kResultBytes, image, geometry_.batch);
}

int64_t StridePhases::part_bytes(DType dtype) const {
  int64_t elements = images_at_once(dtype) * geometry_.in_channels;
  for (int axis = 0; axis < kMaxSpatial; ++axis) elements *= places(geometry_, axis, 0);
  return ceil_div(elements * size_of(dtype), 64) * 64;
}

int64_t StridePhases::result_bytes(DType dtype) const { return strided() ? count_[kWidth] * part_bytes(dtype) : 0; }

void StridePhases::spread(const ConvArguments& args, const void* results, int64_t first, int64_t image,
                          int64_t images) const {
  const Phase timed("spread");
  const ConvGeometry& g = geometry_;
  std::vector<StridePhase> phases;
  for (int64_t s = 0; s < count_[kWidth]; ++s) phases.push_back((*this)[first + s]);
  const auto move = [&](auto bits) {
    using Bits = decltype(bits);
    const bool contiguous = g.layout == Layout::contiguous;
    const int64_t channels = contiguous ? 1 : g.in_channels, planes = contiguous ? g.in_channels : 1;
    const int64_t* output = phases[0].geometry.output;
    Bits* dx = static_cast<Bits*>(args.output) + g.input_offset(image, 0, 0);
    const int64_t bands = ceil_div(output[1], kSpreadRows);
    parallel_for(images * planes * output[0] * bands, [&](int64_t task, int) {
      const int64_t h0 = task % bands * kSpreadRows, d = task / bands % output[0], plane = task / bands / output[0];
      std::vector<Piece<Bits>> pieces(phases.size());
      for (int64_t h = h0; h < std::min(h0 + kSpreadRows, output[1]); ++h) {
        for (size_t s = 0; s < phases.size(); ++s) {
          const ConvGeometry& p = phases[s].geometry;
          const char* part = static_cast<const char*>(results) + int64_t(s) * part_bytes(args.dtype);
          const int64_t row = ((plane * p.output[0] + d) * p.output[1] + h) * p.output[2] * channels;
          pieces[s] = {phases[s].sees_nothing() ? nullptr : reinterpret_cast<const Bits*>(part) + row, p.output[2]};
        }
        const int64_t at_d = phases[0].first[0] + d * g.stride[0], at_h = phases[0].first[1] + h * g.stride[1];
        spread_pieces(dx + ((plane * g.input[0] + at_d) * g.input[1] + at_h) * g.input[2] * channels, pieces,
                      g.stride[2], channels);
      }
    });
  };
  with_bits(size_of(args.dtype), move);
}

ConvGeometry gradient_geometry(const ConvGeometry& geometry) {
  ConvGeometry g = geometry;
  if (!repeats_padding(g)) return g;
  g.padding_mode = PaddingMode::zeros;
  for (int axis = 0; axis < kMaxSpatial; ++axis) {
    g.input[axis] += g.pad_before[axis] + g.pad_after[axis];
    g.pad_before[axis] = g.pad_after[axis] = 0;
  }
  return g;
}

RepeatedPadding::RepeatedPadding(const ConvGeometry& geometry, DType dtype)
    : geometry(geometry), padded(gradient_geometry(geometry)), dtype(dtype) {
  wide = size_of(dtype) == 2 ? DType::float32 : dtype;
  const int64_t image = padded.input_offset(1, 0, 0) * size_of(wide);
  images_at_once = images_within(kResultBytes, image, geometry.batch);
}

RepeatedPadding::Pieces RepeatedPadding::pieces(void* workspace) const {
  const auto widened = [&](int64_t elements) { return wide == dtype ? 0 : elements * size_of(wide); };
  Workspace own(workspace);
  Pieces pieces;
  pieces.gradient = own.take<char>(images_at_once * padded.input_offset(1, 0, 0) * size_of(wide));
  pieces.grad_output = own.take<char>(widened(images_at_once * padded.output_offset(1, 0, 0)));
  pieces.weight = own.take<char>(widened(padded.weight_elements()));
  pieces.used = own.used();
  pieces.rest = static_cast<char*>(workspace) + own.used();
  return pieces;
}

const void* RepeatedPadding::widened(const void* from, int64_t elements, void* to) const {
  if (wide == dtype) return from;
  const Phase timed("widen");
  dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* source = static_cast<const T*>(from);
    Accumulate<T>* wide = static_cast<Accumulate<T>*>(to);
    const Blocks blocks = cut(elements, 1, kWidened);
    parallel_for(blocks.count, [&](int64_t i, int) {
      for (int64_t j = blocks[i].begin; j < blocks[i].end; ++j) wide[j] = to_accumulate(source[j]);
    });
  });
  return to;
}

void RepeatedPadding::fold(const void* gradient, void* output, int64_t images) const {
  const Phase timed("fold");
  const ConvGeometry& g = geometry;
  const bool contiguous = g.layout == Layout::contiguous;
  const int64_t channels = contiguous ? 1 : g.in_channels, planes = contiguous ? g.in_channels : 1;
  const int64_t width = g.input[2], before = g.pad_before[2], after = g.pad_after[2];
  dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    parallel_for(images * planes * g.input[0] * g.input[1], [&](int64_t row, int) {
      const int64_t h = row % g.input[1], d = row / g.input[1] % g.input[0], plane = row / g.input[1] / g.input[0];
      const Preimages ds = g.preimages(0, d), hs = g.preimages(1, h);
      T* to = static_cast<T*>(output) + row * width * channels;
      std::vector<A> narrow(std::is_same_v<T, A> ? 0 : width * channels);
      A* sum;
      if constexpr (std::is_same_v<T, A>)
        sum = to;
      else
        sum = narrow.data();
      for (int64_t i = 0; i < ds.count(); ++i)
        for (int64_t j = 0; j < hs.count(); ++j) {
          const int64_t at_d = ds[i] + g.pad_before[0], at_h = hs[j] + g.pad_before[1];
          const A* from =
              static_cast<const A*>(gradient) +
              (((plane * padded.input[0] + at_d) * padded.input[1] + at_h) * padded.input[2] + before) * channels;
          if (i + j == 0)
            std::copy(from, from + width * channels, sum);
          else
            for (int64_t w = 0; w < width * channels; ++w) sum[w] += from[w];
          const auto add = [&](int64_t w) {
            const int64_t shown = padded_source(w, width, g.padding_mode);
            for (int64_t c = 0; c < channels; ++c) sum[shown * channels + c] += from[w * channels + c];
          };
          for (int64_t w = -before; w < 0; ++w) add(w);
          for (int64_t w = width; w < width + after; ++w) add(w);
        }
      if constexpr (!std::is_same_v<T, A>)
        for (int64_t w = 0; w < width * channels; ++w) to[w] = from_accumulate<T>(sum[w]);
    });
  });
}

}  // namespace convext::cpu
