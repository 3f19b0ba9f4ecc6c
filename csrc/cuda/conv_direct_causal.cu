// Depthwise layers of lines (conv1d, n c l) with short kernels, the causal ones of state-space models above all: the
// outputs and the gradient of the input, which reads dy as many places ahead as the outputs read behind.
//
// A thread makes two vectors of 16 bytes. It loads the vectors that its windows reach into, from an address that is
// whole whatever the padding, moves them into place in registers by selects and a funnel of 16 bits, and slides the
// kernel over them. No shared memory, no barrier; what neighbours share comes from the first-level cache. Where a
// window reaches past the line, elements are fetched one by one, by the padding's rule.
//
// Traffic: each element of input and output once, in 16-byte accesses; two and a half loads for one that misses the
// first-level cache. Bound by memory: with 4 taps in float32, 8 bytes and some 20 instructions per output, where an
// H200 issues 50 in that time; in 16 bits 4 bytes and some 15 of 25. Limits: kMaxTaps taps, stride and dilation 1, one
// output per input, lines of whole vectors, aligned; else conv_direct_depthwise.cu. A thread sums an element alone, tap
// by tap.
#include <cstring>

#include "conv_direct.cuh"
#include "conv_direct_read.cuh"
#include "launch.cuh"
#include "vector.cuh"

namespace convext::cuda {
namespace {

constexpr int kMaxTaps = 8;
template <typename T>
constexpr int kMade = 2 * kPack<T>;  // outputs of a thread
template <typename T>                // vectors that their windows reach into: kPack - 1 places may go before the first
constexpr int kSeen = (kPack<T> - 1 + kMade<T> + kMaxTaps - 1 + kPack<T> - 1) / kPack<T>;

struct Task {
  Depthwise what;
  int planes;
  int first, shift;  // the first vector seen from made place 0, in elements; and how many of it come before the window
  Divide by_strips;
};

struct alignas(16) Words {
  uint32_t v[4];
};

// Element i of those that lie in `words`.
template <typename T>
__device__ __forceinline__ Accumulate<T> element(const uint32_t* words, int i) {
  T value;
  if constexpr (sizeof(T) == 2) {
    const uint16_t bits = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
    std::memcpy(&value, &bits, sizeof(T));
  } else {
    std::memcpy(&value, words + i * (sizeof(T) / 4), sizeof(T));
  }
  return to_accumulate(value);
}

template <typename T>
__global__ __launch_bounds__(kThreads, 2) void causal_kernel(const Task task, const T* __restrict__ read,
                                                             const T* __restrict__ weight, const T* __restrict__ bias,
                                                             T* __restrict__ out) {
  using A = Accumulate<T>;
  constexpr int kMade = cuda::kMade<T>, kSeen = cuda::kSeen<T>, kVector = kPack<T>;
  const Depthwise& what = task.what;
  const int taps = what.window.kernel[2], made_size = what.made_size[2], read_size = what.w.size;
  int strip = int(blockIdx.x) * kThreads + int(threadIdx.x);
  const int plane = split(strip, task.by_strips), first_w = strip * kMade;
  if (plane >= task.planes) return;
  const int channel = what.by_all_channels.remainder(plane);

  A w[kMaxTaps];
#pragma unroll
  for (int s = 0; s < kMaxTaps; ++s)
    w[s] = s < taps ? to_accumulate(weight[channel * taps + (what.turned ? taps - 1 - s : s)]) : A(0);

  // The vectors from place `begin` on; what no window sees is zero.
  const int begin = first_w + task.first, end = what.w.start + made_size + taps - 1;
  const T* line = read + plane * read_size;
  uint32_t words[4 * kSeen];
#pragma unroll
  for (int i = 0; i < kSeen; ++i) {
    const int at = begin + i * kVector;
    Words vector = {};
    if (i * kVector >= task.shift + kMade + taps - 1) {
    } else if (at >= 0 && at + kVector <= read_size) {
      vector = *reinterpret_cast<const Words*>(line + at);
    } else {
      Pack<T, kVector> values;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const int from = at + v < what.w.start || at + v >= end ? -1 : what.w(at + v);
        values.v[v] = from >= 0 ? line[from] : from_accumulate<T>(0);
      }
      std::memcpy(&vector, &values, sizeof(vector));
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) words[4 * i + v] = vector.v[v];
  }
  const int shift = task.shift * int(sizeof(T)) / 4;  // in words: 0 to 3
#pragma unroll
  for (int i = 0; i < 4 * kSeen - 2; ++i) words[i] = shift & 2 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 4 * kSeen - 3; ++i) words[i] = shift & 1 ? words[i + 1] : words[i];
  if (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < 4 * kSeen - 4; ++i) words[i] = task.shift & 1 ? words[i] >> 16 | words[i + 1] << 16 : words[i];
  }
  A seen[kMade + kMaxTaps - 1];
