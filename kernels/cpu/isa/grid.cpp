// Uniform levels: code - zero, times the scale.
//
// A product of few tokens multiplies whole numbers: codes as they are, inputs as 16-bit numbers with a step for each
// chunk of a group, kept as two planes of bytes (x = step (256 high + low)). Codes are repacked: 16 rows side by
// side, so that each lane of a register sums a row; scales and zeros stand in front of the codes of their group. A
// block of rows is one ascending stream of bytes, which is what hardware prefetches best.
#include "rounded.hpp"

namespace panza::PANZA_ISA {

static void decode(const GridView& w, int first, int last, float* out) {
    const int width = w.zero ? w.D / w.zero_groups : w.D;
    for (int n = first; n < last; n++, out += w.D) {
        const uint8_t* row = w.codes + (size_t)n * w.stride;
        for (int d = 0; d < w.D; d++) {
            const float zero = w.zero ? w.zero[(size_t)n * w.zero_groups + d / width] : (float)(1 << (w.bits - 1));
            out[d] = (float)window(row, (size_t)d * w.bits, w.bits) - zero;
        }
        scale_row(w.scale, n, w.D, out);
    }
}

#if VECTORS

#if defined(__AVX512VBMI__)
constexpr int AT_ONCE = 6,
              MOST = 1 << 30;  // tokens that share the reading of codes; up to which this beats decoded panels
#else
constexpr int AT_ONCE = 4, MOST = 16;
#endif
constexpr int SEGMENT = 32;  // groups whose second-level numbers stand together, see Layout::two

// The stream of a block. With `two`, SEGMENT groups follow 4 x SEGMENT halves, the second level of their scales
// (scale, zero) and zeros, and a row has one byte a group: the code of its scale, and that of its zero times 16. With
// `pair`, the codes of two groups share lines and follow both headers.
struct Layout {
    int bits, width, groups;      // inputs of a group; groups of a row
    int chunk, chunks;            // inputs that share a step; chunks of a group, the last perhaps shorter
    int units, last_units;        // of codes in a chunk, in the last
    int scale, zero;              // Form
    int two, pair;
    size_t header, group_bytes, segment_bytes, block_bytes;  // group_bytes: header and codes
};

static bool fits_two(const GridView& w, const Parts& p, int groups) {
    if (!p.codes || p.groups != groups || p.rows % BLOCK) return false;
    const size_t second = (size_t)at_least(w.N, p.rows) * groups;
    for (size_t i = 0; i < (size_t)w.N * groups; i++)
        if (p.codes[i] > 15) return false;
    for (size_t i = 0; i < second; i++)
        if (!is_half(p.scale[i]) || !is_half(p.zero[i])) return false;
    return true;
}

// False: no kernel for this weight.
static bool layout_of(const GridView& w, Layout& l) {
    if (w.bits != 2 && w.bits != 3 && w.bits != 4 && w.bits != 8) return false;
    const int scales = w.scale.values ? w.scale.groups : 1, zeros = w.zero ? w.zero_groups : 1;
    const int most = w.bits == 8 ? 256 : 512;  // inputs whose sum has room in 32 bits
    l.bits = w.bits;
    l.groups = scales > zeros ? scales : zeros;
    if (l.groups % scales || l.groups % zeros) return false;
    l.width = w.D / l.groups;
    if (l.width < 16 && l.groups > 1) return false;  // more headers than codes
    l.chunk = l.width <= most ? l.width : 256;
    l.chunks = at_least(l.width, l.chunk);
    l.pair = w.bits == 3 && l.width == 16;
    l.units = at_least(l.chunk, inputs_of(w.bits));
    l.last_units = at_least(l.width - (l.chunks - 1) * l.chunk, inputs_of(w.bits));
    l.two = w.scale.values && w.zero && fits_two(w, w.scale_parts, l.groups) && fits_two(w, w.zero_parts, l.groups);
    l.scale = form_of(w.scale.values, (size_t)w.N * scales);
    l.zero = form_of(w.zero, (size_t)w.N * zeros);
    l.header = l.two ? BLOCK : FORM_BYTES[l.scale] + FORM_BYTES[l.zero];
    const size_t codes = (size_t)((l.chunks - 1) * l.units + l.last_units) * lines_of(w.bits) * LINE;
    l.group_bytes = l.header + (l.pair ? codes / 2 : codes);
    l.segment_bytes = l.two ? 4 * SEGMENT * 2 : 0;
    l.block_bytes =
        at_least(l.groups, SEGMENT) * l.segment_bytes + (l.groups + (l.pair ? l.groups % 2 : 0)) * l.group_bytes;
    return true;
}

static bool takes(const GridView& w) {
    Layout l;
    return layout_of(w, l);
}

static size_t packed(const GridView& w) {
    Layout l;
    layout_of(w, l);
    return LINE * 2 + at_least(w.N, BLOCK) * l.block_bytes;
}
static_assert(sizeof(Layout) <= 2 * LINE);

static const Layout& layout(const GridView& w) { return *(const Layout*)w.packed; }
static const uint8_t* block_of(const GridView& w, int block) {
    return (const uint8_t*)w.packed + 2 * LINE + block * layout(w).block_bytes;
}

// The header of group g for the rows from n on.
static void write_header(const GridView& w, const Layout& l, int n, int g, uint8_t* p) {
    for (int r = 0; r < BLOCK && n + r < w.N; r++) {
        const size_t at = (size_t)(n + r) * l.groups + g;
        if (l.two) {
            p[r] = (uint8_t)(w.scale_parts.codes[at] | w.zero_parts.codes[at] << 4);
            continue;
        }
        if (l.scale != ONE)
            put(p, l.scale, r,
                w.scale.values[(size_t)(n + r) * w.scale.groups + (size_t)g * w.scale.groups / l.groups]);
        if (l.zero != ONE)
            put(p + FORM_BYTES[l.scale], l.zero, r,
                w.zero[(size_t)(n + r) * w.zero_groups + (size_t)g * w.zero_groups / l.groups]);
    }
}

// Codes of `count` inputs from d on, rows from n on, into units from `p` on; the first is that at `quad` of its unit.
template <int BITS>
static void write_codes(const GridView& w, int n, int d, int count, int quad, uint8_t* p) {
    using U = Unit<BITS>;
    for (int r = 0; r < BLOCK && n + r < w.N; r++)
        for (int i = 0; i < count; i++) {
            const int q = quad + i / 4;
            const int code = window(w.codes + (size_t)(n + r) * w.stride, (size_t)(d + i) * BITS, BITS);
            U::write(p + (size_t)(q / U::QUADS) * U::LINES * LINE + r * 4 + i % 4, q % U::QUADS, code);
        }
}

template <int BITS>
static void pack_block(const GridView& w, const Layout& l, int n, uint8_t* p) {
    const size_t unit = Unit<BITS>::LINES * LINE;
    for (int g = 0; g < l.groups; g++) {
        if (l.two && g % SEGMENT == 0) {
            const Parts* parts[] = {&w.scale_parts, &w.zero_parts};
            for (int i = 0; i < SEGMENT && g + i < l.groups; i++)
                for (int k = 0; k < 2; k++) {
                    const size_t at = (size_t)(n / parts[k]->rows) * l.groups + g + i;
                    put(p + 2 * SEGMENT * (2 * k), HALF, i, parts[k]->scale[at]);
                    put(p + 2 * SEGMENT * (2 * k + 1), HALF, i, parts[k]->zero[at]);
                }
            p += l.segment_bytes;
        }
        if (l.pair) {
            uint8_t* both = p - g % 2 * l.header;  // headers, then codes
            write_header(w, l, n, g, p);
            write_codes<BITS>(w, n, g * l.width, l.width, g % 2 * 4, both + 2 * l.header);
            p = g % 2 ? both + 2 * l.group_bytes : p + l.header;
            continue;
        }
        write_header(w, l, n, g, p);
        for (int c = 0; c < l.chunks; c++) {
            const int at = c * l.chunk, count = at + l.chunk < l.width ? l.chunk : l.width - at;
            write_codes<BITS>(w, n, g * l.width + at, count, 0, p + l.header + c * l.units * unit);
        }
        p += l.group_bytes;
    }
}

static void pack(const GridView& w, void* out) {
    Layout l;
    layout_of(w, l);
    memcpy(out, &l, sizeof l);
    uint8_t* p = (uint8_t*)out + 2 * LINE;
    for (int n = 0; n < w.N; n += BLOCK, p += l.block_bytes) {
        if (l.bits == 2) pack_block<2>(w, l, n, p);
        if (l.bits == 3) pack_block<3>(w, l, n, p);
        if (l.bits == 4) pack_block<4>(w, l, n, p);
        if (l.bits == 8) pack_block<8>(w, l, n, p);
    }
}

// Codes of 8 bits take as long to read as 16 bits of the inputs to multiply.
static bool exact(const GridView& w, const Inputs& in) { return in.exact || w.bits == 8; }

// Prepared inputs of a token: a Step for each chunk, then for each quad 4 high and 4 low bytes.
static int quads_of(const Layout& l) {
    if (l.pair) return (l.groups + l.groups % 2) * 4;
    return l.groups * ((l.chunks - 1) * l.units + l.last_units) * (inputs_of(l.bits) / 4);
}
static size_t steps_bytes(const Layout& l) { return at_least(l.groups * l.chunks * sizeof(Step), LINE) * (size_t)LINE; }
static size_t token_bytes(const Layout& l) { return steps_bytes(l) + at_least(8 * quads_of(l), LINE) * (size_t)LINE; }
static size_t prepared(const GridView& w, int tokens) { return tokens * token_bytes(layout(w)); }

static void prepare(const GridView& w, const Inputs& in, void* out) {
    const Layout& l = layout(w);
    memset(out, 0, in.tokens * token_bytes(l));
    const int quads = l.pair ? 4 : l.units * (inputs_of(l.bits) / 4),
              last = l.pair ? 4 : l.last_units * (inputs_of(l.bits) / 4);
    for (int t = 0; t < in.tokens; t++) {
        uint8_t* p = (uint8_t*)out + t * token_bytes(l);
        Step* steps = (Step*)p;
        int8_t* planes = (int8_t*)p + steps_bytes(l);
        for (int g = 0; g < l.groups; g++)
            for (int c = 0; c < l.chunks; c++) {
                const int at = c * l.chunk, count = at + l.chunk < l.width ? l.chunk : l.width - at;
                *steps++ = round_chunk(in.x + (size_t)t * w.D + g * l.width + at, count, exact(w, in), planes);
                planes += 8 * (c + 1 < l.chunks ? quads : last);
            }
    }
}

// Second-level numbers of SEGMENT groups as floats: scale, -scale zero, of scales and then of zeros.
static inline void read_segment(const uint8_t* p, float* front) {
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < SEGMENT; i += W) {
            const F scale = halves(p + (2 * k * SEGMENT + i) * 2), zero = halves(p + ((2 * k + 1) * SEGMENT + i) * 2);
            store(front + 2 * k * SEGMENT + i, scale);
            store(front + (2 * k + 1) * SEGMENT + i, sub(set1(0), mul(scale, zero)));
        }
}

