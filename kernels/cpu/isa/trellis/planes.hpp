// Trellis products with AVX-512: the table in one or two planes of bytes that permutations look up, for dot products of
// bytes with the inputs, which are in two planes too.
//
// A register holds a step of 8 chains, one in each 64-bit lane: 2 outputs x 4 inputs, 8 windows that start `step` bits
// apart in 64 bits of the stream. So one shift puts the windows of 64 weights into bytes, and every 32-bit lane is a
// sum of one output. The 16 outputs of a chain and 4 inputs, a quad, are 8 such steps: `step` words of 64 bits.
#pragma once

#include "../here.hpp"

#if defined(_MSC_VER) && !defined(__clang__)
#define PANZA_INLINE
#else
#define PANZA_INLINE __attribute__((always_inline))
#endif

namespace panza::PANZA_ISA {

constexpr int CHAINS = 8, ROWS = 16 * CHAINS;
constexpr int SEGMENT = 512;      // inputs that share a quantiser, at most; their sums of products fit 32 bits
constexpr int AHEAD = 4096 / 64;  // lines that are fetched before their use: the hardware alone stops at every page

// A table: value = middle + step (high - 128 + (low - 64) / 128), without low if not `fine`. The stream follows it.
struct Head {
    float middle, step;
    bool fine;
    alignas(64) uint8_t high[256], low[256];
};

static bool takes(const TrellisView& w) {
    if (w.step < 2 || w.step > 4 || w.window < 6 || w.window > 8 || group_of(w) % 4) return false;
    for (int i = 0; i < 1 << w.window; i++)
        if (!(fabsf(w.lut[i]) < 1e30f)) return false;
    return true;
}

// ---- the kernel's layout

// A line is one word of each of the 8 chains. One more than the weights fill: the last window reaches into it.
static size_t lines(const TrellisView& w) { return (size_t)w.D / 4 * w.step + 1; }

static size_t packed(const TrellisView& w) { return sizeof(Head) + (size_t)((w.N + ROWS - 1) / ROWS) * lines(w) * 64; }

// The values as least + level * (most - least) / levels: the levels, and the relative error.
static float levels_of(const float* values, int count, float least, float most, int levels, int* out) {
    const float scale = most > least ? (float)levels / (most - least) : 0, step = (most - least) / (float)levels;
    float error = 0, size = 0;
    for (int i = 0; i < count; i++) {
        out[i] = (int)((values[i] - least) * scale + 0.5f);
        const float e = values[i] - (least + (float)out[i] * step);
        error += e * e, size += values[i] * values[i];
    }
    return size > 0 ? sqrtf(error / size) : 0;
}

// One plane if the values lie on a grid of at most 256 levels (as near as fp16 can say), otherwise two: 2^15 levels.
static void make_planes(const float* values, int count, Head* head) {
    float least = values[0], most = values[0];
    for (int i = 1; i < count; i++) {
        least = values[i] < least ? values[i] : least;
        most = values[i] > most ? values[i] : most;
    }
    int level[256], levels = 1;
    while (levels < 256 && levels_of(values, count, least, most, levels, level) > 5e-4f) levels++;
    head->fine = levels == 256;
    if (head->fine) levels_of(values, count, least, most, 32767, level);
    head->step = head->fine ? (most - least) / 32767 * 128 : (most - least) / (float)levels;
    head->middle = least + head->step * (head->fine ? 128.5f : 128.f);
    for (int i = 0; i < count; i++) {
        head->high[i] = (uint8_t)(head->fine ? level[i] >> 7 : level[i]);
        head->low[i] = (uint8_t)(level[i] & 127);
    }
}

static void pack(const TrellisView& w, void* out) {
    Head* head = (Head*)out;
    make_planes(w.lut, 1 << w.window, head);
    uint8_t* line = (uint8_t*)(head + 1);
    for (int first = 0; first < w.N / 16; first += CHAINS)
        for (size_t i = 0; i < lines(w); i++, line += 64)
            for (int c = 0; c < CHAINS && first + c < w.N / 16; c++)
                memcpy(line + 8 * c, w.codes + (first + c) * w.stride + 8 * i, 8);
}

// ---- the inputs

// x = scale (high + low / 128), for each segment; high and low of D bytes, sums of them, for a token.
struct Planes {
    float* scale;
    int32_t *high_sum, *low_sum;
    int8_t *high, *low;
};

static int segments(const TrellisView& w) {
    const int group = group_of(w);
    return w.D / group * ((group + SEGMENT - 1) / SEGMENT);
}

static size_t planes_size(const TrellisView& w) { return ((size_t)segments(w) * 12 + 2 * (size_t)w.D + 63) / 64 * 64; }

static Planes planes_at(const TrellisView& w, const void* data, int token) {
    uint8_t* p = (uint8_t*)data + token * planes_size(w);
    const int n = segments(w);
    int8_t* bytes = (int8_t*)(p + 12 * (size_t)n);
    return {(float*)p, (int32_t*)p + n, (int32_t*)p + 2 * n, bytes, bytes + w.D};
}

static size_t prepared(const TrellisView& w, int tokens) { return tokens * planes_size(w); }

// Segment s: n inputs, which stand at d. A scale that is not a number if one of them is not finite. Without `exact` the
// low plane is not read, and its sum is 0.
static void quantise(const float* x, int n, bool exact, const Planes& to, int s, int d) {
    uint32_t most = 0;  // of the magnitudes; as whole numbers, infinities and what is no number come last
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float magnitude;
    memcpy(&magnitude, &most, 4);
    const bool finite = most < 0x7f800000;
    const float scale = finite && magnitude > 1e-30f ? 127 * 128 / magnitude : 0;
    int32_t high_sum = 0, low_sum = 0;
    for (int i = 0; i < n; i++) {
        const float shifted = x[i] * scale + 12582912.f;  // 1.5 * 2^23: rounds to whole numbers, in the lowest bits
        int32_t level;
        memcpy(&level, &shifted, 4);
        level = finite ? level - 0x4b400000 : 0;
        const int32_t high = (level + 64) >> 7, low = level - high * 128;
        to.high[d + i] = (int8_t)high, to.low[d + i] = (int8_t)low;
        high_sum += high, low_sum += low;
    }
    to.scale[s] = finite ? magnitude / 127 : NAN;
    to.high_sum[s] = high_sum, to.low_sum[s] = exact ? low_sum : 0;
}

static void prepare(const TrellisView& w, const Inputs& in, void* out) {
    const int group = group_of(w);
    for (int t = 0; t < in.tokens; t++) {
        const float* x = in.x + (size_t)t * w.D;
        const Planes to = planes_at(w, out, t);
        for (int first = 0, s = 0; first < w.D; first += group)
            for (int at = 0; at < group; at += SEGMENT, s++)
                quantise(x + first + at, group - at < SEGMENT ? group - at : SEGMENT, in.exact, to, s, first + at);
    }
}

// ---- the product

// f.operator()<i>() for i of 0 to N - 1.
template <int N, class F>
static inline PANZA_INLINE void unroll(F f) {
    if constexpr (N > 0) {
        unroll<N - 1>(f);
        f.template operator()<N - 1>();
    }
}

// sums += a b, of unsigned and signed bytes. In assembly since GCC 12 copies the sums of the intrinsic to and fro.
static inline PANZA_INLINE void dot(__m512i& sums, __m512i a, __m512i b) {
#if defined(_MSC_VER) && !defined(__clang__)
    sums = _mm512_dpbusd_epi32(sums, a, b);
#else
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
#endif
}

// The windows at the 64 weights of step K of a quad, in the low bits of each byte; what is above them is of no account.
template <int STEP, int K>
static inline PANZA_INLINE __m512i windows(const __m512i* words) {
    constexpr int at = 8 * STEP * K, word = at / 64, shift = at % 64;
    constexpr bool inside = shift + 7 * STEP + 8 <= 64;
    constexpr uint64_t each = 0x0101010101010101, steps = 0x0706050403020100;
    constexpr uint64_t starts = (inside ? shift : 0) * each + STEP * steps;
    __m512i from = words[word];
    if constexpr (!inside) from = _mm512_shrdi_epi64(from, words[word + 1], shift);
    return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(starts), from);
}

