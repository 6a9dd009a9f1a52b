// Free levels, of each row or of the whole weight.
//
// A product of few tokens multiplies whole numbers as that of a grid does (see grid.cpp), with a look-up before: a
// level is step (code - zero) with a code of two bytes, which a shuffle of 16-byte tables finds for the 4 / S rows
// whose levels fill one. So a line of codes is that of 16 / S rows and 4 S inputs, S = 2^bits / 4.
#include "rounded.hpp"

namespace panza::PANZA_ISA {

static void decode(const LutView& w, int first, int last, float* out) {
    for (int n = first; n < last; n++, out += w.D) {
        const uint8_t* row = w.codes + (size_t)n * w.stride;
        const float* levels = w.levels + ((size_t)(w.rows == 1 ? 0 : n) << w.bits);
        int d = 0;
#if VECTORS
        if (w.bits <= 8)
            for (; d + 8 <= w.D; d += 8)
                _mm256_storeu_ps(out + d, _mm256_i32gather_ps(levels, codes8(row + d / 8 * w.bits, w.bits), 4));
#endif
        for (; d < w.D; d++) out[d] = levels[window(row, (size_t)d * w.bits, w.bits)];
        scale_row(w.scale, n, w.D, out);
    }
}

#if VECTORS

#if defined(__AVX512VBMI__)
constexpr int LOW = 256;  // the code of a level: LOW high + low
#else
constexpr int LOW = 128;  // products of bytes with 7 bits fit in 16
#endif
constexpr int LEVELS = LOW * LOW;

// The stream of a block: tables, S lines of high and S of low bytes; 16 steps and 16 zeros of the levels; for each
// group its scales, then for each chunk and each set of 16 / S rows the units.
struct Layout {
    int sets, width, groups, chunk, chunks, units, last_units, scale;
    size_t front, header, group_bytes, block_bytes;
};

static int inputs_of_unit(int bits) { return inputs_of(bits) << bits >> 2; }

static bool layout_of(const LutView& w, Layout& l) {
    if (w.bits < 2 || w.bits > 4) return false;
    for (size_t i = 0; i < (size_t)w.rows << w.bits; i++)
        if (!(fabsf(w.levels[i]) < 1e30f)) return false;
    const int inputs = inputs_of_unit(w.bits);
    l.sets = 1 << w.bits >> 2;
    l.groups = w.scale.values ? w.scale.groups : 1;
    l.width = w.D / l.groups;
    if (l.width < 16 && l.groups > 1) return false;  // more scales than codes
    l.chunk = l.width <= 512 ? l.width : 256;
    l.chunks = at_least(l.width, l.chunk);
    l.units = at_least(l.chunk, inputs);
    l.last_units = at_least(l.width - (l.chunks - 1) * l.chunk, inputs);
    l.scale = form_of(w.scale.values, (size_t)w.N * l.groups);
    l.front = 2 * l.sets * LINE + 2 * BLOCK * sizeof(float);
    l.header = FORM_BYTES[l.scale];
    l.group_bytes = l.header + (size_t)((l.chunks - 1) * l.units + l.last_units) * l.sets * lines_of(w.bits) * LINE;
    l.block_bytes = l.front + l.groups * l.group_bytes;
    return true;
}
static_assert(sizeof(Layout) <= 2 * LINE);

static bool takes(const LutView& w) {
    Layout l;
    return layout_of(w, l);
}

static size_t packed(const LutView& w) {
    Layout l;
    layout_of(w, l);
    return 2 * LINE + at_least(w.N, BLOCK) * l.block_bytes;
}

static const Layout& layout(const LutView& w) { return *(const Layout*)w.packed; }

// Codes of the levels of row r of a block into its tables, and their step and zero.
static void write_levels(const LutView& w, const Layout& l, int n, int r, uint8_t* p) {
    const float* levels = w.levels + ((size_t)(w.rows == 1 ? 0 : n + r) << w.bits);
    const int count = 1 << w.bits, rows = BLOCK / l.sets;
    float least = levels[0], most = levels[0];
    for (int i = 1; i < count; i++) {
        least = levels[i] < least ? levels[i] : least;
        most = levels[i] > most ? levels[i] : most;
    }
    const float range = most - least, size = fabsf(least) + 1e-30f;
    const float step = (range > size / 1024 ? range : size / 1024) / (LEVELS - 1);  // levels all alike: nearly zero
    uint8_t* at = p + r / rows * LINE + r % rows * count;
    for (int i = 0; i < count; i++) {
        const int code = (int)((levels[i] - least) / step + 0.5f), kept = code < LEVELS ? code : LEVELS - 1;
        at[i] = (uint8_t)(kept / LOW), at[l.sets * LINE + i] = (uint8_t)(kept % LOW);
    }
    put(p + 2 * l.sets * LINE, FLOAT, r, step);
    put(p + 2 * l.sets * LINE + BLOCK * sizeof(float), FLOAT, r, -least / step);
}

template <int BITS>
static void pack_chunk(const LutView& w, const Layout& l, int n, int d, int count, int units, uint8_t* p) {
    using U = Unit<BITS>;
    const int rows = BLOCK / l.sets, inputs = 4 * l.sets;  // of a line
    for (int r = 0; r < BLOCK && n + r < w.N; r++)
        for (int i = 0; i < count; i++) {
            const int at = i / inputs;
            uint8_t* unit = p + (size_t)(r / rows * units + at / U::QUADS) * U::LINES * LINE;
            U::write(unit + r % rows * inputs + i % inputs, at % U::QUADS,
                     window(w.codes + (size_t)(n + r) * w.stride, (size_t)(d + i) * BITS, BITS));
        }
}

static void pack(const LutView& w, void* out) {
    Layout l;
    layout_of(w, l);
    memcpy(out, &l, sizeof l);
    uint8_t* p = (uint8_t*)out + 2 * LINE;
    for (int n = 0; n < w.N; n += BLOCK) {
        for (int r = 0; r < BLOCK && n + r < w.N; r++) write_levels(w, l, n, r, p);
        p += l.front;
        for (int g = 0; g < l.groups; g++) {
            if (w.scale.values)
                for (int r = 0; r < BLOCK && n + r < w.N; r++)
                    put(p, l.scale, r, w.scale.values[(size_t)(n + r) * l.groups + g]);
            p += l.header;
            for (int c = 0; c < l.chunks; c++) {
                const bool end = c + 1 == l.chunks;
                const int d = g * l.width + c * l.chunk, count = end ? l.width - c * l.chunk : l.chunk,
                          units = end ? l.last_units : l.units;
                if (w.bits == 2) pack_chunk<2>(w, l, n, d, count, units, p);
                if (w.bits == 3) pack_chunk<3>(w, l, n, d, count, units, p);
                if (w.bits == 4) pack_chunk<4>(w, l, n, d, count, units, p);
                p += (size_t)units * l.sets * lines_of(w.bits) * LINE;
            }
        }
    }
}

// Prepared inputs of a token: a Part for each chunk, then for each 4 S inputs their high and their low bytes.
struct Part { float step, shift, low; };  // low: what the low bytes of levels and of inputs make together, about

static size_t parts_bytes(const Layout& l) { return at_least(l.groups * l.chunks * sizeof(Part), LINE) * (size_t)LINE; }
static size_t planes_bytes(const LutView& w, const Layout& l) {
    return (size_t)2 * l.groups * ((l.chunks - 1) * l.units + l.last_units) * inputs_of_unit(w.bits);
}
static size_t token_bytes(const LutView& w, const Layout& l) {
    return parts_bytes(l) + at_least((int)planes_bytes(w, l), LINE) * (size_t)LINE;
}
static size_t prepared(const LutView& w, int tokens) { return tokens * token_bytes(w, layout(w)); }

// From 4 high, 4 low bytes to 4 S high, 4 S low ones. Returns the sum of the low ones.
static int gather_planes(int8_t* planes, int bytes, int sets) {
    int sum = 0;
    for (int i = 0; i < bytes; i += 8 * sets) {
        int8_t all[8 * 4];
        memcpy(all, planes + i, 8 * sets);
        for (int s = 0; s < sets; s++) {
            memcpy(planes + i + 4 * s, all + 8 * s, 4);
            memcpy(planes + i + 4 * (sets + s), all + 8 * s + 4, 4);
            for (int j = 4; j < 8; j++) sum += all[8 * s + j];
        }
    }
    return sum;
}

static void prepare(const LutView& w, const Inputs& in, void* out) {
    const Layout& l = layout(w);
    memset(out, 0, in.tokens * token_bytes(w, l));
    for (int t = 0; t < in.tokens; t++) {
        uint8_t* p = (uint8_t*)out + t * token_bytes(w, l);
        Part* parts = (Part*)p;
        int8_t* planes = (int8_t*)p + parts_bytes(l);
        for (int g = 0; g < l.groups; g++)
            for (int c = 0; c < l.chunks; c++) {
                const bool end = c + 1 == l.chunks;
                const int at = c * l.chunk, bytes = 2 * (end ? l.last_units : l.units) * inputs_of_unit(w.bits);
                const Step s =
                    round_chunk(in.x + (size_t)t * w.D + g * l.width + at, end ? l.width - at : l.chunk, true, planes);
                *parts++ = {s.step, s.shift, s.step * (LOW - 1) / 2 * (float)gather_planes(planes, bytes, l.sets)};
                planes += bytes;
            }
    }
}

// 4 S inputs of one plane as all rows read them.
template <int S> static inline I inputs(const int8_t* p);
#if defined(__AVX512VBMI__)
template <> inline I inputs<1>(const int8_t* p) { return quad(p); }
template <> inline I inputs<2>(const int8_t* p) { return _mm512_broadcastq_epi64(_mm_loadl_epi64((const __m128i*)p)); }
template <> inline I inputs<4>(const int8_t* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)); }
static inline I look_up(I table, I at) { return _mm512_shuffle_epi8(table, at); }
static inline void add_bytes(I& sum, I codes, I x) {
#if defined(__GNUC__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
#else
    sum = _mm512_dpbusd_epi32(sum, codes, x);
#endif
}
// Sums of neighbours, those of b after those of a.
static inline I pairs(I a, I b) {
    const I even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return plus(_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, plus(even, all32(1)), b));
}
#else
template <> inline I inputs<1>(const int8_t* p) { return quad(p); }
template <> inline I inputs<2>(const int8_t* p) { return _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i*)p)); }
template <>
inline I inputs<4>(const int8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
}
static inline I look_up(I table, I at) { return _mm256_shuffle_epi8(table, at); }
static inline void add_bytes(I& sum, I codes, I x) {
    sum = plus(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
}
static inline I pairs(I a, I b) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8); }
#endif