// Scales and zeros of W rows. front: of this group's segment, see read_segment.
static inline void read_header(const Layout& l, const uint8_t* p, const float* front, int part, F& scale, F& zero) {
    if (l.two) {
        const I codes = bytes(p + part * W);
        scale = fma(floats(both(codes, all32(15))), set1(front[0]), set1(front[SEGMENT]));
        zero = fma(floats(right<4>(codes)), set1(front[2 * SEGMENT]), set1(front[3 * SEGMENT]));
    } else {
        scale = read_form(l.scale, p, part, 1);
        zero = read_form(l.zero, p + FORM_BYTES[l.scale], part, (float)(1 << (l.bits - 1)));
    }
}

// Sums for T tokens of codes of BITS bits, WAYS of each: one addition after the other would wait.
constexpr int ways(int T) { return !Sum<true>::SLOW || T > 2 ? 1 : 4 / T; }
template <int BITS, int T, bool EXACT, int WAYS> struct Sums {
    // Units that may be added before the sums must settle.
    static constexpr int UNITS = Sum<EXACT>::ROOM / (256 * ((1 << BITS) - 1)) / Unit<BITS>::QUADS;
    Sum<EXACT> s[T][WAYS];
    template <int QUADS> void add(const I* c, const int8_t* x, size_t stride) {
        for (int k = 0; k < QUADS; k++)
            for (int t = 0; t < T; t++) s[t][k % WAYS].add(c[k], x + t * stride + 8 * k);
    }
    void add_unit(const uint8_t* p, const int8_t* x, size_t stride) {
        I c[Unit<BITS>::QUADS];
        Unit<BITS>::read(p, c);
        add<Unit<BITS>::QUADS>(c, x, stride);
    }
    void settle() {
        for (int t = 0; t < T; t++)
            for (int i = 0; i < WAYS; i++) s[t][i].settle();
    }
    F value(int t) const {
        Sum<EXACT> all = s[t][0];
        for (int i = 1; i < WAYS; i++) all.join(s[t][i]);
        return all.value();
    }
};