// One plane of the table in registers.
template <int WINDOW>
struct Plane {
    __m512i parts[1 << (WINDOW - 6)];

    explicit Plane(const uint8_t* table) {
        for (int i = 0; i < 1 << (WINDOW - 6); i++) parts[i] = _mm512_load_si512(table + 64 * i);
    }
    PANZA_INLINE __m512i operator()(__m512i index) const {
        if constexpr (WINDOW == 6) return _mm512_permutexvar_epi8(index, parts[0]);
        else if constexpr (WINDOW == 7) return _mm512_permutex2var_epi8(parts[0], index, parts[1]);
        else {
            const __m512i below = _mm512_permutex2var_epi8(parts[0], index, parts[1]);
            const __m512i above = _mm512_permutex2var_epi8(parts[2], index, parts[3]);
            return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), below, above);
        }
    }
};

// Planes that a product reads: one of the table and of the inputs, which rounds both to 8 bits; one of the table, which
// is all that it has, and both of the inputs; all.
enum Mode { ROUNDED, WHOLE, FINE };

static Mode mode(const Head* head, const Inputs& in) { return !in.exact ? ROUNDED : head->fine ? FINE : WHOLE; }

// f.operator()<k>(q, high, low) for the steps k of each of some quads: what stands in the planes for its 64 weights.
template <int STEP, int WINDOW, Mode MODE, class F>
static inline PANZA_INLINE void walk(const Head* head, const __m512i* line, int quads, F f) {
    const Plane<WINDOW> high(head->high), low(head->low);
    for (int q = 0; q < quads; q++, line += STEP) {
        __m512i words[STEP + 1];
        unroll<STEP + 1>([&]<int i>() PANZA_INLINE { words[i] = _mm512_load_si512(line + i); });
        unroll<STEP>([&]<int i>() PANZA_INLINE { _mm_prefetch((const char*)(line + AHEAD + i), _MM_HINT_T0); });
        unroll<8>([&]<int k>() PANZA_INLINE {
            const __m512i index = windows<STEP, k>(words), found = high(index);
            if constexpr (MODE == FINE) f.template operator()<k>(q, found, low(index));
            else f.template operator()<k>(q, found, found);
        });
    }
}

