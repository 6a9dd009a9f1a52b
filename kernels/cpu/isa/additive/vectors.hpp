// Registers of bytes on AVX-512, AVX2 and NEON under the same names.
#pragma once

#include "../here.hpp"

#if defined(__AVX512VBMI__) || defined(__AVX2__) || defined(__ARM_NEON)
#define PANZA_SHUFFLES

namespace panza::PANZA_ISA {

#if defined(__AVX512VBMI__)
using Bytes = __m512i;
using Floats = __m512;
static inline Bytes load(const uint8_t* p) { return _mm512_load_si512(p); }
static inline Bytes zero() { return _mm512_setzero_si512(); }
static inline Bytes add8(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
static inline Bytes add16(Bytes a, Bytes b) { return _mm512_add_epi16(a, b); }
static inline Bytes sub16(Bytes a, Bytes b) { return _mm512_sub_epi16(a, b); }
static inline Bytes add32(Bytes a, Bytes b) { return _mm512_add_epi32(a, b); }
template <int N> static inline Bytes right16(Bytes a) { return _mm512_srli_epi16(a, N); }
template <int N> static inline Bytes left16(Bytes a) { return _mm512_slli_epi16(a, N); }
template <int N> static inline Bytes right32(Bytes a) { return _mm512_srli_epi32(a, N); }
template <int N> static inline Bytes left32(Bytes a) { return _mm512_slli_epi32(a, N); }
static inline Bytes nibbles(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
static inline Bytes low_words(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi32(0xffff)); }
static inline Bytes sixteen(const uint8_t* p) { return _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)p)); }
static inline Bytes pick(Bytes table, Bytes index) { return _mm512_shuffle_epi8(table, index); }
static inline Floats whole(Bytes a) { return _mm512_cvtepi32_ps(a); }
static inline Floats loadf(const float* p) { return _mm512_loadu_ps(p); }
static inline void storef(float* p, Floats a) { _mm512_storeu_ps(p, a); }
static inline Floats all(float a) { return _mm512_set1_ps(a); }
static inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, _mm512_abs_ps(b)); }
// 64 numbers of 0 to 2^(8 + LOW) - 1, rounded: their low parts and their high ones.
template <int LOW>
static inline void narrow(const Floats* v, uint8_t* low, uint8_t* high) {
    const Bytes a = _mm512_packus_epi32(_mm512_cvtps_epi32(v[0]), _mm512_cvtps_epi32(v[1]));
    const Bytes b = _mm512_packus_epi32(_mm512_cvtps_epi32(v[2]), _mm512_cvtps_epi32(v[3]));
    const Bytes mask = _mm512_set1_epi16((1 << LOW) - 1);
    const Bytes order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const Bytes l = _mm512_packus_epi16(_mm512_and_si512(a, mask), _mm512_and_si512(b, mask));
    const Bytes h = _mm512_packus_epi16(_mm512_srli_epi16(a, LOW), _mm512_srli_epi16(b, LOW));
    _mm512_store_si512(low, _mm512_permutexvar_epi32(order, l));
    _mm512_store_si512(high, _mm512_permutexvar_epi32(order, h));
}
#elif defined(__AVX2__)
using Bytes = __m256i;
using Floats = __m256;
static inline Bytes load(const uint8_t* p) { return _mm256_load_si256((const __m256i*)p); }
static inline Bytes zero() { return _mm256_setzero_si256(); }
static inline Bytes add8(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
static inline Bytes add16(Bytes a, Bytes b) { return _mm256_add_epi16(a, b); }
static inline Bytes sub16(Bytes a, Bytes b) { return _mm256_sub_epi16(a, b); }
static inline Bytes add32(Bytes a, Bytes b) { return _mm256_add_epi32(a, b); }
template <int N> static inline Bytes right16(Bytes a) { return _mm256_srli_epi16(a, N); }
template <int N> static inline Bytes left16(Bytes a) { return _mm256_slli_epi16(a, N); }
template <int N> static inline Bytes right32(Bytes a) { return _mm256_srli_epi32(a, N); }
template <int N> static inline Bytes left32(Bytes a) { return _mm256_slli_epi32(a, N); }
static inline Bytes nibbles(Bytes a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
static inline Bytes low_words(Bytes a) { return _mm256_and_si256(a, _mm256_set1_epi32(0xffff)); }
static inline Bytes sixteen(const uint8_t* p) { return _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)p)); }
static inline Bytes pick(Bytes table, Bytes index) { return _mm256_shuffle_epi8(table, index); }
static inline Floats whole(Bytes a) { return _mm256_cvtepi32_ps(a); }
static inline Floats loadf(const float* p) { return _mm256_loadu_ps(p); }
static inline void storef(float* p, Floats a) { _mm256_storeu_ps(p, a); }
static inline Floats all(float a) { return _mm256_set1_ps(a); }
static inline Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
static inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, _mm256_andnot_ps(_mm256_set1_ps(-0.f), b)); }
template <int LOW>
static inline void narrow(const Floats* v, uint8_t* low, uint8_t* high) {
    const Bytes mask = _mm256_set1_epi16((1 << LOW) - 1), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < 2; i++, v += 4, low += 32, high += 32) {
        const Bytes a = _mm256_packus_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
        const Bytes b = _mm256_packus_epi32(_mm256_cvtps_epi32(v[2]), _mm256_cvtps_epi32(v[3]));
        const Bytes l = _mm256_packus_epi16(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
        const Bytes h = _mm256_packus_epi16(_mm256_srli_epi16(a, LOW), _mm256_srli_epi16(b, LOW));
        _mm256_store_si256((__m256i*)low, _mm256_permutevar8x32_epi32(l, order));
        _mm256_store_si256((__m256i*)high, _mm256_permutevar8x32_epi32(h, order));
    }
}
#else
using Bytes = uint8x16_t;
using Floats = float32x4_t;
static inline uint16x8_t w(Bytes a) { return vreinterpretq_u16_u8(a); }
static inline uint32x4_t d(Bytes a) { return vreinterpretq_u32_u8(a); }
static inline Bytes b(uint16x8_t a) { return vreinterpretq_u8_u16(a); }
static inline Bytes b(uint32x4_t a) { return vreinterpretq_u8_u32(a); }
static inline Bytes load(const uint8_t* p) { return vld1q_u8(p); }
static inline Bytes zero() { return vdupq_n_u8(0); }
static inline Bytes add8(Bytes x, Bytes y) { return vaddq_u8(x, y); }
static inline Bytes add16(Bytes x, Bytes y) { return b(vaddq_u16(w(x), w(y))); }
static inline Bytes sub16(Bytes x, Bytes y) { return b(vsubq_u16(w(x), w(y))); }
static inline Bytes add32(Bytes x, Bytes y) { return b(vaddq_u32(d(x), d(y))); }
template <int N> static inline Bytes right16(Bytes a) { return b(vshrq_n_u16(w(a), N)); }
template <int N> static inline Bytes left16(Bytes a) { return b(vshlq_n_u16(w(a), N)); }
template <int N> static inline Bytes right32(Bytes a) { return b(vshrq_n_u32(d(a), N)); }
template <int N> static inline Bytes left32(Bytes a) { return b(vshlq_n_u32(d(a), N)); }
static inline Bytes nibbles(Bytes a) { return vandq_u8(a, vdupq_n_u8(15)); }
static inline Bytes low_words(Bytes a) { return b(vandq_u32(d(a), vdupq_n_u32(0xffff))); }
static inline Bytes sixteen(const uint8_t* p) { return vld1q_u8(p); }
static inline Bytes pick(Bytes table, Bytes index) { return vqtbl1q_u8(table, index); }
static inline Floats whole(Bytes a) { return vcvtq_f32_u32(d(a)); }
static inline Floats loadf(const float* p) { return vld1q_f32(p); }
static inline void storef(float* p, Floats a) { vst1q_f32(p, a); }
static inline Floats all(float a) { return vdupq_n_f32(a); }
static inline Floats times(Floats x, Floats y) { return vmulq_f32(x, y); }
static inline Floats fma(Floats x, Floats y, Floats z) { return vfmaq_f32(z, x, y); }
static inline Floats larger(Floats x, Floats y) { return vmaxq_f32(x, vabsq_f32(y)); }
template <int LOW>
static inline void narrow(const Floats* v, uint8_t* low, uint8_t* high) {
    for (int i = 0; i < 8; i++, v += 2, low += 8, high += 8) {
        const uint16x8_t a = vcombine_u16(vmovn_u32(vcvtnq_u32_f32(v[0])), vmovn_u32(vcvtnq_u32_f32(v[1])));
        vst1_u8(low, vmovn_u16(vandq_u16(a, vdupq_n_u16((1 << LOW) - 1))));
        vst1_u8(high, vshrn_n_u16(a, LOW));
    }
}
#endif