#if defined(__AVX512VBMI__)
// Codes stay where they are in their bytes, as multiples of 1, 4, 16 and 64: dividing the four sums is less than
// shifting codes.
template <bool EXACT> struct Sums<2, 1, EXACT, 4> {
    static constexpr int UNITS = Sum<EXACT>::ROOM;
    Sum<EXACT> s[4];
    void add_unit(const uint8_t* p, const int8_t* x, size_t) {
        const I v = line(p);
        for (int k = 0; k < 4; k++) s[k].add(both(v, all8(3 << 2 * k)), x + 8 * k);
    }
    void settle() {}
    F value(int) const { return floats(plus(plus(s[0].whole(), part<1>()), plus(part<2>(), part<3>()))); }
    template <int K> I part() const { return _mm512_srai_epi32(s[K].whole(), 2 * K); }
};

#else
template <int T, bool EXACT> struct Sums<8, T, EXACT, 1> {  // products of whole bytes do not fit in 16 bits: halves of them do
    static constexpr int UNITS = Sums<4, T, EXACT, 1>::UNITS;
    Sums<4, T, EXACT, 1> low, high;
    void add_unit(const uint8_t* p, const int8_t* x, size_t stride) {
        I a[4], b[4];
        for (int k = 0; k < 4; k++) {
            const I v = line(p + k * LINE);
            a[k] = both(v, all8(15)), b[k] = both(right<4>(v), all8(15));
        }
        low.template add<4>(a, x, stride);
        high.template add<4>(b, x, stride);
    }
    void settle() { low.settle(), high.settle(); }
    F value(int t) const { return fma(set1(16), high.value(t), low.value(t)); }
};
#endif