// Sums of products of high and low bytes, of levels and of inputs. That of both low ones is left out but for its mean.
struct Planes { I high = nothing(), level_low = nothing(), input_low = nothing(); };

static inline F value(const Planes& s) {
    const F high = mul(set1(256.f * LOW), floats(s.high));
    return fma(set1((float)LOW), floats(plus(s.input_low, left<LOW == 256 ? 0 : 1>(s.level_low))), high);
}

static inline Planes pairs(const Planes& a, const Planes& b) {
    return {pairs(a.high, b.high), pairs(a.level_low, b.level_low), pairs(a.input_low, b.input_low)};
}

// Sums of the S registers of W rows: a row in each lane.
template <int S> static inline Planes by_rows(const Planes* s) {
    if constexpr (S == 1) return s[0];
    else return pairs(by_rows<S / 2>(s), by_rows<S / 2>(s + S / 2));
}

// The product of one register of codes, of W / S rows, with one chunk.
template <int BITS, int T>
static inline void add_units(const uint8_t* p, int units, I high, I low, I base, const int8_t* x, size_t stride,
                             Planes* sums) {
    using U = Unit<BITS>;
    constexpr int S = 1 << BITS >> 2, WAYS = T == 1 ? 2 : 1;
    Planes s[T][WAYS];
    for (; units > 0; units--, p += U::LINES * LINE, x += U::QUADS * 8 * S) {
        I c[U::QUADS];
        U::read(p, c);
        fetch<U::LINES>(p);
        for (int k = 0; k < U::QUADS; k++) {
            const I at = either(c[k], base), a = look_up(high, at), b = look_up(low, at);
            for (int t = 0; t < T; t++) {
                const int8_t* from = x + t * stride + k * 8 * S;
                const I of_high = inputs<S>(from), of_low = inputs<S>(from + 4 * S);
                add_bytes(s[t][k % WAYS].high, a, of_high);
                add_bytes(s[t][k % WAYS].level_low, b, of_high);
                add_bytes(s[t][k % WAYS].input_low, a, of_low);
            }
        }
    }
    for (int t = 0; t < T; t++) {
        const Planes &a = s[t][0], &b = s[t][WAYS - 1];
        sums[t] = WAYS == 1
                      ? a
                      : Planes{plus(a.high, b.high), plus(a.level_low, b.level_low), plus(a.input_low, b.input_low)};
    }
}

