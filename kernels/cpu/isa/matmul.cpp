// Products of many tokens, and of a few with a weight of halves.
//
// Rows of the weight lie side by side in blocks of 16, (depth, 16) floats each, and tokens in strips, (depth, width):
// a step along the depth multiplies each number of a strip with registers of rows, and sums stay in registers.
#include "vec.hpp"

namespace panza::PANZA_ISA {

#if VECTORS && defined(__AVX512VBMI__)
constexpr int STRIP = 12, BLOCKS = 2;  // 24 of 32 registers are sums
#elif VECTORS
constexpr int STRIP = 6, BLOCKS = 1;   // 12 of 16
#else
constexpr int BLOCK = 16, STRIP = 4, BLOCKS = 1;
#endif
constexpr int STEP = STRIP < 6 ? 1 : STRIP / 3;  // widths of a strip are its multiples

static int width_of(int tokens) { return (tokens + STEP - 1) / STEP * STEP; }

static void transpose(const float* x, size_t ldx, int rows, int depth, float* out, int width) {
    int r = 0;
#if VECTORS
    for (; r + 4 <= rows; r += 4) {
        const float* p = x + r * ldx;
        int k = 0;
        for (; k + 4 <= depth; k += 4) {
            __m128 a = _mm_loadu_ps(p + k), b = _mm_loadu_ps(p + ldx + k), c = _mm_loadu_ps(p + 2 * ldx + k),
                   d = _mm_loadu_ps(p + 3 * ldx + k);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            float* q = out + (size_t)k * width + r;
            _mm_storeu_ps(q, a), _mm_storeu_ps(q + width, b), _mm_storeu_ps(q + 2 * width, c),
                _mm_storeu_ps(q + 3 * width, d);
        }
        for (; k < depth; k++)
            for (int i = 0; i < 4; i++) out[(size_t)k * width + r + i] = p[i * ldx + k];
    }
#endif
    for (; r < width; r++)
        for (int k = 0; k < depth; k++) out[(size_t)k * width + r] = r < rows ? x[r * ldx + k] : 0.f;
}

static void strip(const float* x, size_t ldx, int tokens, int depth, float* out) {
    transpose(x, ldx, tokens, depth, out, width_of(tokens));
}
static void block(const float* x, size_t ldx, int rows, int depth, float* out) {
    transpose(x, ldx, rows, depth, out, BLOCK);
}

// Sums of T tokens and B blocks over the depth, to where `y` says: added to what is there, or instead of it.
template <int T, int B>
static void tile(const float* x, const float* panel, size_t stride, int depth, float* y, size_t ldy, int tokens,
                 int rows, bool adds) {
#if VECTORS
    F sums[T][B * PARTS];
    for (int t = 0; t < T; t++)
        for (int i = 0; i < B * PARTS; i++) sums[t][i] = set1(0);
    for (int k = 0; k < depth; k++, x += T, panel += BLOCK) {
        F w[B * PARTS];
        for (int i = 0; i < B * PARTS; i++) w[i] = load(panel + i / PARTS * stride + i % PARTS * W);
        for (int t = 0; t < T; t++) {
            const F v = set1(x[t]);
            for (int i = 0; i < B * PARTS; i++) sums[t][i] = fma(v, w[i], sums[t][i]);
        }
    }
    if (rows == B * BLOCK && tokens == T) {
        for (int t = 0; t < T; t++)
            for (int i = 0; i < B * PARTS; i++) {
                float* p = y + t * ldy + i * W;
                store(p, adds ? add(load(p), sums[t][i]) : sums[t][i]);
            }
        return;
    }
    float all[T][B * BLOCK];
    for (int t = 0; t < T; t++)
        for (int i = 0; i < B * PARTS; i++) store(all[t] + i * W, sums[t][i]);
#else
    float all[T][B * BLOCK] = {};
    for (int k = 0; k < depth; k++, x += T, panel += BLOCK)
        for (int t = 0; t < T; t++)
            for (int i = 0; i < B * BLOCK; i++) all[t][i] += x[t] * panel[i / BLOCK * stride + i % BLOCK];
#endif
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < rows; i++) y[t * ldy + i] = adds ? y[t * ldy + i] + all[t][i] : all[t][i];
}

