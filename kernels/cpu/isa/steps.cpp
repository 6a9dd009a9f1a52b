// What a transformer does between its products: norms, rotations, attention's sums, exponentials.
#include "here.hpp"

namespace panza::PANZA_ISA {

#if defined(__GNUC__) || defined(__clang__)
#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
static inline Vector all(float x) { return x - (Vector){}; }
#else
constexpr int WIDTH = 1;
typedef float Vector;
static inline Vector all(float x) { return x; }
#endif

static inline Vector vector(const float* p) { return *(const Vector*)p; }
#if defined(__AVX512F__)
#define HALVES
static inline Vector vector(const uint16_t* p) { return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
#elif defined(__F16C__)
#define HALVES
static inline Vector vector(const uint16_t* p) { return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
#endif

constexpr int ACROSS = 4;  // vectors of a row of C that stay in registers

// C[r][n] += sum over j of A[r][j] B[j][n] for R rows and ACROSS * WIDTH columns; B of floats or of halves.
template <int R, class T>
static void block(const float* a, int lda, const T* b, int ldb, float* c, int ldc, int d) {
    Vector sums[R][ACROSS];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < ACROSS; i++) sums[r][i] = *(const Vector*)(c + (size_t)r * ldc + i * WIDTH);
    for (int j = 0; j < d; j++) {
        Vector row[ACROSS];
        for (int i = 0; i < ACROSS; i++) row[i] = vector(b + (size_t)j * ldb + i * WIDTH);
        for (int r = 0; r < R; r++) {
            const Vector x = all(a[(size_t)r * lda + j]);
            for (int i = 0; i < ACROSS; i++) sums[r][i] += x * row[i];
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < ACROSS; i++) *(Vector*)(c + (size_t)r * ldc + i * WIDTH) = sums[r][i];
}

// The first columns that fill registers: how many.
template <class T>
static int mix_whole(const float* a, int lda, const T* b, int ldb, float* c, int ldc, int rows, int n, int d) {
    constexpr int COLUMNS = ACROSS * WIDTH;
    int at = 0;
    for (; at + COLUMNS <= n; at += COLUMNS) {
        int r = 0;
        for (; r + 4 <= rows; r += 4) block<4>(a + (size_t)r * lda, lda, b + at, ldb, c + (size_t)r * ldc + at, ldc, d);
        for (; r + 2 <= rows; r += 2) block<2>(a + (size_t)r * lda, lda, b + at, ldb, c + (size_t)r * ldc + at, ldc, d);
        for (; r < rows; r++) block<1>(a + (size_t)r * lda, lda, b + at, ldb, c + (size_t)r * ldc + at, ldc, d);
    }
    return at;
}

static void mix(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int rows, int n, int d) {
    const int at = mix_whole(a, lda, b, ldb, c, ldc, rows, n, d);
    for (int r = 0; r < rows && at < n; r++)
        for (int j = 0; j < d; j++) {
            const float x = a[(size_t)r * lda + j];
            for (int i = at; i < n; i++) c[(size_t)r * ldc + i] += x * b[(size_t)j * ldb + i];
        }
}

#ifdef HALVES
static void mix_halves(const float* a, int lda, const uint16_t* b, int ldb, float* c, int ldc, int rows, int n, int d) {
    const int at = mix_whole(a, lda, b, ldb, c, ldc, rows, n, d);
    for (int r = 0; r < rows && at < n; r++)
        for (int j = 0; j < d; j++)
            for (int i = at; i < n; i++)
                c[(size_t)r * ldc + i] += a[(size_t)r * lda + j] * _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(b[(size_t)j * ldb + i])));
}
#else
constexpr void (*mix_halves)(const float*, int, const uint16_t*, int, float*, int, int, int, int) = nullptr;
#endif

// e^x to two units in the last place, for x <= 88; 1e-38 for what is smaller than -87.
static inline float exponential(float x) {
    x = x < -87.f ? -87.f : x;
    const float n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // the nearest whole number: 1.5 x 2^23 has no room for more
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

static float most(const float* x, int n) {
    float each[16];
    for (int j = 0; j < 16; j++) each[j] = -INFINITY;
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) each[j] = x[i + j] > each[j] ? x[i + j] : each[j];
    float found = -INFINITY;
    for (; i < n; i++) found = x[i] > found ? x[i] : found;
    for (int j = 0; j < 16; j++) found = each[j] > found ? each[j] : found;
    return found;
}

static float exp_sum(float* x, int n, float most) {
    float sums[16] = {};
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) sums[j] += x[i + j] = exponential(x[i + j] - most);
    float sum = 0;
    for (; i < n; i++) sum += x[i] = exponential(x[i] - most);
    for (int j = 0; j < 16; j++) sum += sums[j];
    return sum;
}

static void swiglu(float* gate, const float* up, int n) {
    for (int i = 0; i < n; i++) {
        const float x = gate[i];
        gate[i] = x / (1.f + exponential(x < -80.f ? 80.f : -x)) * up[i];
    }
}

static void rms_norm(const float* x, const float* weight, float eps, float* out, int n) {
    float sums[16] = {};
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) sums[j] += x[i + j] * x[i + j];
    float sum = 0;
    for (; i < n; i++) sum += x[i] * x[i];
    for (int j = 0; j < 16; j++) sum += sums[j];
    const float scale = 1.f / sqrtf(sum / (float)n + eps);
    for (int k = 0; k < n; k++) out[k] = x[k] * scale * weight[k];
}

static void rotate(float* x, const float* cosines, const float* sines, int half) {
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + half] = b * cosines[i] + a * sines[i];
    }
}

static inline uint16_t half_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return (uint16_t)(sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00));  // too large, or not a number
    if (bits < 0x38800000) {                                                                 // too small for an exponent
        float small;
        memcpy(&small, &bits, 4);
        return (uint16_t)(sign | (uint32_t)__builtin_rintf(small * 16777216.f));  // 2^24
    }
    bits += 0xfff + (bits >> 13 & 1);  // to the nearest, halves to even
    return (uint16_t)(sign | ((bits - (112u << 23)) >> 13));
}

static void to_half(const float* x, uint16_t* y, int n, int stride) {
    for (int i = 0; i < n; i++) y[(size_t)i * stride] = half_of(x[i]);
}

static float to_int8(const float* x, int8_t* y, int n, int stride) {
    float most = 0;
    for (int i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    const float step = most / 127.f, inverse = most > 0 ? 127.f / most : 0;
    for (int i = 0; i < n; i++) y[(size_t)i * stride] = (int8_t)__builtin_rintf(x[i] * inverse);
    return step;
}

static void from_int8(const int8_t* x, float* y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = (float)x[i];
}

const Steps STEPS = {mix, mix_halves, most, exp_sum, swiglu, rms_norm, rotate, to_half, to_int8, from_int8};

}  // namespace panza::PANZA_ISA
