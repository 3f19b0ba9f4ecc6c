// Packing pixels where they lie side by side (contiguous), for unfold.h.
//
// A pointwise convolution's panels are copied from the planes, a channel's whole block at a time. Else a channel goes
// through a few lines that stay in L1. A line is an input row, padded as the padding mode says, widened, and split
// into the stride's phases, so that the pixels of an output row see side by side elements of it through any tap:
//
//   pixel q sees, through tap s,  line[phase s * dilation % stride][q + s * dilation / stride]
//
// Each input element is looked at once, borders included, and all the taps are copies of vectors. A panel that crosses
// the ends of output rows takes a few vectors more: those that run over a row's end are overwritten by the next one,
// and the slack between panels takes the last. Rows that see only padding share a line of zeros.
namespace convext::cpu::CONVEXT_ISA {
namespace {

// One vector of a panel: from pixel q of one of the block's output rows on; row < 0: zeros, past the last pixel.
struct Copy {
  int64_t lane, row, q;
};

// An input row in the lines: which one (of d and h together), and the range of its elements that is needed.
struct Line {
  int64_t row, begin, end, base;
};

// Element i of a phase shows the padded place i * stride + origin: an input place for `inner` <= i < `outer`.
struct StridePhase {
  int64_t origin, inner, outer;
};

template <typename A>
struct Lines {
  LineShape shape;
  A* line;             // [slot][phase][element - base]; slot 0: zeros
  Line* slot;          // of each slot
  StridePhase* phase;  // of each phase
  int64_t* start;      // [output row of the block][t r]: offset of the line's element 0 of phase 0
  int64_t* shift;      // [s]: what a tap adds
  Copy* copy;          // of all panels, in the order of lanes
  int64_t* copies;     // [panel]: how many
  int64_t slots, panels;
};

template <typename A>
CONVEXT_INLINE Lines<A> take_lines(const ConvGeometry& g, int64_t pixels, int64_t width, char* scratch) {
  Lines<A> lines;
  const LineShape s = lines.shape = line_shape(g, pixels, width);
  lines.start = reinterpret_cast<int64_t*>(scratch);
  lines.shift = lines.start + s.rows * s.row_taps;
  lines.copies = lines.shift + g.kernel[2];
  lines.phase = reinterpret_cast<StridePhase*>(lines.copies + s.panels);
  lines.copy = reinterpret_cast<Copy*>(lines.phase + s.phases);
  lines.slot = reinterpret_cast<Line*>(lines.copy + s.copies);
  lines.line = reinterpret_cast<A*>(lines.slot + s.rows * s.row_taps + 1);
  lines.slots = 1;
  lines.panels = ceil_div(pixels, width);
  return lines;
}

// Which lines the block needs, and where each of its output rows finds them.
template <typename A>
void plan_lines(const ConvGeometry& g, Span pixels, int64_t width, Lines<A>* lines) {
  constexpr int64_t lanes = kLanes<A>;
  const LineShape& shape = lines->shape;
  const int64_t taps = shape.row_taps, pitch = shape.pitch, slot = shape.phases * pitch;
  const int64_t last_shift = (g.kernel[2] - 1) * g.dilation[2] / g.stride[2];
  for (int64_t s = 0; s < g.kernel[2]; ++s) {
    const int64_t at = (g.flip_kernel ? g.kernel[2] - 1 - s : s) * g.dilation[2];
    lines->shift[s] = at % g.stride[2] * pitch + at / g.stride[2];
  }
  for (int64_t f = 0; f < shape.phases; ++f) {
    const int64_t origin = f - g.pad_before[2], end = g.input[2] - origin;
    lines->phase[f] = {origin, origin < 0 ? ceil_div(-origin, g.stride[2]) : 0,
                       end > 0 ? ceil_div(end, g.stride[2]) : 0};
  }
  for (int64_t i = 0; i < lines->panels; ++i) lines->copies[i] = 0;
  Copy* copy = lines->copy;
  // Of two output rows above each other, the lower one sees the upper one's lines this many taps earlier.
  const int64_t shared = g.stride[1] % g.dilation[1] == 0 ? g.stride[1] / g.dilation[1] : g.kernel[1];
  OutputPlace out = output_place(g, pixels.begin);
  for (int64_t m = 0, row = 0; m < pixels.size(); ++row) {
    const int64_t count = least(g.output[2] - out.q, pixels.size() - m);
    for (int64_t i = 0, size; i < count; i += size) {  // a vector ends where its panel does
      const int64_t lane = (m + i) % width;
      size = least(least(count - i, width - lane), lanes);
      *copy++ = {lane, row, out.q + i};
      ++lines->copies[(m + i) / width];
    }
    const int64_t begin = out.q, end = out.q + count + last_shift, base = shape.whole ? 0 : begin;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t place = g.flip_kernel ? taps - 1 - tap : tap, t = place / g.kernel[1], r = place % g.kernel[1];
      int64_t* start = lines->start + row * taps + tap;
      const int64_t d = g.source(0, out.o, t), h = g.source(1, out.p, r);
      if (d < 0 || h < 0) {
        *start = -base;
        continue;
      }
      if (shape.whole && row > 0 && out.p > 0 && r + shared < g.kernel[1]) {
        const int64_t upper = lines->start[(row - 1) * taps + (g.flip_kernel ? tap - shared : tap + shared)];
        Line& line = lines->slot[upper / slot];
        line.begin = least(line.begin, begin);
        line.end = greatest(line.end, end);
        *start = upper;
        continue;
      }
      lines->slot[lines->slots] = {d * g.input[1] + h, begin, end, base};
      *start = lines->slots++ * slot - base;
    }
    m += count;
    out.q = 0;
    if (++out.p == g.output[1]) {
      out.p = 0;
      ++out.o;
    }
  }
  for (int64_t m = pixels.size(); m < lines->panels * width; m += lanes) {
    *copy++ = {m % width, -1, 0};
    ++lines->copies[lines->panels - 1];
  }
  for (int64_t i = 0; i < slot; ++i) lines->line[i] = 0;
}

// A channel's places from one on, widened, in a tensor that ends at `end`; the channels.
template <typename T>
struct Plane {
  const T *x, *end;