// The product of W rows with one chunk: codes of `units` units from p on.
template <int BITS, class S>
static inline void add_chunk(const uint8_t* p, bool fetches, int units, const int8_t* x, size_t stride, S& sums) {
    using U = Unit<BITS>;
    while (units > 0) {
        int some = units < S::UNITS ? units : S::UNITS;
        units -= some;
        for (; some > 0; some--, p += U::LINES * LINE, x += 8 * U::QUADS) {
            if (fetches) fetch<U::LINES>(p);
            sums.add_unit(p, x, stride);
        }
        sums.settle();
    }
}

// Prepared inputs of a group, of the first token; those of the next are `stride` bytes on.
struct Point {
    const Step* steps;
    const int8_t* x;
    size_t stride;
    Step step(int t, int c) const { return ((const Step*)((const int8_t*)steps + t * stride))[c]; }
};

template <int T> static inline void add_products(const F* products, F scale, F (*y)[PARTS], int part) {
    for (int t = 0; t < T; t++) y[t][part] = fma(scale, products[t], y[t][part]);
}

// How groups lie in units: two in one, one in one, one in many.
enum Shape { TWO_GROUPS, ONE_UNIT, MANY_UNITS };

// y += the product of group g of a block, whose stream is at p.
template <int BITS, int T, bool EXACT>
static inline void add_group(const Layout& l, const uint8_t* p, const float* front, const Point& at, F (*y)[PARTS]) {
    const int inputs = 4 * Unit<BITS>::QUADS, lines = Unit<BITS>::LINES;
    for (int part = 0; part < PARTS; part++) {
        F scale, zero, products[T];
        read_header(l, p, front, part, scale, zero);
        for (int t = 0; t < T; t++) products[t] = set1(0);
        const uint8_t* codes = p + l.header + part * (LINE / PARTS);
        for (int c = 0; c < l.chunks; c++) {
            Sums<BITS, T, EXACT, ways(T)> sums;
            const size_t first = (size_t)c * l.units;
            add_chunk<BITS>(codes + first * lines * LINE, part == 0, c + 1 < l.chunks ? l.units : l.last_units,
                            at.x + first * inputs * 2, at.stride, sums);
            for (int t = 0; t < T; t++) {
                const Step s = at.step(t, c);
                products[t] = fma(set1(s.step), sums.value(t), fma(zero, set1(s.shift), products[t]));
            }
        }
        add_products<T>(products, scale, y, part);
    }
}

