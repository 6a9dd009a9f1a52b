// Products and transforms of floats, mostly in plain loops that the compiler turns into vectors.
#include "vec.hpp"

namespace panza::PANZA_ISA {

static float dot(const float* a, const float* b, int n) {
    float sums[16] = {};
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) sums[j] += a[i + j] * b[i + j];
    float sum = 0;
    for (; i < n; i++) sum += a[i] * b[i];
    for (int j = 0; j < 16; j++) sum += sums[j];
    return sum;
}

static void add_scaled(float* y, const float* x, float scale, int n) {
    for (int i = 0; i < n; i++) y[i] += scale * x[i];
}

// n floats times `norm`, each `block` of them transformed.
static void hadamard_plain(float* x, int n, int block, float norm) {
    for (int i = 0; i < n; i++) x[i] *= norm;
    for (int half = 1; half < block; half *= 2)
        for (int i = 0; i < n; i += 2 * half)
            for (int j = i; j < i + half; j++) {
                const float a = x[j], b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
}

// The same of 16 floats: blocks of 2, 4, 8 or 16.
#if defined(__AVX512F__)
// With what stands a few places away: the sum in the lower place, the difference in the upper one.
static inline __m512 butterfly(__m512 v, __m512 swapped, __mmask16 upper) {
    return _mm512_mask_sub_ps(_mm512_add_ps(v, swapped), upper, swapped, v);
}
static void hadamard16(float* x, int block, float norm) {
    __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(norm));
    v = butterfly(v, _mm512_permute_ps(v, 0xb1), 0xaaaa);
    if (block >= 4) v = butterfly(v, _mm512_permute_ps(v, 0x4e), 0xcccc);
    if (block >= 8) v = butterfly(v, _mm512_shuffle_f32x4(v, v, 0xb1), 0xf0f0);
    if (block >= 16) v = butterfly(v, _mm512_shuffle_f32x4(v, v, 0x4e), 0xff00);
    _mm512_storeu_ps(x, v);
}
#elif defined(__AVX2__)
static inline __m256 hadamard8(__m256 v, int block) {
    __m256 swapped = _mm256_permute_ps(v, 0xb1);
    v = _mm256_blend_ps(_mm256_add_ps(v, swapped), _mm256_sub_ps(swapped, v), 0xaa);
    swapped = _mm256_permute_ps(v, 0x4e);
    if (block >= 4) v = _mm256_blend_ps(_mm256_add_ps(v, swapped), _mm256_sub_ps(swapped, v), 0xcc);
    swapped = _mm256_permute2f128_ps(v, v, 1);
    if (block >= 8) v = _mm256_blend_ps(_mm256_add_ps(v, swapped), _mm256_sub_ps(swapped, v), 0xf0);
    return v;
}
static void hadamard16(float* x, int block, float norm) {
    const __m256 scale = _mm256_set1_ps(norm);
    __m256 a = hadamard8(_mm256_mul_ps(_mm256_loadu_ps(x), scale), block);
    __m256 b = hadamard8(_mm256_mul_ps(_mm256_loadu_ps(x + 8), scale), block);
    if (block >= 16) {
        const __m256 sum = _mm256_add_ps(a, b);
        b = _mm256_sub_ps(a, b);
        a = sum;
    }
    _mm256_storeu_ps(x, a);
    _mm256_storeu_ps(x + 8, b);
}
#else
static void hadamard16(float* x, int block, float norm) {
    if (block < 16) return hadamard_plain(x, 16, block, norm);
    float y[16];  // of the four numbers at j, j + 4, j + 8, j + 12, then of four neighbours
    for (int j = 0; j < 4; j++) {
        const float a = (x[j] + x[j + 4]) * norm, b = (x[j] - x[j + 4]) * norm;
        const float c = (x[j + 8] + x[j + 12]) * norm, d = (x[j + 8] - x[j + 12]) * norm;
        y[j] = a + c, y[j + 4] = b + d, y[j + 8] = a - c, y[j + 12] = b - d;
    }
    for (int i = 0; i < 16; i += 4) {
        const float a = y[i] + y[i + 1], b = y[i] - y[i + 1], c = y[i + 2] + y[i + 3], d = y[i + 2] - y[i + 3];
        x[i] = a + c, x[i + 1] = b + d, x[i + 2] = a - c, x[i + 3] = b - d;
    }
}
#endif

// Sums and differences of the two halves of n floats.
static void halves(float* __restrict a, float* __restrict b, int n) {
    for (int i = 0; i < n; i++) {
        const float sum = a[i] + b[i], difference = a[i] - b[i];
        a[i] = sum, b[i] = difference;
    }
}

// Of four quarters at once: two rounds of `halves`, with half the memory traffic.
static void quarters(float* __restrict a, float* __restrict b, float* __restrict c, float* __restrict d, int n) {
    for (int i = 0; i < n; i++) {
        const float s = a[i] + b[i], t = a[i] - b[i], u = c[i] + d[i], v = c[i] - d[i];
        a[i] = s + u, b[i] = t + v, c[i] = s - u, d[i] = t - v;
    }
}

