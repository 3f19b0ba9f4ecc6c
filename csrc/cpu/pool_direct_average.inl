// Average pooling and its gradient.

#include "pool_direct.inl"
#include "pool_direct_joins.inl"
#include "pool_direct_rows.inl"

namespace convext::cpu::CONVEXT_ISA {
namespace {

// A part of a contiguous plane: for each output row the input rows of its windows are summed into one packed row, and
// that along its windows.
template <typename T>
void avg_forward_columns(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const PoolGeometry& g = args.geometry;
  const int64_t plane = part.image * g.channels + part.channels.first;
  const T* x = static_cast<const T*>(args.input) + plane * g.input_places();
  T* y = static_cast<T*>(args.output) + plane * g.output_places();
  const int64_t taps = g.kernel[2], depth_step = g.input[1] * g.input[2];
  Columns columns;
  A row[kPoolRow + kPoolSlack], divisor[kPoolColumns + kPoolSlack];

  for (int64_t chunk = 0; chunk < g.output[2]; chunk += columns.count) {
    set_columns<A>(g, chunk, &columns);
    set_column_divisors(g, chunk, columns.count, divisor);
    const int64_t n = least(columns.count, kL);
    for (int64_t o = part.os.first; o < part.os.last; ++o)
      for (int64_t p = part.ps.first; p < part.ps.last; ++p) {
        const Range ts = taps_inside(g, 0, o), rs = taps_inside(g, 1, p);
        const Rows<T> rows = {x + g.place(0, o, ts.first) * depth_step + g.place(1, p, rs.first) * g.input[2],
                              ts.last - ts.first, g.dilation[0] * depth_step, rs.last - rs.first,
                              g.dilation[1] * g.input[2]};
        pack_row<T, true>(rows, g.input[2], columns, 0, row);
        const int64_t seen = greatest(g.place(1, p, g.kernel[1] - 1) + 1, int64_t(0));
        prefetch_rows(rows.start + (seen - g.place(1, p, rs.first)) * g.input[2],
                      least(g.stride[1], g.input[1] - seen) * g.input[2]);
        const Vec<A> factor = splat<A>(A(row_divisor(g, o, p)));
        T* out = y + (o * g.output[1] + p) * g.output[2] + chunk;
        for (int64_t j = 0; j < columns.count; j += kL) {
          const int64_t i = least(j, columns.count - n);
          Vec<A> sum = load(row + i);
          for (int64_t s = 1; s < taps; ++s) sum += load(row + columns.offset[s] + i);
          store_first(out + i, sum / (factor * load(divisor + i)), n);
        }
      }
  }
}

// The padded row of a gradient. With windows that overlap, column sums of dy / divisor lie where the windows start,
// zeros between, and an input place sums over `taps` of them; where windows do not overlap each covers the `run` places
// of its window and an input place takes one. `reach` places are needed in front.
struct Spread {
  int64_t taps, run, reach;
};

// One contiguous plane: for each input row the rows of dy that see it are divided and summed into one, spread to the
// places of the input, and summed along its windows.
template <typename T>
void avg_backward_plane(const PoolArguments& args, int64_t plane) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>;
  const PoolGeometry& g = args.geometry;
  const T* dy = static_cast<const T*>(args.grad_output) + plane * g.output_places();
  T* dx = static_cast<T*>(args.output) + plane * g.input_places();
  const int64_t taps = g.kernel[2], stride = g.stride[2];
  const bool disjoint = g.dilation[2] == 1 && taps <= stride;
  const Spread spread = disjoint ? Spread{1, taps, 0} : Spread{taps, 1, (taps - 1) * g.dilation[2]};
  A buffer[kPoolSlack + kPoolRow + kPoolSlack], divisor[kPoolRow + kPoolSlack];
  A* row = buffer + kPoolSlack;
  const int64_t chunk = least(g.input[2], kPoolRow - spread.reach);

