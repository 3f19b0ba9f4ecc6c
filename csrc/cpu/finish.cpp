#include "finish.h"

#include <cmath>

#include "isa.h"
#include "parallel.h"
#include "phases.h"
#include "simd.h"
#define CONVEXT_KERNELS "finish.inl"
#include "for_each_isa.inl"

namespace convext::cpu {
namespace {

template <typename T>
using FinishRun = void (*)(T*, const T*, int64_t, bool, float, float);

// In double precision, one element at a time.
double activated(Activation activation, double x, double a, double b) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::clamp: {
      const double low = x < a ? a : x;
      return low > b ? b : low;
    }
    case Activation::leaky_relu: return x > 0 ? x : a * x;
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::tanh: return std::tanh(x);
    case Activation::gelu: return x * (1 + std::erf(x * M_SQRT1_2)) / 2;
    case Activation::gelu_tanh: return x * (1 + std::tanh(M_SQRT2 * M_2_SQRTPI / 2 * (x + 0.044715 * x * x * x))) / 2;
    default: {
      const double up = x + 3, low = up < 0 ? 0 : up, six = low > 6 ? 6 : low;
      return activation == Activation::hardswish ? x * six / 6 : six / 6;
    }
  }
}

template <typename T>
void finish_run(const Epilogue& e, T* y, const T* residual, int64_t count) {
  if constexpr (std::is_same_v<T, double>) {
    for (int64_t i = 0; i < count; ++i) {
      const double other = residual == nullptr ? 0 : residual[i], before = e.residual_last ? 0 : other;
      y[i] = activated(e.activation, y[i] + before, e.a, e.b) + (e.residual_last ? other : 0);
    }
  } else {
    const FinishRun<T> run = CONVEXT_SELECT_ISA(kFinishRuns<T>)[int(e.activation)];
    run(y, residual, count, e.residual_last, float(e.a), float(e.b));
  }
}

template <typename T>
void finish_runs(const ConvArguments& args, const OutputBlock& b) {
  const ConvGeometry& g = args.geometry;
  const Epilogue& e = args.epilogue;
  T* y = static_cast<T*>(args.output);
  const T* residual = static_cast<const T*>(e.residual);
  const auto run = [&](int64_t at, int64_t count) {
    finish_run(e, y + at, residual == nullptr ? nullptr : residual + at, count);
  };
  const int64_t width = g.output[2];
  const bool contiguous = g.layout == Layout::contiguous, together = b.places == width;
  const int64_t rows = together ? 1 : b.rows, places = together ? b.rows * width : b.places;
  if (contiguous || b.channels == g.out_channels) {
    const int64_t planes = contiguous ? b.channels : 1, length = contiguous ? places : places * b.channels;
    for (int64_t k = 0; k < planes; ++k)
      for (int64_t p = 0; p < rows; ++p) run(g.output_offset(b.n, b.channel + k, b.place + p * width), length);
    return;
  }
  for (int64_t p = 0; p < rows; ++p)
    for (int64_t q = 0; q < places; ++q) run(g.output_offset(b.n, b.channel, b.place + p * width + q), b.channels);
}

}  // namespace

void finish_block(const ConvArguments& args, const OutputBlock& block) {
  if (args.epilogue.empty()) return;
  const Phase phase("finish");
  dispatch_floating(args.dtype, [&](auto type) { finish_runs<typename decltype(type)::type>(args, block); });
}

void finish_output(const ConvArguments& args) {
  if (args.epilogue.empty()) return;
  constexpr int64_t kPiece = 1 << 14;
  const Phase phase("finish");
  const int64_t elements = args.geometry.output_elements();
  dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    T* y = static_cast<T*>(args.output);
    const T* residual = static_cast<const T*>(args.epilogue.residual);
    parallel_for(ceil_div(elements, kPiece), [&](int64_t task, int) {
      const int64_t at = task * kPiece;
      finish_run(args.epilogue, y + at, residual == nullptr ? nullptr : residual + at,
                 elements - at < kPiece ? elements - at : kPiece);
    });
  });
}

}  // namespace convext::cpu