template <int BITS, int T>
static void multiply_block(const LutView& w, const uint8_t* p, const uint8_t* prepared, float* out, int ldy, int rows) {
    const Layout& l = layout(w);
    constexpr int S = 1 << BITS >> 2;
    const size_t unit = Unit<BITS>::LINES * LINE, stride = token_bytes(w, l);
    const uint8_t* tables = p;
    uint8_t bases[LINE];
    for (int i = 0; i < LINE; i++) bases[i] = (uint8_t)(i & 15 & ~(4 * S - 1));
    const I base = line(bases);
    const Part* parts = (const Part*)prepared;
    const int8_t* x = (const int8_t*)prepared + parts_bytes(l);
    p += l.front;
    F y[T][PARTS];
    for (int t = 0; t < T; t++)
        for (int i = 0; i < PARTS; i++) y[t][i] = set1(0);
    for (int g = 0; g < l.groups; g++) {
        const uint8_t* header = p;
        p += l.header;
        for (int c = 0; c < l.chunks; c++, parts++) {
            const int units = c + 1 < l.chunks ? l.units : l.last_units;
            for (int i = 0; i < PARTS; i++) {
                Planes sums[T][S];
                for (int s = 0; s < S; s++) {
                    const int set = (i * S + s) / PARTS, half = (i * S + s) % PARTS * (LINE / PARTS);
                    const I high = line(tables + set * LINE + half), low = line(tables + (S + set) * LINE + half);
                    Planes some[T];
                    add_units<BITS, T>(p + set * units * unit + half, units, high, low, base, x, stride, some);
                    for (int t = 0; t < T; t++) sums[t][s] = some[t];
                }
                const float* numbers = (const float*)(tables + 2 * S * LINE) + i * W;
                const F scale = mul(load(numbers), read_form(l.scale, header, i, 1)), zero = load(numbers + BLOCK);
                for (int t = 0; t < T; t++) {
                    const Part& part = *(const Part*)((const uint8_t*)parts + t * stride);
                    const F product =
                        fma(set1(part.step), value(by_rows<S>(sums[t])), fma(zero, set1(part.shift), set1(part.low)));
                    y[t][i] = fma(scale, product, y[t][i]);
                }
            }
            p += units * S * unit;
            x += units * 2 * inputs_of_unit(BITS);
        }
    }
    for (int t = 0; t < T; t++) store_rows(y[t], out + (size_t)t * ldy, rows);
}