template <int T, class S>
static inline void finish_group(S& sums, F scale, F zero, const Point& at, int group, F (*y)[PARTS], int part) {
    F products[T];
    sums.settle();
    for (int t = 0; t < T; t++) {
        const Step s = at.step(t, group);
        products[t] = fma(set1(s.step), sums.value(t), mul(zero, set1(s.shift)));
    }
    add_products<T>(products, scale, y, part);
}

// As add_group, of a group of one unit.
template <int BITS, int T, bool EXACT>
static inline void add_unit(const Layout& l, const uint8_t* p, const float* front, const Point& at, F (*y)[PARTS]) {
    fetch<Unit<BITS>::LINES>(p);
    for (int part = 0; part < PARTS; part++) {
        F scale, zero;
        read_header(l, p, front, part, scale, zero);
        Sums<BITS, T, EXACT, 1> sums;
        sums.add_unit(p + l.header + part * (LINE / PARTS), at.x, at.stride);
        finish_group<T>(sums, scale, zero, at, 0, y, part);
    }
}

// As add_group, of two groups of 16 inputs with codes of 3 bits.
template <int T, bool EXACT>
static inline void add_pair(const Layout& l, const uint8_t* p, const float* front, const Point& at, F (*y)[PARTS]) {
    fetch<Unit<3>::LINES>(p);
    for (int part = 0; part < PARTS; part++) {
        I c[8];
        Unit<3>::read(p + 2 * l.header + part * (LINE / PARTS), c);
        for (int i = 0; i < 2; i++) {
            F scale, zero;
            read_header(l, p + i * l.header, front + i, part, scale, zero);
            Sums<3, T, EXACT, 1> sums;
            sums.template add<4>(c + 4 * i, at.x + 32 * i, at.stride);
            finish_group<T>(sums, scale, zero, at, i, y, part);
        }
    }
}