  CONVEXT_INLINE Accumulate<T> element(int64_t i) const { return to_accumulate(x[i]); }
  CONVEXT_INLINE Vec<Accumulate<T>> vector(int64_t i) const { return load(x + i); }
  CONVEXT_INLINE Vec<Accumulate<T>> first(int64_t i, int lanes) const { return load_part(x + i, 0, lanes); }
  CONVEXT_INLINE bool has(int64_t i) const { return x + i <= end; }  // i elements
};
template <typename T>
struct Planes {
  using A = Accumulate<T>;
  const T *x, *end;
  int64_t apart;

  CONVEXT_INLINE Plane<T> plane(int64_t c, int64_t from) const { return {x + c * apart + from, end}; }
};

template <typename A, typename P>
CONVEXT_INLINE void fill_line(const ConvGeometry& g, const P& x, const Line& line, const StridePhase& phase, A* to) {
  constexpr int lanes = kLanes<A>;
  const int64_t width = g.input[2], stride = g.stride[2], origin = phase.origin;
  const int64_t begin = least(greatest(line.begin, phase.inner), line.end);
  const int64_t end = greatest(begin, least(line.end, phase.outer));
  const bool zeros = g.padding_mode == PaddingMode::zeros;
  for (int64_t i = line.begin; i < begin; ++i)
    to[i] = zeros ? 0 : x.element(padded_source(i * stride + origin, width, g.padding_mode));
  int64_t i = begin;
  if (stride == 1)
    for (; i < end && x.has(origin + i + lanes); i += lanes) store(to + i, x.vector(origin + i));
  else if (stride == 2)
    for (; i < end && x.has(origin + 2 * i + 2 * lanes); i += lanes)
      store(to + i, even_lanes<A>(x.vector(origin + 2 * i), x.vector(origin + 2 * i + lanes), LaneNumbers<A>()));
  for (; i < end; ++i) to[i] = x.element(origin + i * stride);
  for (i = end; i < line.end; ++i)
    to[i] = zeros ? 0 : x.element(padded_source(i * stride + origin, width, g.padding_mode));
}

// Taps of one channel into one panel, kCopies vectors each (0: `copies`).
template <int kCopies, typename A>
CONVEXT_INLINE void copy_taps(const ConvGeometry& g, const Lines<A>& lines, const Copy* copy, int64_t copies, Span taps,
                              int64_t width, A* to) {
  const int64_t per_row = lines.shape.row_taps, wide = g.kernel[2];
  int64_t first = 0, row = 0;
  if (taps.begin > 0) {
    row = taps.begin / wide;
    first = taps.begin % wide;
  }
  for (int64_t left = taps.size(); left > 0; ++row, first = 0) {
    const int64_t* shift = lines.shift + first;
    const int64_t count = least(wide - first, left);
    left -= count;
    if constexpr (kCopies == 0) {
      for (int64_t s = 0; s < count; ++s, to += width)
        for (int64_t i = 0; i < copies; ++i) {
          const A* from = lines.line;
          if (copy[i].row >= 0) from += lines.start[copy[i].row * per_row + row] + copy[i].q + shift[s];
          store(to + copy[i].lane, load(from));
        }
    } else {
      const A* from[kCopies];
#pragma GCC unroll 4
      for (int i = 0; i < kCopies; ++i) from[i] = lines.line + lines.start[copy[i].row * per_row + row] + copy[i].q;
      for (int64_t s = 0; s < count; ++s, to += width) {
        const int64_t at = shift[s];
#pragma GCC unroll 4
        for (int i = 0; i < kCopies; ++i) store(to + copy[i].lane, load(from[i] + at));
      }
    }
  }
}

template <typename P, typename A = typename P::A>
void unfold_pixels_contiguous(const ConvGeometry& g, const P& x, Span pixels, Span rows, A* to, int64_t width,
                              char* scratch) {
  const int64_t taps = g.taps(), stride = panel_stride(width, rows.size());
  Lines<A> lines = take_lines<A>(g, pixels.size(), width, scratch);
  plan_lines(g, pixels, width, &lines);
  const int64_t pitch = lines.shape.pitch, slot = lines.shape.phases * pitch;
  const bool whole = pixels.size() % width == 0;
  for (int64_t row = rows.begin, next; row < rows.end; row = next) {
    const int64_t c = row / taps;
    next = least((c + 1) * taps, rows.end);
    const Span some = {row - c * taps, next - c * taps};
    for (int64_t i = 1; i < lines.slots; ++i) {
      const Line line = lines.slot[i];
      for (int64_t f = 0; f < lines.shape.phases; ++f)
        fill_line(g, x.plane(c, line.row * g.input[2]), line, lines.phase[f],
                  lines.line + i * slot + f * pitch - line.base);
    }
    A* panel = to + (row - rows.begin) * width;
    const Copy* copy = lines.copy;
    for (int64_t i = 0; i < lines.panels; copy += lines.copies[i++], panel += stride)
      switch (whole || i < lines.panels - 1 ? lines.copies[i] : 0) {
        case 2: copy_taps<2>(g, lines, copy, 2, some, width, panel); break;
        case 3: copy_taps<3>(g, lines, copy, 3, some, width, panel); break;
        case 4: copy_taps<4>(g, lines, copy, 4, some, width, panel); break;
        default: copy_taps<0>(g, lines, copy, lines.copies[i], some, width, panel);
      }
  }
}

// Pointwise: the panels are pieces of the planes.
template <typename P, typename A = typename P::A>
void copy_pixels(const ConvGeometry& g, const P& x, Span pixels, Span rows, A* to, int64_t width) {
  constexpr int lanes = kLanes<A>;
  const int64_t stride = panel_stride(width, rows.size());
  for (int64_t row = rows.begin; row < rows.end; ++row, to += width) {
    const auto from = x.plane(row, pixels.begin);
    int64_t m = 0;
    for (int64_t panel = 0; m < pixels.size(); panel += stride)
      for (int64_t lane = 0; lane < width; lane += lanes, m += lanes) {
        const int valid = int(greatest(least(pixels.size() - m, int64_t(lanes)), int64_t(0)));
        store(to + panel + lane, valid == lanes ? from.vector(m) : from.first(m, valid));
      }
  }
}

}  // namespace
}  // namespace convext::cpu::CONVEXT_ISA
