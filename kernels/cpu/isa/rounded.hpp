// What the kernels share that multiply whole numbers: inputs of 16 bits, scales in the stream of codes.
#pragma once

#include "vec.hpp"

#if VECTORS
namespace panza::PANZA_ISA {

constexpr int AHEAD = 4096;  // bytes from what is read to what is fetched

static inline int at_least(int x, int unit) { return (x + unit - 1) / unit; }

// A unit: lines of codes that hold whole quads of 4 inputs.
template <int BITS> struct Unit;

template <> struct Unit<2> {
    static constexpr int LINES = 1, QUADS = 4;
    static inline void read(const uint8_t* p, I* c) {
        const I v = line(p), mask = all8(3);
        c[0] = both(v, mask), c[1] = both(right<2>(v), mask), c[2] = both(right<4>(v), mask),
        c[3] = both(right<6>(v), mask);
    }
    static void write(uint8_t* p, int quad, int code) { p[0] |= code << 2 * quad; }
};

// Two codes a byte. Of the last two quads, the low bits stand above the codes of the first two lines, the high bits
// in the third.
template <> struct Unit<3> {
    static constexpr int LINES = 3, QUADS = 8;
    static inline void read(const uint8_t* p, I* c) {
        const I a = line(p), b = line(p + LINE), d = line(p + 2 * LINE), low = all8(7), two = all8(3), top = all8(4);
        c[0] = both(a, low), c[1] = both(right<3>(a), low), c[2] = both(b, low), c[3] = both(right<3>(b), low);
        c[4] = both(d, low), c[5] = both(right<3>(d), low);
        c[6] = either(both(right<6>(a), two), both(right<4>(d), top));
        c[7] = either(both(right<6>(b), two), both(right<5>(d), top));
    }
    static void write(uint8_t* p, int quad, int code) {
        if (quad < 6) p[quad / 2 * LINE] |= code << 3 * (quad % 2);
        else p[(quad - 6) * LINE] |= (code & 3) << 6, p[2 * LINE] |= (code >> 2) << quad;
    }
};

template <> struct Unit<4> {
    static constexpr int LINES = 2, QUADS = 4;
    static inline void read(const uint8_t* p, I* c) {
        const I a = line(p), b = line(p + LINE), mask = all8(15);
        c[0] = both(a, mask), c[1] = both(right<4>(a), mask), c[2] = both(b, mask), c[3] = both(right<4>(b), mask);
    }
    static void write(uint8_t* p, int quad, int code) { p[quad / 2 * LINE] |= code << 4 * (quad % 2); }
};

template <> struct Unit<8> {
    static constexpr int LINES = 4, QUADS = 4;
    static inline void read(const uint8_t* p, I* c) {
        for (int k = 0; k < 4; k++) c[k] = line(p + k * LINE);
    }
    static void write(uint8_t* p, int quad, int code) { p[quad * LINE] = (uint8_t)code; }
};

static inline int inputs_of(int bits) { return bits == 3 ? 32 : 16; }  // of a unit
static inline int lines_of(int bits) { return bits * inputs_of(bits) / 32; }

// Scales or zeros of a group in the stream: one for all, or 16 numbers, a row each.
enum Form { ONE, HALF, FLOAT, BYTE };
constexpr int FORM_BYTES[] = {0, 32, 64, 16};

static inline uint16_t half(float x) { return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), 0)); }
static inline bool is_half(float x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half(x)))) == x; }

static inline Form form_of(const float* values, size_t count) {
    if (!values) return ONE;
    bool bytes = true, halves = true;
    for (size_t i = 0; i < count; i++) {
        bytes &= values[i] >= 0 && values[i] <= 255 && values[i] == (float)(int)values[i];
        halves &= is_half(values[i]);
    }
    return bytes ? BYTE : halves ? HALF : FLOAT;
}

// Number x of row `row`, as `form` says.
static inline void put(uint8_t* p, int form, int row, float x) {
    const uint16_t rounded = half(x);
    if (form == HALF) memcpy(p + 2 * row, &rounded, 2);
    if (form == FLOAT) memcpy(p + 4 * row, &x, 4);
    if (form == BYTE) p[row] = (uint8_t)x;
}

// That of W rows; part: which W of the block.
static inline F read_form(int form, const uint8_t* p, int part, float one) {
    if (form == HALF) return halves(p + part * W * 2);
    if (form == BYTE) return floats(bytes(p + part * W));
    if (form == FLOAT) return load((const float*)p + part * W);
    return set1(one);
}

// How a chunk of inputs was rounded.
struct Step { float step, shift; };  // shift: minus the sum of the chunk's inputs, as they were rounded

// Rounds `count` inputs to 16 bits, in two planes, 16 bytes for 8 inputs; what is beyond them in the last 8 is zero.
// Without `exact` the low plane will not be read.
static inline Step round_chunk(const float* x, int count, bool exact, int8_t* planes) {
    constexpr int LIMIT = 127 * 256 + 127;
    const __m256 positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)), none = _mm256_setzero_ps();
    __m256 most = none, wrong = none;  // wrong: not a number if one of them is not, or is infinite
    float tail[8] = {};
    memcpy(tail, x + count / 8 * 8, count % 8 * sizeof(float));
    for (int i = 0; i < count; i += 8) {
        const __m256 v = _mm256_loadu_ps(i + 8 <= count ? x + i : tail);
        most = _mm256_max_ps(most, _mm256_and_ps(v, positive));
        wrong = _mm256_fmadd_ps(v, none, wrong);
    }
    float mosts[8], wrongs[8], largest = 0, bad = 0;
    _mm256_storeu_ps(mosts, most);
    _mm256_storeu_ps(wrongs, wrong);
    for (int i = 0; i < 8; i++) largest = mosts[i] > largest ? mosts[i] : largest, bad += wrongs[i];
    const bool usable = bad == 0 && largest > 1e-30f;
    const __m256 inverse = _mm256_set1_ps(usable ? LIMIT / largest : 0.f);
    __m256i sums = _mm256_setzero_si256();
    for (int i = 0; i < count; i += 8, planes += 16) {
        const __m256 v = usable ? _mm256_loadu_ps(i + 8 <= count ? x + i : tail) : none;
        const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse));
        const __m256i high = _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(128)), 8),
                      low = _mm256_sub_epi32(q, _mm256_slli_epi32(high, 8));
        const __m256i words = _mm256_packs_epi32(high, low), bytes = _mm256_packs_epi16(words, words);
        _mm_storel_epi64((__m128i*)planes, _mm256_castsi256_si128(bytes));
        _mm_storel_epi64((__m128i*)(planes + 8), _mm256_extracti128_si256(bytes, 1));
        sums = _mm256_add_epi32(sums, exact ? q : _mm256_slli_epi32(high, 8));
    }
    int sum[8], all = 0;
    _mm256_storeu_si256((__m256i*)sum, sums);
    for (int i = 0; i < 8; i++) all += sum[i];
    const float step = largest / LIMIT + bad;
    return {step, -step * (float)all};
}

// There is too much work in a line of codes for some processors to look far enough ahead by themselves.
template <int LINES> static inline void fetch(const uint8_t* p) {
    for (int i = 0; i < LINES; i++) _mm_prefetch((const char*)p + AHEAD + i * LINE, _MM_HINT_T0);
}

static inline void store_rows(const F* y, float* out, int rows) {
    float all[BLOCK];
    for (int part = 0; part < PARTS; part++) store(all + part * W, y[part]);
    memcpy(out, all, rows * sizeof(float));
}

}  // namespace panza::PANZA_ISA
#endif
