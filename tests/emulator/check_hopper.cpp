// Runs what the threads of implicit_gemm's Hopper kernels do (csrc/cuda/conv_implicit_gemm_hopper_loops.cuh) on the
// CPU, on an engine that does what the PTX ISA says of the instructions, and compares with the naive CPU algorithms.
//
//   check_hopper < problems      lines as check.cpp reads them
//
// The engine is written from the documents alone and shares no formula with the kernels: im2col and tiled copies
// element by element, with the 128-byte swizzle; operands read back through the bits of matrix descriptors; a thread's
// numbers of a wgmma result. It also demands what the hardware does: alignment, ranges of corners, offsets and strides,
// corners within the box, stages filled exactly, released once and in order. Every shape of tile is run for every
// problem.
//
// Prints what check.cpp prints; problems that the kernels do not take count as refused, by direction. CONVEXT_HALF_ONLY
// halves the time to compile.
#define CONVEXT_HOPPER_MULTIPROCESSORS 3
#undef CONVEXT_MAX_ELEMENTS
#include "../../csrc/cuda/conv_implicit_gemm_hopper_loops.cuh"
#include "checking.h"

namespace {

using cuda::Im2colMap;
using cuda::Place4;
using cuda::TiledMap;

void demand(bool held, const char* what) {
  if (held) return;
  ++mismatches;
  std::cout << "not as the hardware demands: " << what << ": " << running << "\n";
  std::exit(report());
}

// "Swizzling Modes": within 1024 bytes, 16-byte unit u of 128-byte row r is stored as unit u ^ r.
uint32_t swizzled(uint32_t address) {
  const uint32_t row = address / 128 % 8, unit = address / 16 % 8;
  return address / 128 * 128 + (unit ^ row) * 16 + address % 16;
}

constexpr uint32_t kRing = 3 * 1024;  // where the ring of stages lies

template <typename Tiles>
struct Machine {
  Im2colMap x;
  TiledMap other;
  const uint16_t *x_data, *other_data;
  struct Step {
    uint32_t address;
    std::vector<uint16_t> data;
    std::vector<char> filled;
    std::map<std::pair<uint64_t, bool>, std::vector<float>> operands;
  };
  std::vector<Step> steps;

  void begin(int stage) {
    expect_filled();
    Step step;
    step.address = kRing + stage * Tiles::kStageBytes;
    step.data.resize(Tiles::kStageBytes / 2), step.filled.resize(Tiles::kStageBytes / 2);
    steps.push_back(std::move(step));
  }
  void expect_filled() const {
    if (steps.empty()) return;
    for (char filled : steps.back().filled) demand(filled == 1, "each byte of a stage is filled once");
  }
  void put(uint32_t to, uint16_t value) {
    Step& step = steps.back();
    const uint32_t at = (swizzled(to) - step.address) / 2;
    demand(at < step.data.size(), "a copy stays within its stage");
    step.data[at] = value, ++step.filled[at];
  }
  uint32_t destination(int stage, int offset) const {
    const uint32_t to = kRing + stage * Tiles::kStageBytes + offset;
    demand(to % 1024 == 0, "swizzled tiles start at multiples of 1024 bytes");
    return to;
  }

  // "im2col mode".
  void copy_im2col(int stage, int offset, int rank, int channel, const Place4& at, const Place4& by) {
    uint32_t to = destination(stage, offset);
    demand(rank == x.rank, "the instruction has the map's dimensions");
    demand(x.channels * 2 == 128, "the box's rows are as wide as the swizzle");
    const int spatial = rank - 2, bits = rank == 3 ? 16 : rank == 4 ? 8 : 5;
    int64_t place[3] = {at.w, at.h, at.d}, n = at.n;
    const int64_t tap[3] = {by.w, by.h, by.d};
    int64_t lower[3], upper[3];
    for (int i = 0; i < spatial; ++i) {
      for (int corner : {x.lower[i], x.upper[i]})
        demand(corner >= -(1 << (bits - 1)) && corner < 1 << (bits - 1), "corners have 16, 8 or 5 bits");
      lower[i] = x.lower[i], upper[i] = int64_t(x.size[i + 1]) - 1 + x.upper[i];
      demand(lower[i] <= upper[i], "the box is not empty");
      demand(place[i] >= lower[i] && place[i] <= upper[i], "the first corner is within the box");
      demand(tap[i] >= 0 && tap[i] < 1 << bits, "offsets have 16, 8 or 5 bits");
      demand(x.stride[i + 1] >= 1 && x.stride[i + 1] <= 8, "strides are 1 to 8");
    }
    for (int i = spatial; i < 3; ++i)
      demand(place[i] == 0 && tap[i] == 0, "what the map does not have is not moved in");
    for (uint32_t pixel = 0; pixel < x.pixels; ++pixel) {
      for (uint32_t c = 0; c < x.channels; ++c, to += 2) {
        bool inside = channel + c < x.size[0] && n < int64_t(x.size[rank - 1]);
        int64_t from = (channel + c) * 2 + n * int64_t(x.stride_bytes[rank - 1]);
        for (int i = 0; i < spatial; ++i) {
          const int64_t seen = place[i] + tap[i];
          inside = inside && seen >= 0 && seen < int64_t(x.size[i + 1]);
          from += seen * int64_t(x.stride_bytes[i + 1]);
        }
        put(to, inside ? x_data[from / 2] : 0);
      }
      int i = 0;
      for (; i < spatial; ++i) {
        place[i] += x.stride[i + 1];
        if (place[i] <= upper[i]) break;
        place[i] = lower[i];
      }
      if (i == spatial) ++n;
    }
  }