template <int BITS>
static void multiply_bits(const LutView& w, const Inputs& in, int first, int last, float* y, int ldy) {
    const Layout& l = layout(w);
    for (int n = first; n < last; n += BLOCK) {
        const uint8_t *p = (const uint8_t*)w.packed + 2 * LINE + n / BLOCK * l.block_bytes,
                      *x = (const uint8_t*)in.prepared;
        const int rows = last - n < BLOCK ? last - n : BLOCK;
        if (in.tokens == 1) multiply_block<BITS, 1>(w, p, x, y + n, ldy, rows);
        if (in.tokens == 2) multiply_block<BITS, 2>(w, p, x, y + n, ldy, rows);
        if (in.tokens == 3) multiply_block<BITS, 3>(w, p, x, y + n, ldy, rows);
        if (in.tokens == 4) multiply_block<BITS, 4>(w, p, x, y + n, ldy, rows);
    }
}

static void multiply(const LutView& w, const Inputs& in, int first, int last, float* y, int ldy) {
    if (w.bits == 2) multiply_bits<2>(w, in, first, last, y, ldy);
    if (w.bits == 3) multiply_bits<3>(w, in, first, last, y, ldy);
    if (w.bits == 4) multiply_bits<4>(w, in, first, last, y, ldy);
}

const Kind<LutView> LUT = {.decode = decode,
                           .takes = takes,
                           .multiply = multiply,
                           .rows = BLOCK,
                           .prepared = prepared,
                           .prepare = prepare,
                           .packed = packed,
                           .pack = pack,
                           .packs_tables = true};

#else

const Kind<LutView> LUT = {.decode = decode, .rows = 1};

#endif

}  // namespace panza::PANZA_ISA