template <int B>
static void tiles(const float* x, int width, const float* panel, size_t stride, int depth, float* y, size_t ldy,
                  int tokens, int rows, bool adds) {
    if (width == STRIP) return tile<STRIP, B>(x, panel, stride, depth, y, ldy, tokens, rows, adds);
    if (width == STEP) return tile<STEP, B>(x, panel, stride, depth, y, ldy, tokens, rows, adds);
    if (width == 2 * STEP) return tile<2 * STEP, B>(x, panel, stride, depth, y, ldy, tokens, rows, adds);
    tile<3 * STEP, B>(x, panel, stride, depth, y, ldy, tokens, rows, adds);
}

static void multiply_panel(const float* strip, int tokens, int from, const float* panel, int rows, int depth, float* y,
                           int ldy, bool adds) {
    const int width = width_of(tokens);
    const size_t stride = (size_t)depth * BLOCK;
    const float* x = strip + (size_t)from * width;
    for (int n = 0; n < rows; n += BLOCKS * BLOCK, panel += BLOCKS * stride) {
        const int left = rows - n;
        if (left > (BLOCKS - 1) * BLOCK)
            tiles<BLOCKS>(x, width, panel, stride, depth, y + n, ldy, tokens,
                          left < BLOCKS * BLOCK ? left : BLOCKS * BLOCK, adds);
        else tiles<1>(x, width, panel, stride, depth, y + n, ldy, tokens, left, adds);
    }
}

#if VECTORS
// The product of one row of D halves with T tokens, each D floats on from the one before.
template <int T, bool BFLOAT>
static inline void row_of_halves(const uint16_t* w, const float* x, int D, float* y, int ldy) {
    constexpr int WAYS = 4;
    F sums[T][WAYS];
    for (int t = 0; t < T; t++)
        for (int i = 0; i < WAYS; i++) sums[t][i] = set1(0);
    int d = 0;
    for (; d + WAYS * W <= D; d += WAYS * W)
        for (int i = 0; i < WAYS; i++) {
            const uint8_t* p = (const uint8_t*)(w + d + i * W);
            if (i * W % 32 == 0) _mm_prefetch((const char*)p + 4096, _MM_HINT_T0);
            const F v = BFLOAT ? bfloats(p) : halves(p);
            for (int t = 0; t < T; t++) sums[t][i] = fma(v, load(x + (size_t)t * D + d + i * W), sums[t][i]);
        }
    for (; d < D; d += W) {  // the rest, beyond the row filled with zeros
        const int count = D - d < W ? D - d : W;
        uint16_t last[W] = {};
        memcpy(last, w + d, count * sizeof *w);
        const F v = BFLOAT ? bfloats((const uint8_t*)last) : halves((const uint8_t*)last);
        for (int t = 0; t < T; t++) {
            float some[W] = {};
            memcpy(some, x + (size_t)t * D + d, count * sizeof *x);
            sums[t][0] = fma(v, load(some), sums[t][0]);
        }
    }
    for (int t = 0; t < T; t++)
        y[(size_t)t * ldy] = total(add(add(sums[t][0], sums[t][1]), add(sums[t][2], sums[t][3])));
}

template <int T>
static void rows_of_halves(const uint16_t* w, bool bfloat, const float* x, int D, int first, int last, float* y,
                           int ldy) {
    for (int n = first; n < last; n++) {
        if (bfloat) row_of_halves<T, true>(w + (size_t)n * D, x, D, y + n, ldy);
        else row_of_halves<T, false>(w + (size_t)n * D, x, D, y + n, ldy);
    }
}

static void multiply_halves(const uint16_t* w, bool bfloat, const float* x, int D, int tokens, int first, int last,
                            float* y, int ldy) {
    if (tokens == 1) rows_of_halves<1>(w, bfloat, x, D, first, last, y, ldy);
    if (tokens == 2) rows_of_halves<2>(w, bfloat, x, D, first, last, y, ldy);
    if (tokens == 3) rows_of_halves<3>(w, bfloat, x, D, first, last, y, ldy);
    if (tokens == 4) rows_of_halves<4>(w, bfloat, x, D, first, last, y, ldy);
}

const Matmul MATMUL = {STRIP, strip, block, multiply_panel, multiply_halves};
#else
const Matmul MATMUL = {STRIP, strip, block, multiply_panel, nullptr};
#endif

}  // namespace panza::PANZA_ISA
