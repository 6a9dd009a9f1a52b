// Products of many tokens in whole numbers of 8 bits, where a weight need not be multiplied exactly.
//
// Rows stand side by side as in matmul.cpp, but in quads: a register holds four inputs of 16 rows, unsigned, and a
// token's four inputs meet all of them in one instruction. Every DEPTH inputs of a token, and of a row, share a step.
#include "vec.hpp"

namespace panza::PANZA_ISA {

#if defined(__AVX512VBMI__)
#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 12")  // or the sums, read in a loop, lie in memory
#else
#define UNROLL
#endif
constexpr int STRIP = 12, BLOCKS = 2, STEP = 4;  // 24 of 32 registers are sums; widths of a strip are multiples of STEP

static int width_of(int tokens) { return (tokens + STEP - 1) / STEP * STEP; }
static int quads_of(int inputs) { return (inputs + 3) / 4; }

// A strip is parts of DEPTH inputs: for each token its step and the sum of its numbers, then [quad][token][4].
struct Part {
    float step[STRIP];
    int32_t sum[STRIP];
    int8_t numbers[Matmul8::DEPTH / 4 * STRIP * 4];
};

static size_t strip_bytes(int D) { return (size_t)((D + Matmul8::DEPTH - 1) / Matmul8::DEPTH) * sizeof(Part); }

// `count` inputs of token t; a step that is not a number if one of them is not finite.
static void round_token(const float* x, int count, int t, int width, Part* part) {
    const __m512 none = _mm512_setzero_ps();
    __m512 most = none, wrong = none;
    for (int i = 0; i < count; i += 16) {
        const __mmask16 there = (__mmask16)(count - i < 16 ? (1 << (count - i)) - 1 : 0xffff);
        const __m512 v = _mm512_maskz_loadu_ps(there, x + i);
        most = _mm512_max_ps(most, _mm512_abs_ps(v));
        wrong = _mm512_fmadd_ps(v, none, wrong);
    }
    const float largest = _mm512_reduce_max_ps(most), bad = _mm512_reduce_add_ps(wrong);
    const __m512 inverse = _mm512_set1_ps(bad == 0 && largest > 1e-30f ? 127 / largest : 0);
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < count; i += 16) {
        const __mmask16 there = (__mmask16)(count - i < 16 ? (1 << (count - i)) - 1 : 0xffff);
        const __m512i q = bad == 0 ? _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(there, x + i), inverse))
                                   : _mm512_setzero_si512();
        sum = _mm512_add_epi32(sum, q);
        int32_t four[4];
        _mm_storeu_si128((__m128i*)four, _mm512_cvtepi32_epi8(q));
        for (int k = 0; k < 4 && i + 4 * k < count; k++)
            memcpy(part->numbers + ((size_t)(i / 4 + k) * width + t) * 4, four + k, 4);
    }
    part->step[t] = largest / 127 + bad;
    part->sum[t] = _mm512_reduce_add_epi32(sum);
}

static void strip(const float* x, size_t ldx, int tokens, int D, void* out) {
    const int width = width_of(tokens);
    memset(out, 0, strip_bytes(D));
    for (int d = 0, p = 0; d < D; d += Matmul8::DEPTH, p++)
        for (int t = 0; t < tokens; t++)
            round_token(x + t * ldx + d, D - d < Matmul8::DEPTH ? D - d : Matmul8::DEPTH, t, width, (Part*)out + p);
}