// Sums of products for one token: of the highs of table and inputs, and of a high with a low. Two lows are left out: of
// random signs, 2^-16 of the result.
struct Sums {
    __m512i high[8], mixed[8];
};

// Such that the planes' offsets, 128 and 64, are taken off.
static void start(Sums* sums, Mode mode, int high_sum, int low_sum) {
    for (int k = 0; k < 8; k++) {
        sums->high[k] = _mm512_set1_epi32(-128 * high_sum);
        sums->mixed[k] = _mm512_set1_epi32(-128 * low_sum - (mode == FINE ? 64 * high_sum : 0));
    }
}

template <int K, Mode MODE>
static inline PANZA_INLINE void add(Sums& sums, __m512i high, __m512i low, const int8_t* x_high, const int8_t* x_low) {
    int32_t four_high, four_low;
    memcpy(&four_high, x_high, 4);
    memcpy(&four_low, x_low, 4);
    dot(sums.high[K], high, _mm512_set1_epi32(four_high));
    if constexpr (MODE != ROUNDED) dot(sums.mixed[K], high, _mm512_set1_epi32(four_low));
    if constexpr (MODE == FINE) dot(sums.mixed[K], low, _mm512_set1_epi32(four_high));
}

// out (8, 16) += scale sums + offset
static void finish(const Sums* sums, float scale, float offset, float* out) {
    const __m512 scales = _mm512_set1_ps(scale), offsets = _mm512_set1_ps(offset), low = _mm512_set1_ps(1 / 128.f);
    for (int k = 0; k < 8; k++) {
        const __m512 mixed = _mm512_cvtepi32_ps(sums->mixed[k]), high = _mm512_cvtepi32_ps(sums->high[k]);
        const __m512 made = _mm512_fmadd_ps(_mm512_fmadd_ps(mixed, low, high), scales, offsets);
        _mm512_store_ps(out + 16 * k, _mm512_add_ps(_mm512_load_ps(out + 16 * k), made));
    }
}

