// Books that are too large for tables of products: the words themselves, as fp16 where the set widens that, so that a
// book of 2^16 takes 1 MB of the level-2 cache. Codes stay as they lie in the file; four rows go together and share the
// inputs.
//
// Packed: what the unit of the words is worth, up to 64 bytes, then the words.
#pragma once

#include "plan.hpp"

namespace panza::PANZA_ISA {

struct Walk {
    static constexpr int ROWS = 4;

    static size_t count(const AdditiveView& w) { return ((size_t)w.books << w.bits) * w.group; }

#if defined(__AVX2__) || defined(__ARM_NEON)
    using Word = uint16_t;
    static size_t packed(const AdditiveView& w) { return 64 + count(w) * sizeof(Word); }
    static const Word* words(const AdditiveView& w) { return (const Word*)((const uint8_t*)w.packed + 64); }
    static float unit(const AdditiveView& w) { return *(const float*)w.packed; }

    static void pack(const AdditiveView& w, void* out) {
        float peak = 1e-30f;
        for (size_t i = 0; i < count(w); i++) peak = fabsf(w.words[i]) > peak ? fabsf(w.words[i]) : peak;
        int exponent;
        frexpf(peak, &exponent);
        *(float*)out = ldexpf(1, exponent - 15);  // a power of two: words that are fp16 stay exact
        Word* to = (Word*)((uint8_t*)out + 64);
        for (size_t i = 0; i < count(w); i += 8) narrow(w.words + i, ldexpf(1, 15 - exponent), to + i);
    }
#else
    using Word = float;
    static size_t packed(const AdditiveView&) { return 0; }
    static void pack(const AdditiveView&, void*) {}
    static const Word* words(const AdditiveView& w) { return w.words; }
    static float unit(const AdditiveView&) { return 1; }
#endif

#if defined(__AVX2__)
    using Eight = __m256;
    static inline Eight none() { return _mm256_setzero_ps(); }
    static inline Eight load(const float* p) { return _mm256_loadu_ps(p); }
    static inline Eight word(const Word* p) { return _mm256_cvtph_ps(_mm_load_si128((const __m128i*)p)); }
    static inline Eight fma(Eight a, Eight b, Eight c) { return _mm256_fmadd_ps(a, b, c); }
    static inline float sum(Eight a) {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }
    static void narrow(const float* x, float unit, Word* out) {
        _mm_storeu_si128((__m128i*)out, _mm256_cvtps_ph(_mm256_mul_ps(_mm256_loadu_ps(x), _mm256_set1_ps(unit)), 0));
    }
#elif defined(__ARM_NEON)
    struct Eight { float32x4_t a, b; };
    static inline Eight none() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
    static inline Eight load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
    static inline Eight word(const Word* p) {
        const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(p));
        return {vcvt_f32_f16(vget_low_f16(h)), vcvt_f32_f16(vget_high_f16(h))};
    }
    static inline Eight fma(Eight x, Eight y, Eight z) { return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)}; }
    static inline float sum(Eight x) { return vaddvq_f32(vaddq_f32(x.a, x.b)); }
    static void narrow(const float* x, float unit, Word* out) {
        const float16x4_t a = vcvt_f16_f32(vmulq_n_f32(vld1q_f32(x), unit));
        const float16x4_t b = vcvt_f16_f32(vmulq_n_f32(vld1q_f32(x + 4), unit));
        vst1q_u16(out, vreinterpretq_u16_f16(vcombine_f16(a, b)));
    }
#else
    struct Eight { float v[8]; };
    static inline Eight none() { return {}; }
    static inline Eight load(const float* p) {
        Eight x;
        memcpy(x.v, p, sizeof x.v);
        return x;
    }
    static inline Eight word(const Word* p) { return load(p); }
    static inline Eight fma(Eight x, Eight y, Eight z) {
        for (int i = 0; i < 8; i++) z.v[i] += x.v[i] * y.v[i];
        return z;
    }
    static inline float sum(Eight x) {
        return ((x.v[0] + x.v[4]) + (x.v[1] + x.v[5])) + ((x.v[2] + x.v[6]) + (x.v[3] + x.v[7]));
    }
#endif

    static void multiply(const AdditiveView& w, const Inputs& in, int first, int last, float* y, int ldy) {
        const auto few = w.bits == 16 && w.books == 1 && w.group == 8 ? rows<true> : rows<false>;
        for (int row = first; row < last; row += ROWS)
            for (int t = 0; t < in.tokens; t++)
                few(w, in.x + (size_t)t * w.D, row, least(ROWS, last - row), y + (size_t)t * ldy + row);
    }

    // PLAIN: one book of 2^16 words of eight. Beyond `count` rows the first is done again.
    template <bool PLAIN>
    static void rows(const AdditiveView& w, const float* x, int row, int count, float* y) {
        const int groups = scale_groups(w), width = w.D / groups;
        const uint8_t* codes[ROWS];
        float sums[ROWS] = {};
        for (int r = 0; r < ROWS; r++) codes[r] = w.codes + (size_t)(row + (r < count ? r : 0)) * w.stride;
        size_t at = 0;  // in bits
        for (int g = 0; g < groups; g++) {
            Eight parts[ROWS];
            for (int r = 0; r < ROWS; r++) parts[r] = none();
            for (int d = g * width; d < (g + 1) * width; d += PLAIN ? 8 : w.group)
                for (int m = 0; m < (PLAIN ? 1 : w.books); m++, at += PLAIN ? 16 : w.bits)
                    for (int j = 0; j < (PLAIN ? 8 : w.group); j += 8) {
                        const Eight inputs = load(x + d + j);
                        for (int r = 0; r < ROWS; r++) {
                            const size_t code = PLAIN ? pair(codes[r] + at / 8)
                                                      : ((size_t)m << w.bits) + window(codes[r], at, w.bits);
                            parts[r] = fma(inputs, word(words(w) + (PLAIN ? code * 8 : code * w.group + j)), parts[r]);
                        }
                    }
            for (int r = 0; r < count; r++)
                sums[r] += sum(parts[r]) * (w.scale.values ? w.scale.values[(size_t)(row + r) * groups + g] : 1);
        }
        for (int r = 0; r < count; r++) y[r] = sums[r] * unit(w);
    }

    static inline uint32_t pair(const uint8_t* p) {
        uint16_t value;
        memcpy(&value, p, 2);
        return value;
    }
};

}  // namespace panza::PANZA_ISA