constexpr int LANES = sizeof(Floats) / 4, ROWS = sizeof(Bytes);  // a chunk of rows has one byte each in a register

static inline float largest(Floats a) {
    float lanes[LANES], peak = 0;
    storef(lanes, a);
    for (int i = 0; i < LANES; i++) peak = lanes[i] > peak ? lanes[i] : peak;
    return peak;
}

// out = x / its largest; `count` floats and zeros up to a multiple of 16. Returns the largest; NaN, and makes zeros, if
// a float is NaN or infinite.
static inline float normalised(const float* x, int count, float* out) {
    const int whole = (count + 15) / 16 * 16;
    memcpy(out, x, count * sizeof(float));
    for (int i = count; i < whole; i++) out[i] = 0;
    Floats peaks = all(0), wrong = all(0);
    for (int i = 0; i < whole; i += LANES) {
        peaks = larger(peaks, loadf(out + i));
        wrong = fma(loadf(out + i), all(0), wrong);  // NaN if it is not finite
    }
    const float peak = largest(peaks) + 1e-30f;
    float lanes[LANES], sum = 0;
    storef(lanes, wrong);
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    for (int i = 0; i < whole; i += LANES) storef(out + i, sum == 0 ? times(loadf(out + i), all(1 / peak)) : all(0));
    return peak + sum;
}

