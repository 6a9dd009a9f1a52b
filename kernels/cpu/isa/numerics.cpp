// Products and transforms of floats, in plain loops that the compiler turns into vectors.
#include "here.hpp"

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

static void matmul(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int tokens, int n, int d) {
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < n; i++) c[(size_t)t * ldc + i] += dot(a + (size_t)t * lda, b + (size_t)i * ldb, d);
}

static void hadamard(float* x, int n, int block) {
    if (block == 1) return;
    const float norm = 1 / sqrtf((float)block);
    for (int at = 0; at < n; at += block) {
        float* p = x + at;
        for (int half = 1; half < block; half *= 2)
            for (int i = 0; i < block; i += 2 * half)
                for (int j = i; j < i + half; j++) {
                    const float a = p[j], b = p[j + half];
                    p[j] = a + b;
                    p[j + half] = a - b;
                }
        for (int i = 0; i < block; i++) p[i] *= norm;
    }
}

static void from_half(const uint16_t* x, float* y, size_t n) {
    for (size_t i = 0; i < n; i++) {
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

const Numerics NUMERICS = {matmul, hadamard, from_half, from_bfloat, dot, add_scaled, sum};

}  // namespace panza::PANZA_ISA