// A block of floats (depth, 16), depth at most DEPTH: value = step (number - 128).
static void block(const float* x, int depth, uint8_t* out, float* step) {
    __m512 most = _mm512_setzero_ps();
    for (int k = 0; k < depth; k++) most = _mm512_max_ps(most, _mm512_abs_ps(load(x + k * BLOCK)));
    const __m512 steps = _mm512_mul_ps(most, _mm512_set1_ps(1 / 127.f));
    const __mmask16 some = _mm512_cmp_ps_mask(most, _mm512_set1_ps(1e-30f), _CMP_GT_OQ);
    const __m512 inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(1), steps);
    store(step, steps);
    for (int k = 0; k < depth; k += 4, out += LINE) {
        __m512i four = _mm512_setzero_si512();
        for (int i = 3; i >= 0; i--) {
            const __m512i q = k + i < depth ? _mm512_cvtps_epi32(mul(load(x + (k + i) * BLOCK), inverse)) : nothing();
            four = _mm512_or_si512(_mm512_slli_epi32(four, 8), _mm512_and_si512(q, _mm512_set1_epi32(255)));
        }
        _mm512_storeu_si512(out, _mm512_xor_si512(four, all8(-128)));
    }
}

// Sums of T tokens and B blocks over `quads`, added to y (T, ldy) or in its place.
template <int T, int B>
static void tile(const Part* x, const uint8_t* panel, size_t stride, int quads, const float* step, const float* offset,
                 float* y, size_t ldy, bool adds) {
    __m512i sums[T][B];
    UNROLL
    for (int t = 0; t < T; t++)
        UNROLL
        for (int b = 0; b < B; b++) sums[t][b] = _mm512_set1_epi32(-128 * x->sum[t]);
    const int8_t* numbers = x->numbers;
    for (int q = 0; q < quads; q++, panel += LINE, numbers += 4 * T) {
        __m512i w[B];
        UNROLL
        for (int b = 0; b < B; b++) w[b] = _mm512_loadu_si512(panel + b * stride);
        UNROLL
        for (int t = 0; t < T; t++)
            UNROLL
            for (int b = 0; b < B; b++) add_quad(sums[t][b], w[b], numbers + 4 * t);
    }
    UNROLL
    for (int b = 0; b < B; b++) {
        const F steps = load(step + b * BLOCK), offsets = load(offset + b * BLOCK);
        UNROLL
        for (int t = 0; t < T; t++) {
            const F all = mul(offsets, set1(x->step[t] * (float)x->sum[t]));
            const F made = fma(floats(sums[t][b]), mul(steps, set1(x->step[t])), all);
            float* to = y + t * ldy + b * BLOCK;
            store(to, adds ? add(load(to), made) : made);
        }
    }
}

template <int B>
static void tiles(const Part* x, const uint8_t* panel, size_t stride, int quads, const float* step, const float* offset,
                  float* y, size_t ldy, int tokens, bool adds) {
    const int width = width_of(tokens);
    if (width == STEP) return tile<STEP, B>(x, panel, stride, quads, step, offset, y, ldy, adds);
    if (width == 2 * STEP) return tile<2 * STEP, B>(x, panel, stride, quads, step, offset, y, ldy, adds);
    tile<STRIP, B>(x, panel, stride, quads, step, offset, y, ldy, adds);
}

static void multiply(const void* strip, int tokens, int from, const uint8_t* panel, int blocks, int depth,
                     const float* step, const float* offset, float* y, int ldy, bool adds) {
    const Part* x = (const Part*)strip + from / Matmul8::DEPTH;
    const size_t stride = (size_t)quads_of(depth) * LINE;
    int b = 0;
    for (; b + BLOCKS <= blocks; b += BLOCKS)
        tiles<BLOCKS>(x, panel + b * stride, stride, quads_of(depth), step + b * BLOCK, offset + b * BLOCK,
                      y + b * BLOCK, ldy, tokens, adds);
    if (b < blocks)
        tiles<1>(x, panel + b * stride, stride, quads_of(depth), step + b * BLOCK, offset + b * BLOCK, y + b * BLOCK,
                 ldy, tokens, adds);
}

const Matmul8 MATMUL8 = {STRIP, strip_bytes, strip, block, multiply};
#else
const Matmul8 MATMUL8 = {};
#endif

}  // namespace panza::PANZA_ISA