template <int BITS, int T, bool EXACT, Shape SHAPE>
static void multiply_rows(const GridView& w, const Inputs& in, int first, int last, float* out, int ldy) {
    const Layout l = layout(w);
    constexpr int some = SHAPE == TWO_GROUPS ? 2 : 1;  // groups that go together
    const size_t group_inputs =
        2 * (SHAPE == TWO_GROUPS ? 16 : ((l.chunks - 1) * l.units + l.last_units) * inputs_of(BITS));
    for (int n = first; n < last; n += BLOCK) {
        const uint8_t* p = block_of(w, n / BLOCK);
        Point at{(const Step*)in.prepared, (const int8_t*)in.prepared + steps_bytes(l), token_bytes(l)};
        float front[4 * SEGMENT] = {};
        F y[T][PARTS];
        for (int t = 0; t < T; t++)
            for (int part = 0; part < PARTS; part++) y[t][part] = set1(0);
        for (int g = 0; g < l.groups; g += some) {
            if (l.two && g % SEGMENT == 0) {
                read_segment(p, front);
                p += l.segment_bytes;
            }
            if constexpr (SHAPE == TWO_GROUPS) add_pair<T, EXACT>(l, p, front + g % SEGMENT, at, y);
            else if constexpr (SHAPE == ONE_UNIT) add_unit<BITS, T, EXACT>(l, p, front + g % SEGMENT, at, y);
            else add_group<BITS, T, EXACT>(l, p, front + g % SEGMENT, at, y);
            p += some * l.group_bytes;
            at.steps += some * l.chunks;
            at.x += some * group_inputs;
        }
        for (int t = 0; t < T; t++) store_rows(y[t], out + (size_t)t * ldy + n, last - n < BLOCK ? last - n : BLOCK);
    }
}

template <int BITS, int T, bool EXACT>
static void multiply_bits(const GridView& w, const Inputs& in, int first, int last, float* y, int ldy) {
    const Layout& l = layout(w);
    if (l.pair) multiply_rows<3, T, EXACT, TWO_GROUPS>(w, in, first, last, y, ldy);
    else if (l.chunks == 1 && l.units == 1) multiply_rows<BITS, T, EXACT, ONE_UNIT>(w, in, first, last, y, ldy);
    else multiply_rows<BITS, T, EXACT, MANY_UNITS>(w, in, first, last, y, ldy);
}

template <int T, bool EXACT>
static void multiply_tokens(const GridView& w, const Inputs& in, int first, int last, float* y, int ldy) {
    const int bits = layout(w).bits;
    if (bits == 2) multiply_bits<2, T, EXACT>(w, in, first, last, y, ldy);
    if (bits == 3) multiply_bits<3, T, EXACT>(w, in, first, last, y, ldy);
    if (bits == 4) multiply_bits<4, T, EXACT>(w, in, first, last, y, ldy);
    if constexpr (EXACT)
        if (bits == 8) multiply_bits<8, T, true>(w, in, first, last, y, ldy);
}

// Tokens [from, from + T) with a block.
template <int T>
static void multiply_some(const GridView& w, const Inputs& in, int from, int first, int last, float* y, int ldy) {
    const Inputs some{in.x, T, (const uint8_t*)in.prepared + from * token_bytes(layout(w))};
    (exact(w, in) ? multiply_tokens<T, true> : multiply_tokens<T, false>)(w, some, first, last, y + (size_t)from * ldy, ldy);
}

static void multiply(const GridView& w, const Inputs& in, int first, int last, float* y, int ldy) {
    for (int n = first; n < last; n += BLOCK) {  // of more than few tokens, all with one block: its codes stay near
        const int end = in.tokens <= FEW || n + BLOCK > last ? last : n + BLOCK;
        int t = 0;
        for (; t + AT_ONCE <= in.tokens; t += AT_ONCE) multiply_some<AT_ONCE>(w, in, t, n, end, y, ldy);
        if (in.tokens - t == 1) multiply_some<1>(w, in, t, n, end, y, ldy);
        if (in.tokens - t == 2) multiply_some<2>(w, in, t, n, end, y, ldy);
        if (in.tokens - t == 3) multiply_some<3>(w, in, t, n, end, y, ldy);
        if (in.tokens - t == 4) multiply_some<4>(w, in, t, n, end, y, ldy);
        if (in.tokens - t == 5) multiply_some<5>(w, in, t, n, end, y, ldy);
        if (in.tokens <= FEW) return;
    }
}