  // "Tiled mode".
  void copy_tile(int stage, int offset, std::initializer_list<int> at) {
    uint32_t to = destination(stage, offset);
    demand(int(at.size()) == other.rank, "the instruction has the map's dimensions");
    demand(other.box[0] * 2 == 128, "the box's rows are as wide as the swizzle");
    int64_t count = 1;
    for (int i = 0; i < other.rank; ++i) {
      demand(other.box[i] <= 256, "boxes have up to 256 of each dimension");
      demand(i == 0 || other.stride_bytes[i] % 16 == 0, "strides are multiples of 16 bytes");
      count *= other.box[i];
    }
    for (int64_t e = 0; e < count; ++e, to += 2) {
      int64_t rest = e, from = 0;
      bool inside = true;
      for (int i = 0; i < other.rank; ++i) {
        const int64_t coordinate = at.begin()[i] + rest % other.box[i];
        rest /= other.box[i];
        inside = inside && coordinate >= 0 && coordinate < int64_t(other.size[i]);
        from += coordinate * int64_t(other.stride_bytes[i]);
      }
      put(to, inside ? other_data[from / 2] : 0);
    }
  }

  // "Matrix-Descriptor Format" and "Canonical Layouts": an operand of `rows` m or n and 16 k, as floats.
  template <typename T>
  const std::vector<float>& operand(size_t index, uint64_t descriptor, bool mn_major, int rows) {
    Step& step = steps[index];
    std::vector<float>& matrix = step.operands[{descriptor, mn_major}];
    if (!matrix.empty()) return matrix;
    const auto field = [&](int low, int high) {
      return uint32_t(descriptor >> low & ((uint64_t(1) << (high - low + 1)) - 1));
    };
    const uint32_t start = field(0, 13) << 4, leading = field(16, 29) << 4, stride = field(32, 45) << 4;
    demand(field(49, 51) == 0 && field(62, 63) == 1, "base offset 0, 128-byte swizzle");
    demand(field(14, 15) == 0 && field(30, 31) == 0 && field(46, 48) == 0 && field(52, 61) == 0, "other bits are 0");
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < 16; ++k) {
        const uint32_t at = mn_major ? row / 64 * leading + row % 64 * 2 + k / 8 * stride + k % 8 * 128
                                     : row / 8 * stride + row % 8 * 128 + k * 2;
        const uint32_t from = (swizzled(start + at) - step.address) / 2;
        demand(from < step.data.size(), "operands lie within the stage");
        T value;
        std::memcpy(&value, &step.data[from], 2);
        matrix.push_back(cuda::to_accumulate(value));
      }
    return matrix;
  }
};

template <typename Tiles>
struct Engine {
  Machine<Tiles>& machine;
  mutable size_t taken = 0, released = 0;

