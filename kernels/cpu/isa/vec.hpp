// Whole registers of floats and of bytes in one spelling for AVX-512 and AVX2. VECTORS says whether there are any.
//
// A block is 16 rows. Its codes lie in lines of 64 bytes, 4 bytes for each row: a register holds one line with
// AVX-512 and half of one, that of 8 rows, with AVX2.
#pragma once

#include "here.hpp"

#if defined(__AVX2__)
#define VECTORS 1
#else
#define VECTORS 0
#endif

#if VECTORS
namespace panza::PANZA_ISA {

constexpr int BLOCK = 16, LINE = 64;

#if defined(__AVX512VBMI__)
using F = __m512;
using I = __m512i;
constexpr int W = 16;  // floats of a register
static inline F set1(float x) { return _mm512_set1_ps(x); }
static inline F load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
static inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
static inline float total(F x) { return _mm512_reduce_add_ps(x); }
static inline F halves(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
static inline F bfloats(const uint8_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline I bytes(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
static inline F floats(I x) { return _mm512_cvtepi32_ps(x); }
static inline I line(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline I all8(int x) { return _mm512_set1_epi8((char)x); }
static inline I all32(int x) { return _mm512_set1_epi32(x); }
static inline I both(I a, I b) { return _mm512_and_si512(a, b); }
static inline I either(I a, I b) { return _mm512_or_si512(a, b); }
template <int N> static inline I right(I x) { return _mm512_srli_epi32(x, N); }
template <int N> static inline I left(I x) { return _mm512_slli_epi32(x, N); }
static inline I plus(I a, I b) { return _mm512_add_epi32(a, b); }
static inline I nothing() { return _mm512_setzero_si512(); }
#else
using F = __m256;
using I = __m256i;
constexpr int W = 8;
static inline F set1(float x) { return _mm256_set1_ps(x); }
static inline F load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
static inline F add(F a, F b) { return _mm256_add_ps(a, b); }
static inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
static inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
static inline float total(F x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline F halves(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
static inline F bfloats(const uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline I bytes(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
static inline F floats(I x) { return _mm256_cvtepi32_ps(x); }
static inline I line(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline I all8(int x) { return _mm256_set1_epi8((char)x); }
static inline I all32(int x) { return _mm256_set1_epi32(x); }
static inline I both(I a, I b) { return _mm256_and_si256(a, b); }
static inline I either(I a, I b) { return _mm256_or_si256(a, b); }
template <int N> static inline I right(I x) { return _mm256_srli_epi32(x, N); }
template <int N> static inline I left(I x) { return _mm256_slli_epi32(x, N); }
static inline I plus(I a, I b) { return _mm256_add_epi32(a, b); }
static inline I nothing() { return _mm256_setzero_si256(); }
#endif
constexpr int PARTS = BLOCK / W;  // registers of a block

// 8 codes of `bits` bits (at most 8) that start with the byte at p; reads 8 bytes.
static inline __m256i codes8(const uint8_t* p, int bits) {
    uint64_t v;
    memcpy(&v, p, 8);
    const __m256i fours = _mm256_setr_m128i(_mm_set1_epi32((int)v), _mm_set1_epi32((int)(v >> 4 * bits)));
    const __m256i at = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3), _mm256_set1_epi32(bits));
    return _mm256_and_si256(_mm256_srlv_epi32(fours, at), _mm256_set1_epi32((1 << bits) - 1));
}

// Four inputs in two planes of bytes, x = step (256 high + low), as the lanes of all rows read them.
static inline I quad(const int8_t* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return all32(x);
}

#if defined(__AVX512VBMI__)
// sum += codes times four inputs. Compilers move sums of the intrinsic between registers and memory for nothing.
static inline void add_quad(I& sum, I codes, const int8_t* x) {
#if defined(__GNUC__)
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*(const int32_t(*)[1])x));
#else
    sum = _mm512_dpbusd_epi32(sum, codes, quad(x));
#endif
}
#endif

// Sums over inputs of code times input, a row in each lane, exact in 32 bits. ROOM: of 16-bit sums, which must settle()
// before codes of at most c were added more than ROOM / (256 c) times. SLOW: an addition takes some cycles. Without
// EXACT the low plane is left out, which rounds inputs to 8 bits.
template <bool EXACT> struct Sum {
    I high = nothing(), low = nothing();
#if defined(__AVX512VBMI__)
    static constexpr int ROOM = 1 << 30;
    static constexpr bool SLOW = true;
    void add(I codes, const int8_t* x) {
        add_quad(high, codes, x);
        if constexpr (EXACT) add_quad(low, codes, x + 4);
    }
    void settle() {}
#else
    static constexpr int ROOM = 32767;
    static constexpr bool SLOW = false;
    I high16 = nothing(), low16 = nothing();
    void add(I codes, const int8_t* x) {
        high16 = _mm256_add_epi16(high16, _mm256_maddubs_epi16(codes, quad(x)));
        if constexpr (EXACT) low16 = _mm256_add_epi16(low16, _mm256_maddubs_epi16(codes, quad(x + 4)));
    }
    void settle() {
        const I one = _mm256_set1_epi16(1);
        high = plus(high, _mm256_madd_epi16(high16, one));
        if constexpr (EXACT) low = plus(low, _mm256_madd_epi16(low16, one));
        high16 = low16 = nothing();
    }
#endif
    void join(const Sum& other) { high = plus(high, other.high), low = plus(low, other.low); }
    I whole() const { return EXACT ? plus(left<8>(high), low) : left<8>(high); }
    F value() const { return floats(whole()); }
};

}  // namespace panza::PANZA_ISA
#endif