constexpr int RUN = 16;  // quads whose weights several tokens share: they stay in the nearest cache

struct Found {
    __m512i high[RUN][8], low[RUN][8];
};

template <Mode MODE>
static void add_found(const Found* found, int quads, const int8_t* x_high, const int8_t* x_low, Sums* sums) {
    Sums all = *sums;
    for (int q = 0; q < quads; q++)
        unroll<8>([&]<int k>() PANZA_INLINE {
            add<k, MODE>(all, found->high[q][k], found->low[q][k], x_high + 4 * q, x_low + 4 * q);
        });
    *sums = all;
}

// sums[t] += the products of `quads` quads of inputs, from x[t].high + d on, with the weights from `line` on.
template <int STEP, int WINDOW, Mode MODE>
static void add_quads(const Head* head, const __m512i* line, int quads, const Planes* x, int d, int tokens,
                      Sums* sums) {
    if (tokens == 1) {
        Sums all = *sums;
        walk<STEP, WINDOW, MODE>(head, line, quads, [&]<int k>(int q, __m512i high, __m512i low) PANZA_INLINE {
            add<k, MODE>(all, high, low, x->high + d + 4 * q, x->low + d + 4 * q);
        });
        *sums = all;
        return;
    }
    Found found;
    for (int first = 0; first < quads; first += RUN) {
        const int count = quads - first < RUN ? quads - first : RUN, at = d + 4 * first;
        const auto keep = [&]<int k>(int q, __m512i high, __m512i low) PANZA_INLINE {
            found.high[q][k] = high;
            if constexpr (MODE == FINE) found.low[q][k] = low;
        };
        walk<STEP, WINDOW, MODE>(head, line + first * STEP, count, keep);
        for (int t = 0; t < tokens; t++)
            add_found<MODE>(&found, count, x[t].high + at, x[t].low + at, sums + t);
    }
}

using AddQuads = void (*)(const Head*, const __m512i*, int, const Planes*, int, int, Sums*);

template <int STEP, int WINDOW>
static AddQuads add_quads_of(Mode mode) {
    if (mode == ROUNDED) return add_quads<STEP, WINDOW, ROUNDED>;
    return mode == FINE ? add_quads<STEP, WINDOW, FINE> : add_quads<STEP, WINDOW, WHOLE>;
}

template <int STEP>
static AddQuads add_quads_of(int window, Mode mode) {
    if (window == 6) return add_quads_of<STEP, 6>(mode);
    return window == 7 ? add_quads_of<STEP, 7>(mode) : add_quads_of<STEP, 8>(mode);
}

static AddQuads add_quads_of(const TrellisView& w, Mode mode) {
    if (w.step == 2) return add_quads_of<2>(w.window, mode);
    return w.step == 3 ? add_quads_of<3>(w.window, mode) : add_quads_of<4>(w.window, mode);
}