// Inputs of one unit as floats: out[16 i + row] for the inputs i in [from, to) of the unit.
template <int BITS>
static inline void decode_unit(const uint8_t* p, F scale, F zero, int first, int from, int to, float* out) {
    I c[Unit<BITS>::QUADS];
    Unit<BITS>::read(p, c);
    for (int k = 0; k < Unit<BITS>::QUADS; k++) {
        const I byte = all32(255);
        const I of[] = {both(c[k], byte), both(right<8>(c[k]), byte), both(right<16>(c[k]), byte), right<24>(c[k])};
        for (int j = 0; j < 4; j++) {
            const int i = 4 * k + j - first;
            if (i >= from && i < to) store(out + (ptrdiff_t)BLOCK * (i - from), mul(scale, sub(floats(of[j]), zero)));
        }
    }
}

template <int BITS>
static void decode_panel(const GridView& w, int block, int from, int to, float* out) {
    const Layout& l = layout(w);
    const int inputs = 4 * Unit<BITS>::QUADS;
    float front[4 * SEGMENT] = {};
    for (int g = from / l.width; g * l.width < to; g++) {
        const uint8_t *start = block_of(w, block) + g / SEGMENT * (l.segment_bytes + SEGMENT * l.group_bytes),
                      *header = start + l.segment_bytes;
        if (l.two && (g % SEGMENT == 0 || g == from / l.width)) read_segment(start, front);
        header += (l.pair ? g % SEGMENT / 2 * 2 : g % SEGMENT) * l.group_bytes;
        const uint8_t* codes = header + (l.pair ? 2 : 1) * l.header;
        if (l.pair) header += g % 2 * l.header;
        for (int part = 0; part < PARTS; part++) {
            F scale, zero;
            read_header(l, header, front + g % SEGMENT, part, scale, zero);
            for (int c = 0; c < l.chunks; c++)
                for (int u = 0; u < (c + 1 < l.chunks ? l.units : l.last_units); u++) {
                    // of the unit: where its first input of this group stands, and which inputs are wanted
                    const int skip = l.pair ? g % 2 * 16 : 0, d = g * l.width + c * l.chunk + u * inputs;
                    int end = g * l.width + ((c + 1) * l.chunk < l.width ? (c + 1) * l.chunk : l.width);
                    if (end > to) end = to;
                    if (d >= end || d + inputs <= from) continue;
                    const int low = from > d ? from - d : 0, high = end - d < inputs ? end - d : inputs;
                    const uint8_t* p =
                        codes + (size_t)(c * l.units + u) * Unit<BITS>::LINES * LINE + part * (LINE / PARTS);
                    decode_unit<BITS>(p, scale, zero, skip, low, high,
                                      out + (size_t)(d + low - from) * BLOCK + part * W);
                }
        }
    }
}

static void panel(const GridView& w, int block, int from, int to, float* out) {
    const int bits = layout(w).bits;
    if (bits == 2) decode_panel<2>(w, block, from, to, out);
    if (bits == 3) decode_panel<3>(w, block, from, to, out);
    if (bits == 4) decode_panel<4>(w, block, from, to, out);
    if (bits == 8) decode_panel<8>(w, block, from, to, out);
}

const Kind<GridView> GRID = {.decode = decode,
                             .takes = takes,
                             .multiply = multiply,
                             .rows = BLOCK,
                             .prepared = prepared,
                             .prepare = prepare,
                             .packed = packed,
                             .pack = pack,
                             .panel = panel,
                             .packs_tables = true,
                             .most = MOST};

#else

const Kind<GridView> GRID = {.decode = decode, .rows = 1};

#endif

}  // namespace panza::PANZA_ISA