static void hadamard(float* x, int n, int block) {
    if (block == 1) return;
    const float norm = 1 / sqrtf((float)block);
    const int near = block < 16 ? block : 16, whole = n / 16 * 16;
    for (int i = 0; i < whole; i += 16) hadamard16(x + i, near, norm);
    hadamard_plain(x + whole, n - whole, near, norm);
    int done = near;  // the size of what is transformed already
    for (; done * 4 <= block; done *= 4)
        for (int i = 0; i < n; i += 4 * done) quarters(x + i, x + i + done, x + i + 2 * done, x + i + 3 * done, done);
    for (; done < block; done *= 2)
        for (int i = 0; i < n; i += 2 * done) halves(x + i, x + i + done, done);
}

static void from_half(const uint16_t* x, float* y, size_t n) {
    size_t i = 0;
#if VECTORS
    for (; i + W <= n; i += W) store(y + i, halves((const uint8_t*)(x + i)));
#endif
    for (; i < n; i++) {
        const uint32_t sign = (uint32_t)(x[i] & 0x8000) << 16, rest = x[i] & 0x7fff;
        uint32_t bits = sign;
        if (rest >= 0x7c00) bits |= 0x7f800000 | (rest & 0x3ff) << 13;       // infinite, or not a number
        else if (rest >= 0x400) bits |= (rest << 13) + (112u << 23);         // normal
        else {                                                               // zero, or too small for an exponent
            const float small = (float)rest * 5.9604644775390625e-8f;        // 2^-24
            memcpy(&bits, &small, 4);
            bits |= sign;
        }
        memcpy(y + i, &bits, 4);
    }
}

static void from_bfloat(const uint16_t* x, float* y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)x[i] << 16;
        memcpy(y + i, &bits, 4);
    }
}

#if VECTORS
// x[columns[i]] for W columns.
static inline F gather(const float* x, const uint16_t* columns) {
#if defined(__AVX512VBMI__)
    return _mm512_i32gather_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)columns)), x, 4);
#else
    return _mm256_i32gather_ps(x, _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)columns)), 4);
#endif
}
#endif

static void add_outliers(const OutlierView& o, const float* x, size_t ldx, int tokens, int first, int last, float* y,
                         size_t ldy) {
    for (int n = first; n < last; n += 16)
        for (int t = 0; t < tokens; t++) {
            const float* from = x + t * ldx;
            float sums[16] = {};
#if VECTORS
            F all[PARTS];
            for (int i = 0; i < PARTS; i++) all[i] = set1(0);
            for (int32_t s = o.starts[n / 16]; s < o.starts[n / 16 + 1]; s++)
                for (int i = 0; i < PARTS; i++) {
                    const size_t at = (size_t)s * 16 + i * W;
                    all[i] = fma(gather(from, o.columns + at), halves((const uint8_t*)(o.values + at)), all[i]);
                }
            for (int i = 0; i < PARTS; i++) store(sums + i * W, all[i]);
#else
            for (int32_t s = o.starts[n / 16]; s < o.starts[n / 16 + 1]; s++) {
                float values[16];
                from_half(o.values + (size_t)s * 16, values, 16);
                for (int i = 0; i < 16; i++) sums[i] += from[o.columns[(size_t)s * 16 + i]] * values[i];
            }
#endif
            for (int i = 0; i < 16 && n + i < last; i++) y[t * ldy + n + i] += sums[i];
        }
}

static uint64_t sum(const uint64_t* x, size_t n) {
    uint64_t sums[32] = {};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 32; j++) sums[j] += x[i + j];
    uint64_t all = 0;
    for (; i < n; i++) all += x[i];
    for (int j = 0; j < 32; j++) all += sums[j];
    return all;
}

static void round_group(float* now, int inputs, int outputs, const float* gain, const float* scale, const float* finer,
                        const float* zero, float top, const float* reach) {
    constexpr float WHOLE = 12582912;  // 1.5 * 2^23: added and taken away again it rounds to the nearest, to even
    float lost[64];
    for (int n = 0; n < outputs; n += 64) {
        const int some = outputs - n < 64 ? outputs - n : 64;
        for (int j = 0; j < inputs; j++) {
            float* x = now + (size_t)j * outputs + n;
            for (int i = 0; i < some; i++) {
                float q = x[i] * finer[n + i] + zero[n + i];
                q = q < 0 ? 0 : q > top ? top : q;
                const float decoded = (q + WHOLE - WHOLE - zero[n + i]) * scale[n + i], far = x[i] - decoded;
                const bool stays = (far < 0 ? -far : far) > reach[j];
                lost[i] = stays ? 0 : far;
                x[i] = stays ? x[i] : decoded;
            }
            for (int k = j + 1; k < inputs; k++) {
                float* later = now + (size_t)k * outputs + n;
                const float g = gain[j * inputs + k];
                for (int i = 0; i < some; i++) later[i] -= g * lost[i];
            }
        }
    }
}

const Numerics NUMERICS = {hadamard, from_half, from_bfloat, dot, add_scaled, add_outliers, round_group, sum};

}  // namespace panza::PANZA_ISA