#pragma unroll
  for (int i = 0; i < kMade + kMaxTaps - 1; ++i) seen[i] = element<T>(words, i);

  A sum[kMade] = {};
#pragma unroll
  for (int s = 0; s < kMaxTaps; ++s) {
    if (s >= taps) continue;
#pragma unroll
    for (int i = 0; i < kMade; ++i) sum[i] += seen[i + s] * w[s];
  }
  if (what.backward && what.window.mode != PaddingMode::zeros)
#pragma unroll 1
    for (int i = 0; i < kMade && first_w + i < made_size; ++i) {
      A further = 0;
      further_terms<true>(what.window, {0, 0, first_w + i}, [&](int at, int tap) {
        further += to_accumulate(line[at]) * to_accumulate(weight[channel * taps + tap]);
      });
#pragma unroll
      for (int j = 0; j < kMade; ++j)
        if (i == j) sum[j] += further;  // registers have no address
    }

  const A start = bias != nullptr ? to_accumulate(bias[channel]) : A(0);
  T* to = out + plane * made_size + first_w;
#pragma unroll
  for (int i = 0; i < kMade; ++i) sum[i] += start;
#pragma unroll
  for (int i = 0; i < kMade; i += kVector)
    if (first_w + i < made_size) store_pack<kVector>(to + i, sum + i);
}

template <typename T>
void run(const char* name, const ConvArguments& args, bool backward) {
  const ConvGeometry& g = args.geometry;
  Task task = {Depthwise(g, backward), 0, 0, 0, Divide(ceil_div(backward ? g.input[2] : g.output[2], kMade<T>))};
  const int start = task.what.w.start, vector = kPack<T>;
  task.shift = (start % vector + vector) % vector, task.first = start - task.shift;
  const T* read = static_cast<const T*>(backward ? args.grad_output : args.input);
  const T *weight = static_cast<const T*>(args.weight), *bias = backward ? nullptr : static_cast<const T*>(args.bias);
  const int64_t larger = task.what.made.image > task.what.read.image ? task.what.made.image : task.what.read.image;
  const int64_t most = images_at_once(g.batch, larger);
  for (int64_t n = 0; n < g.batch; n += most) {
    task.planes = int((g.batch - n < most ? g.batch - n : most) * g.in_channels);
    const int64_t strips = int64_t(task.planes) * task.by_strips.divisor;
    launch(name, causal_kernel<T>, grid_of(ceil_div(strips, kThreads)), kThreads, 0, args.stream, task,
           read + n * task.what.read.image, weight, bias, static_cast<T*>(args.output) + n * task.what.made.image);
  }
}

}  // namespace

bool conv_direct_causal_suits(const ConvArguments& args, Direction direction) {
  const ConvGeometry& g = args.geometry;
  const bool backward = direction == Direction::backward_input;
  if (g.layout != Layout::contiguous || g.out_channels != g.groups || g.in_channels != g.groups) return false;
  for (int axis : {kDepth, kHeight})
    if (g.input[axis] != 1 || g.output[axis] != 1 || g.kernel[axis] != 1 || g.pad_before[axis] != 0) return false;
  if (g.stride[2] != 1 || g.dilation[2] != 1 || g.kernel[2] > kMaxTaps) return false;
  return dispatch_floating(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int64_t kVector = kPack<T>;
    return g.input[2] % kVector == 0 && g.output[2] % kVector == 0 &&
           packable(static_cast<const T*>(backward ? args.grad_output : args.input), kVector) &&
           packable(static_cast<const T*>(args.output), kVector);
  });
}

void conv_direct_causal(const char* name, const ConvArguments& args, Direction direction) {
  dispatch_floating(args.dtype, [&](auto type) {
    run<typename decltype(type)::type>(name, args, direction == Direction::backward_input);
  });
}

}  // namespace convext::cuda