// y of the rows of a block.
static void multiply_block(const TrellisView& w, const Inputs& in, int block, float* y, int ldy) {
    const Head* head = (const Head*)w.packed;
    const __m512i* line = (const __m512i*)(head + 1) + block * lines(w);
    const Mode planes = mode(head, in);
    const AddQuads add_quads = add_quads_of(w, planes);
    const float* scales = w.scale.values ? w.scale.values + (size_t)block * ROWS * w.scale.groups : nullptr;
    const int group = group_of(w), rows = w.N - block * ROWS < ROWS ? w.N - block * ROWS : ROWS;
    Planes x[FEW];
    for (int t = 0; t < in.tokens; t++) {
        x[t] = planes_at(w, in.prepared, t);
        for (int r = 0; r < rows; r++) y[(size_t)t * ldy + r] = 0;
    }
    for (int g = 0, d = 0, s = 0; d < w.D; g++) {
        alignas(64) float made[FEW][ROWS] = {};
        for (const int last = d + group; d < last; s++) {
            const int end = last - d < SEGMENT ? last : d + SEGMENT;
            Sums sums[FEW];
            for (int t = 0; t < in.tokens; t++) start(sums + t, planes, x[t].high_sum[s], x[t].low_sum[s]);
            add_quads(head, line + (size_t)d / 4 * w.step, (end - d) / 4, x, d, in.tokens, sums);
            for (int t = 0; t < in.tokens; t++) {
                const float all = (float)x[t].high_sum[s] + (float)x[t].low_sum[s] / 128;
                finish(sums + t, x[t].scale[s] * head->step, x[t].scale[s] * head->middle * all, made[t]);
            }
            d = end;
        }
        for (int t = 0; t < in.tokens; t++)
            for (int r = 0; r < rows; r++) {  // lanes: step of the quad, chain, output of the step
                const float sum = made[t][r % 16 / 2 * 16 + r / 16 * 2 + r % 2];
                y[(size_t)t * ldy + r] += sum * (scales ? scales[(size_t)r * w.scale.groups + g] : 1);
            }
    }
}

static void multiply(const TrellisView& w, const Inputs& in, int first, int last, float* y, int ldy) {
    for (int block = first / ROWS; block * ROWS < last; block++) multiply_block(w, in, block, y + block * ROWS, ldy);
}

// What stands in the table's high plane for the weights from `line` on: (8 steps, quads, 64).
template <int STEP, int WINDOW>
static void read_bytes(const Head* head, const __m512i* line, int quads, uint8_t* out) {
    walk<STEP, WINDOW, ROUNDED>(head, line, quads, [&]<int k>(int q, __m512i high, __m512i) PANZA_INLINE {
        _mm512_storeu_si512(out + ((size_t)k * quads + q) * 64, high);
    });
}

template <int STEP>
static void read_bytes(int window, const Head* head, const __m512i* line, int quads, uint8_t* out) {
    if (window == 6) return read_bytes<STEP, 6>(head, line, quads, out);
    if (window == 7) return read_bytes<STEP, 7>(head, line, quads, out);
    read_bytes<STEP, 8>(head, line, quads, out);
}

static bool panel8(const TrellisView& w, int first, int from, int to, uint8_t* out, float* step, float* offset,
                   uint8_t* order) {
    const int group = group_of(w), quads = (to - from) / 4;
    if (group < w.D && group % Matmul8::DEPTH) return false;  // some would meet two scales
    const Head* head = (const Head*)w.packed;
    const __m512i* line = (const __m512i*)(head + 1) + first / ROWS * lines(w) + (size_t)from / 4 * w.step;
    (w.step == 2 ? read_bytes<2> : w.step == 3 ? read_bytes<3> : read_bytes<4>)(w.window, head, line, quads, out);
    for (int i = 0; i < ROWS; i++) {  // lanes: step of the quad, chain, output of the step
        const int r = i / 16 * 2 + i % 16 / 2 * 16 + i % 2;
        const float scale = !w.scale.values      ? 1
                            : first + r < w.N ? w.scale.values[(size_t)(first + r) * w.scale.groups + from / group]
                                              : 0;
        order[i] = (uint8_t)r;
        step[i] = head->step * scale, offset[i] = head->middle * scale;
    }
    return true;
}

const Kind<TrellisView> TRELLIS = {
    .decode = decode, .takes = takes, .multiply = multiply, .rows = ROWS,
    .prepared = prepared, .prepare = prepare, .packed = packed, .pack = pack, .panel8 = panel8,
};

}  // namespace panza::PANZA_ISA