  template <typename Ring>
  void acquire(const Ring& ring) const {
    machine.begin(ring.stage);
  }
  void copy_im2col(int stage, int offset, int rank, int channel, const Place4& at, const Place4& by) const {
    machine.copy_im2col(stage, offset, rank, channel, at, by);
  }
  template <typename... Coordinates>
  void copy_tile(int stage, int offset, Coordinates... at) const {
    machine.copy_tile(stage, offset, {at...});
  }
  template <typename Ring>
  uint32_t wait(const Ring& ring) const {
    demand(taken < machine.steps.size(), "what is waited for is copied");
    demand(ring.phase == taken / Tiles::kStages % 2, "phases alternate");
    const uint32_t address = kRing + ring.stage * Tiles::kStageBytes;
    demand(machine.steps[taken++].address == address, "both sides go through the ring alike");
    return address;
  }
  void begin() const {}
  template <typename T, bool kMajorA, bool kMajorB, int kSums>
  void multiply(float (&sums)[kSums], uint64_t a, uint64_t b, bool add) const {
    constexpr int kColumns = kSums * 2;
    const std::vector<float>&m = machine.template operand<T>(taken - 1, a, kMajorA, 64),
          &n = machine.template operand<T>(taken - 1, b, kMajorB, kColumns);
    // "Register Fragments": the row and column of a thread's number.
    const int warp = int(threadIdx.x) / 32 % 4, lane = int(threadIdx.x) % 32;
    for (int i = 0; i < kSums; ++i) {
      const float* row = &m[(warp * 16 + lane / 4 + (i & 2 ? 8 : 0)) * 16];
      const float* column = &n[(i / 4 * 8 + lane % 4 * 2 + i % 2) * 16];
      float sum = add ? sums[i] : 0;
      for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
      sums[i] = sum;
    }
  }
  template <int kOutstanding>
  void wait_for_products() const {}
  template <int kOutstanding>
  void finish() const {}
  void release(int stage) const {
    demand(released < taken && machine.steps[released++].address == kRing + stage * Tiles::kStageBytes,
           "stages are released in order");
  }
  uint32_t exchange(uint32_t word, int bit) const {
    static uint32_t words[cuda::kConsumers * cuda::kWarpgroup];
    words[threadIdx.x] = word;
    __syncthreads();
    const uint32_t other = words[threadIdx.x ^ bit];
    __syncthreads();
    return other;
  }
};

// The kernels: the first thread copies beforehand, as the stages are as many as there are steps.
template <typename T, typename Tiles>
void pixels_kernel(Machine<Tiles>* machine, cuda::PixelPlan plan, const T* bias, T* y) {
  const Engine<Tiles> engine{*machine};
  if (threadIdx.x == 0) {
    machine->steps.clear();
    cuda::copy_pixel_tiles<Tiles>(engine, plan);
    machine->expect_filled();
  }
  __syncthreads();
  cuda::multiply_pixel_tiles<T, Tiles>(engine, int(threadIdx.x) / cuda::kWarpgroup, plan, bias, y);
  demand(engine.released == machine->steps.size() && engine.taken == engine.released, "all stages are released");
}
template <typename T, typename Tiles>
void weight_kernel(Machine<Tiles>* machine, cuda::WeightPlan plan, float* parts) {
  const Engine<Tiles> engine{*machine};
  if (threadIdx.x == 0) {
    machine->steps.clear();
    cuda::copy_weight_tile<Tiles>(engine, plan);
    machine->expect_filled();
  }
  __syncthreads();
  cuda::multiply_weight_tile<T, Tiles>(engine, int(threadIdx.x) / cuda::kWarpgroup, plan, parts);
  demand(engine.taken == machine->steps.size(), "all steps are multiplied");
}

// A stage of one box.
struct Box {
  static constexpr int kStageBytes = cuda::kChunk * cuda::kRowBytes, kStages = 1;
};

constexpr int kThreads = cuda::kConsumers * cuda::kWarpgroup;

template <typename T>
const uint16_t* bits(const T* data) {
  return reinterpret_cast<const uint16_t*>(data);
}

// A problem's tensors, in the kernels' type T and the references' R, which have the same bits.
template <typename T, typename R>
struct Problem {
  ConvGeometry g;
  DType dtype;
  ConvArguments args;
  Buffer x, w, bias, dy;

  Problem(const ConvGeometry& geometry, DType type)
      : g(geometry),
        dtype(type),
        x(g.input_elements() * 2, 16),
        w(g.weight_elements() * 2, 16),
        bias(g.out_channels * 2, 2),
        dy(g.output_elements() * 2, 16) {
    std::mt19937 random(7);
    for (Buffer* buffer : {&x, &w, &bias, &dy}) fill_integers<R>(*buffer, random, false);
    args.geometry = g, args.dtype = dtype;
    args.input = x.data(), args.weight = w.data(), args.grad_output = dy.data();
    args.bias = g.batch % 2 == 0 ? nullptr : bias.data();
  }