  for (int64_t w = 0; w < g.input[2]; w += chunk) {
    const int64_t count = least(chunk, g.input[2] - w), length = spread.reach + count, n = least(count, kL);
    const int64_t origin = w + g.pad_before[2] - spread.reach;  // the padded place of row[0]
    const Range qs = outputs_over(g, 2, w, w + count);
    set_column_divisors(g, qs.first, greatest(qs.last - qs.first, int64_t(0)), divisor);
    for (int64_t i = 0; i < kPoolSlack + length + kPoolSlack; ++i) buffer[i] = 0;

    for (int64_t d = 0; d < g.input[0]; ++d)
      for (int64_t h = 0; h < g.input[1]; ++h) {
        const Range os = outputs_over(g, 0, d, d + 1), ps = outputs_over(g, 1, h, h + 1);
        for (int64_t q = qs.first; q < qs.last; q += kL) {
          const int64_t lanes = least(kL, qs.last - q), at = q * stride - origin;
          Vec<A> sum = {};
          for (int64_t o = os.first; o < os.last; ++o) {
            if (tap_at(g, 0, o, d) < 0) continue;
            for (int64_t p = ps.first; p < ps.last; ++p) {
              if (tap_at(g, 1, p, h) < 0) continue;
              sum += load_first(dy + (o * g.output[1] + p) * g.output[2] + q, lanes) /
                     (splat<A>(A(row_divisor(g, o, p))) * load(divisor + (q - qs.first)));
            }
          }
          if (stride == 1) {
            store(row + at, sum);
          } else if (stride == 2) {
            const Vec<A> next = spread.run == 2 ? sum : Vec<A>{};
            store(row + at, interleave_low<A>(sum, next));
            store(row + at + kL, interleave_high<A>(sum, next));
          } else {
            A lane[kL];
            store(lane, sum);
            for (int64_t k = 0; k < lanes; ++k) {
              const int64_t first = at + k * stride;
              for (int64_t i = greatest(first, int64_t(0)); i < least(first + spread.run, length); ++i)
                row[i] = lane[k];
            }
          }
        }
        T* out = dx + (d * g.input[1] + h) * g.input[2] + w;
        for (int64_t j = 0; j < count; j += kL) {
          const int64_t i = least(j, count - n);
          const A* from = row + spread.reach + i;
          Vec<A> sum = load(from);
          for (int64_t s = 1; s < spread.taps; ++s) sum += load(from - s * g.dilation[2]);
          store_first(out + i, sum, n);
        }
      }
  }
}

// kVectors vectors of n channels of one channels_last output.
template <typename T, int kVectors>
CONVEXT_INLINE void avg_window(const PoolGeometry& g, const T* x, Range ts, Range rs, Range ss, const int64_t* start,
                               const Divisor<Accumulate<T>>& divisor, int64_t n, T* y) {
  using A = Accumulate<T>;
  constexpr int kL = kLanes<A>;
  Vec<A> sum[kVectors] = {};
  for (int64_t t = ts.first; t < ts.last; ++t)
    for (int64_t r = rs.first; r < rs.last; ++r)
      for (int64_t s = ss.first; s < ss.last; ++s) {
        const int64_t d = start[0] + t * g.dilation[0], h = start[1] + r * g.dilation[1],
                      w = start[2] + s * g.dilation[2];
        const T* at = x + ((d * g.input[1] + h) * g.input[2] + w) * g.channels;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[v] += load_first(at + v * kL, n);
      }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store_first(y + v * kL, divisor.divide(sum[v], 0), n);
}

// Rows of channels_last outputs.
template <typename T>
void avg_forward_channels(const PoolArguments& args, const Part& part) {
  using A = Accumulate<T>;
  constexpr int64_t kL = kLanes<A>, kBlock = 4 * kL;
  const PoolGeometry& g = args.geometry;
  const T* x = static_cast<const T*>(args.input) + part.image * g.input_places() * g.channels;
  for (int64_t o = part.os.first; o < part.os.last; ++o)
    for (int64_t p = part.ps.first; p < part.ps.last; ++p)
      for (int64_t q = 0; q < g.output[2]; ++q) {
        const Range ts = taps_inside(g, 0, o), rs = taps_inside(g, 1, p), ss = taps_inside(g, 2, q);
        const int64_t row = (part.image * g.output[0] + o) * g.output[1] + p;
        const int64_t start[] = {g.place(0, o, 0), g.place(1, p, 0), g.place(2, q, 0)};
        const int64_t columns = g.divisor_override != 0 ? 1 : counted_taps(g, 2, q);
        const Divisor<A> divisor = divisor_of<A>(row_divisor(g, o, p) * columns, nullptr);
        T* y = static_cast<T*>(args.output) + (row * g.output[2] + q) * g.channels;
        int64_t c = 0;
        for (; c + kBlock <= g.channels; c += kBlock) avg_window<T, 4>(g, x + c, ts, rs, ss, start, divisor, kL, y + c);
        for (; c < g.channels; c += kL)
          avg_window<T, 1>(g, x + c, ts, rs, ss, start, divisor, least(kL, g.channels - c), y + c);
      }
}

template <typename T>
void avg_forward(const PoolArguments& args, const Part& part) {
  if (args.geometry.layout == Layout::channels_last)
    avg_forward_channels<T>(args, part);
  else if (rows_fit(args.geometry) > 0)
    pool_rows<Sum, T, false>(args, part);
  else
    avg_forward_columns<T>(args, part);
}

// What an input place of the average takes from an output that sees it.
template <typename T>
struct AverageShare {
  const T* dy;
  Vec<Accumulate<T>> divisor;

  CONVEXT_INLINE void turn_to(const PoolGeometry& g, int64_t o, int64_t p, int64_t q, int64_t) {
    const int64_t columns = g.divisor_override != 0 ? 1 : counted_taps(g, 2, q);
    divisor = splat<Accumulate<T>>(Accumulate<T>(row_divisor(g, o, p) * columns));
  }
  CONVEXT_INLINE Vec<Accumulate<T>> take(int64_t at, int64_t n) const { return load_first(dy + at, n) / divisor; }
};

// One row of channels_last input places: task = (n, d, h).
template <typename T>
void avg_backward_row(const PoolArguments& args, int64_t task) {
  gather_row(args, AverageShare<T>{static_cast<const T*>(args.grad_output), {}}, task, static_cast<T*>(args.output));
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