// Where row r of a chunk lies in a register of bytes: sums of 32 bits come out four apart, in the order of the rows.
static inline int place(int r) { return 4 * (r % LANES) + r / LANES; }

// Sums of bytes, each in 16 bits: of all words as they are, and of their odd bytes.
struct Sums {
    Bytes words, odd;
    inline void add(Bytes v) {
        words = add16(words, v);
        odd = add16(odd, right16<8>(v));
    }
    inline Bytes even() const { return sub16(words, left16<8>(odd)); }
};

// y += scale (step (low + 2^LOW high) + offset), or = if `first`, for a chunk of rows.
template <int LOW>
static inline void flush(const Sums& low, const Sums& high, float step, float offset, const float* scale, bool first,
                         float* y) {
    const Bytes l = low.even(), h = high.even();
    const Bytes sums[4] = {
        add32(left32<LOW>(low_words(h)), low_words(l)),
        add32(left32<LOW>(low_words(high.odd)), low_words(low.odd)),
        add32(left32<LOW>(right32<16>(h)), right32<16>(l)),
        add32(left32<LOW>(right32<16>(high.odd)), right32<16>(low.odd)),
    };
    for (int j = 0; j < 4; j++, y += LANES, scale += LANES)
        storef(y, fma(loadf(scale), fma(whole(sums[j]), all(step), all(offset)), first ? all(0) : loadf(y)));
}

}  // namespace panza::PANZA_ISA
#endif