  template <typename Tiles>
  void pixels(const ConvGeometry& f, Direction direction, const Buffer& input, const T* weight, Buffer& expected) {
    Buffer got(expected.size(), 16);
    got.fill(0xff);
    Machine<Tiles> machine;
    machine.x = cuda::im2col_map(f, f.batch, cuda::kChunk, Tiles::kPixels);
    machine.other = cuda::tiled_map({f.group_inputs(), f.taps(), f.group_outputs(), f.groups},
                                    {cuda::kChunk, 1, Tiles::kOutputs, 1});
    machine.x_data = bits(static_cast<const T*>(const_cast<Buffer&>(input).data()));
    machine.other_data = bits(weight);
    const cuda::PixelPlan plan(f, f.batch, Tiles::kPixels, Tiles::kOutputs);
    const T* b = direction == Direction::forward ? static_cast<const T*>(args.bias) : nullptr;
    emulator::launch(pixels_kernel<T, Tiles>, dim3(unsigned(std::min(plan.tiles, 2))), dim3(kThreads), 0, nullptr,
                     &machine, plan, b, static_cast<T*>(got.data()));
    expect_intact(got, "the output");
    compare<R>(got, expected);
  }

  void check_pixels(Direction direction) {
    const bool forward = direction == Direction::forward;
    const ConvGeometry f = forward ? g : cuda::input_gradient_as_forward(g);
    Buffer expected(2 * (forward ? g.output_elements() : g.input_elements()), 16), reordered(w.size(), 64);
    args.output = expected.data();
    cpu::conv_naive.kernel(direction)(args);
    const cuda::WeightOrder order(g, direction);
    const int elements = order.rows * order.depth;
    reordered.fill(0xff);
    emulator::launch(cuda::reorder_weight_kernel<T>, dim3(unsigned(ceil_div(elements, cuda::kThreads))),
                     dim3(cuda::kThreads), 0, nullptr, static_cast<const T*>(w.data()), order,
                     cuda::Divide(order.depth), static_cast<T*>(reordered.data()));
    expect_intact(reordered, "the workspace");
    if (forward && g.taps() == 1)
      demand(std::memcmp(reordered.data(), w.data(), w.size()) == 0, "1x1 weights are in order already");
    const T* weight = static_cast<const T*>(reordered.data());
    const Buffer& input = forward ? x : dy;
    pixels<cuda::PixelTiles<128, 64>>(f, direction, input, weight, expected);
    pixels<cuda::PixelTiles<128, 128>>(f, direction, input, weight, expected);
    pixels<cuda::PixelTiles<256, 128>>(f, direction, input, weight, expected);
  }

  template <int kRows, int kBoxes>
  void weights(Buffer& expected) {
    using Tiles = cuda::WeightTiles<kRows, kBoxes>;
    const cuda::WeightPlan plan(g, kRows, kBoxes);
    Machine<Tiles> machine;
    machine.x = cuda::im2col_map(g, g.batch, cuda::kChunk, cuda::kChunk);
    machine.other =
        cuda::tiled_map({g.group_outputs(), g.groups, g.batch * g.output_places()}, {cuda::kChunk, 1, cuda::kChunk});
    machine.x_data = bits(static_cast<const T*>(x.data()));
    machine.other_data = bits(static_cast<const T*>(dy.data()));
    Buffer parts(plan.parts * g.weight_elements() * 4, 64), got(expected.size(), 2);
    parts.fill(0xff), got.fill(0xff);
    emulator::launch(weight_kernel<T, Tiles>, dim3(unsigned(plan.tiles() * plan.parts)), dim3(kThreads), 0, nullptr,
                     &machine, plan, static_cast<float*>(parts.data()));
    expect_intact(parts, "the workspace");
    const cuda::WeightOrder order(g, Direction::forward);
    emulator::launch(cuda::join_weight_parts_kernel<T>, dim3(unsigned(ceil_div(plan.elements, cuda::kThreads))),
                     dim3(cuda::kThreads), 0, nullptr, static_cast<const float*>(parts.data()), plan.elements,
                     plan.parts, order, cuda::Divide(order.depth), cuda::Divide(order.taps),
                     static_cast<T*>(got.data()));
    expect_intact(got, "the output");
    compare<R>(got, expected);
  }

  void check_weights() {
    Buffer expected(w.size(), 2);
    args.output = expected.data();
    cpu::conv_naive.backward_weight(args);
    weights<1, 2>(expected), weights<1, 4>(expected), weights<2, 2>(expected), weights<2, 4>(expected);
  }

  // Boxes of 64 pixels, wherever they start, against the definition of a window.
  void check_boxes(const ConvGeometry& f, const Buffer& input) {
    Machine<Box> machine;
    machine.x = cuda::im2col_map(f, f.batch, cuda::kChunk, cuda::kChunk);
    const uint16_t* data = machine.x_data = bits(static_cast<const T*>(const_cast<Buffer&>(input).data()));
    const cuda::Corners corners(f);
    const int64_t places = f.output_places(), pixels = f.batch * places;
    int64_t wrong = 0;
    for (int64_t first = 0; first < pixels; first += 13)
      for (int64_t tap = 0; tap < f.taps(); ++tap) {
        const int64_t channel = first % 2 * cuda::kChunk % f.in_channels;
        machine.steps.clear();
        machine.begin(0);
        machine.copy_im2col(0, 0, corners.rank, int(channel), corners.corner(int(first)), corners.offset(int(tap)));
        for (int64_t e = 0; e < int64_t(cuda::kChunk) * cuda::kChunk; ++e) {
          const int64_t pixel = first + e / cuda::kChunk, c = channel + e % cuda::kChunk, n = pixel / places;
          const int64_t at[3] = {pixel % places / (f.output[1] * f.output[2]), pixel / f.output[2] % f.output[1],
                                 pixel % f.output[2]};
          const int64_t t[3] = {tap / (f.kernel[1] * f.kernel[2]), tap / f.kernel[2] % f.kernel[1], tap % f.kernel[2]};
          int64_t from = 0;
          bool inside = pixel < pixels && c < f.in_channels;
          for (int i = 0; i < kMaxSpatial; ++i) {
            const int64_t seen = f.source(i, at[i], t[i]);
            inside = inside && seen >= 0, from = from * f.input[i] + seen;
          }
          const uint16_t expected = inside ? data[f.input_offset(n, c, from)] : 0;
          if (machine.steps[0].data[(swizzled(kRing + uint32_t(e) * 2) - kRing) / 2] != expected) ++wrong;
        }
      }
    ++comparisons;
    if (wrong == 0) return;
    ++mismatches;
    std::cout << "boxes are not the im2col matrix: " << running << ": " << wrong << " values\n";
  }
};

template <typename T, typename R>
void check(const ConvGeometry& g, DType dtype, const std::string& line) {
  Problem<T, R> problem(g, dtype);
  for (Direction direction : {Direction::forward, Direction::backward_input, Direction::backward_weight}) {
    running = "direction " + std::to_string(int(direction)) + ": " + line;
    if (!cuda::hopper_fits(g, dtype, direction)) {
      ++refused["direction" + std::to_string(int(direction))];
      continue;
    }
    if (direction == Direction::backward_weight) {
      problem.check_weights();
      continue;
    }
    const bool forward = direction == Direction::forward;
    problem.check_boxes(forward ? g : cuda::input_gradient_as_forward(g), forward ? problem.x : problem.dy);
    problem.check_pixels(direction);
  }
}

}  // namespace

int main() {
  catch_faults();
  std::string line;
  while (std::getline(std::cin, line)) {
    Reader reader{std::istringstream(line)};
    std::string kind;
    reader.line >> kind;
    const DType dtype = static_cast<DType>(reader.next());
    ConvGeometry g;
    g.layout = static_cast<Layout>(reader.next());
    g.padding_mode = static_cast<PaddingMode>(reader.next());
    g.flip_kernel = reader.next() != 0;
    g.batch = reader.next(), g.in_channels = reader.next(), g.out_channels = reader.next(), g.groups = reader.next();
    for (int64_t* triple : {g.input, g.kernel, g.stride, g.dilation, g.pad_before, g.pad_after}) reader.next3(triple);
    g.spatial = 3;
    for (int i = 0; i < kMaxSpatial; ++i)
      g.output[i] =
          conv_output_size(g.input[i], g.kernel[i], g.stride[i], g.dilation[i], g.pad_before[i], g.pad_after[i]);
#if !defined(CONVEXT_HALF_ONLY)
    if (dtype == DType::bfloat16) {
      check<cuda::BFloat16, cpu::BFloat16>(g, dtype, line);
      continue;
    }
#endif
    check<cuda::Half, cpu::Half>(g, dtype, line);
  }
  return report();
}
