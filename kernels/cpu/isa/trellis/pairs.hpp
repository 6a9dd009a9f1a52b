// Trellis products of floats: a table of pairs.
//
// The window of two neighbouring weights has window + step bits, at most 12: a table of both values stays in the
// nearest cache, and a load brings two weights. Four neighbours are one output's, of a quad of inputs.
#pragma once

#include "../here.hpp"

namespace panza::PANZA_ISA {

struct Pair { float at[2]; };

#if defined(__SSE2__) || defined(_M_X64)
using Four = __m128;
static inline Four four(const float* p) { return _mm_loadu_ps(p); }
static inline Four four(const Pair& low, const Pair& high) {
    return _mm_loadh_pi(_mm_castpd_ps(_mm_load_sd((const double*)&low)), (const __m64*)&high);
}
static inline Four none() { return _mm_setzero_ps(); }
#if defined(__FMA__)
static inline Four add_product(Four sum, Four a, Four b) { return _mm_fmadd_ps(a, b, sum); }
#else
static inline Four add_product(Four sum, Four a, Four b) { return _mm_add_ps(sum, _mm_mul_ps(a, b)); }
#endif
static inline float total(Four a) {
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
}
#elif defined(__ARM_NEON)
using Four = float32x4_t;
static inline Four four(const float* p) { return vld1q_f32(p); }
static inline Four four(const Pair& low, const Pair& high) { return vcombine_f32(vld1_f32(low.at), vld1_f32(high.at)); }
static inline Four none() { return vdupq_n_f32(0); }
static inline Four add_product(Four sum, Four a, Four b) { return vfmaq_f32(sum, a, b); }
static inline float total(Four a) { return vaddvq_f32(a); }
#else
struct Four { float at[4]; };
static inline Four four(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
static inline Four four(const Pair& a, const Pair& b) { return {{a.at[0], a.at[1], b.at[0], b.at[1]}}; }
static inline Four none() { return {{0, 0, 0, 0}}; }
static inline Four add_product(Four sum, Four a, Four b) {
    for (int i = 0; i < 4; i++) sum.at[i] += a.at[i] * b.at[i];
    return sum;
}
static inline float total(Four a) { return (a.at[0] + a.at[2]) + (a.at[1] + a.at[3]); }
#endif

static bool takes(const TrellisView& w) {
    return w.step >= 2 && w.step <= 4 && w.window <= 8 && group_of(w) % 4 == 0;
}

static size_t prepared(const TrellisView& w, int) { return (size_t)8 << (w.window + w.step); }

static void prepare(const TrellisView& w, const Inputs&, void* out) {
    Pair* pairs = (Pair*)out;
    const int mask = (1 << w.window) - 1;
    for (int i = 0; i < 1 << (w.window + w.step); i++) pairs[i] = {{w.lut[i & mask], w.lut[i >> w.step & mask]}};
}

// Of one chain.
struct Chain {
    const uint8_t* codes;
    const Pair* pairs;
    uint32_t mask;
    const float* x;
    int D;
};

// sums[t][o] += the products of T tokens' inputs [from, to) with the outputs [first, first + OUT) of a chain.
template <int STEP, int T, int OUT>
static void add_products(const Chain& chain, int from, int to, int first, float (*sums)[16]) {
    Four sum[T][OUT];
    for (int t = 0; t < T; t++)
        for (int o = 0; o < OUT; o++) sum[t][o] = none();
    for (int d = from; d < to; d += 4) {
        const uint8_t* quad = chain.codes + (size_t)d / 4 * 8 * STEP + first * STEP / 2;
        Four in[T];
        for (int t = 0; t < T; t++) in[t] = four(chain.x + (size_t)t * chain.D + d);
        for (int o = 0; o < OUT; o++) {
            uint32_t bits;
            memcpy(&bits, quad + o * STEP / 2, 4);
            bits >>= o * STEP % 2 * 4;
            const Four weights = four(chain.pairs[bits & chain.mask], chain.pairs[bits >> 2 * STEP & chain.mask]);
            for (int t = 0; t < T; t++) sum[t][o] = add_product(sum[t][o], weights, in[t]);
        }
    }
    for (int t = 0; t < T; t++)
        for (int o = 0; o < OUT; o++) sums[t][first + o] += total(sum[t][o]);
}

constexpr int NEAR = 1024;  // inputs after which a chain's other outputs follow: what they read is still close by

template <int STEP, int T>
static void multiply_chain(const TrellisView& w, const Inputs& in, int n, float* y, int ldy) {
    constexpr int OUT = T == 1 ? 8 : T == 2 ? 4 : 2;  // whose sums stay in registers
    const uint32_t mask = (1u << (w.window + w.step)) - 1;
    const Chain chain = {w.codes + (size_t)(n / 16) * w.stride, (const Pair*)in.prepared, mask, in.x, w.D};
    const int group = group_of(w);
    float all[T][16] = {};
    for (int g = 0; g * group < w.D; g++) {
        float sums[T][16] = {};
        for (int from = g * group, last = from + group; from < last; from += NEAR) {
            const int to = last - from < NEAR ? last : from + NEAR;
            for (int first = 0; first < 16; first += OUT) add_products<STEP, T, OUT>(chain, from, to, first, sums);
        }
        for (int t = 0; t < T; t++)
            for (int o = 0; o < 16; o++)
                all[t][o] += sums[t][o] * (w.scale.values ? w.scale.values[(size_t)(n + o) * w.scale.groups + g] : 1);
    }
    for (int t = 0; t < T; t++)
        for (int o = 0; o < 16; o++) y[(size_t)t * ldy + n + o] = all[t][o];
}

template <int STEP>
static void multiply_step(const TrellisView& w, const Inputs& in, int n, float* y, int ldy) {
    switch (in.tokens) {
        case 1: return multiply_chain<STEP, 1>(w, in, n, y, ldy);
        case 2: return multiply_chain<STEP, 2>(w, in, n, y, ldy);
        case 3: return multiply_chain<STEP, 3>(w, in, n, y, ldy);
        default: return multiply_chain<STEP, 4>(w, in, n, y, ldy);
    }
}

static void multiply(const TrellisView& w, const Inputs& in, int first, int last, float* y, int ldy) {
    for (int n = first; n < last; n += 16)
        if (w.step == 2) multiply_step<2>(w, in, n, y, ldy);
        else if (w.step == 3) multiply_step<3>(w, in, n, y, ldy);
        else multiply_step<4>(w, in, n, y, ldy);
}

const Kind<TrellisView> TRELLIS = {
    .decode = decode, .takes = takes, .multiply = multiply, .rows = 16, .prepared = prepared, .prepare = prepare,
};

}  // namespace panza::PANZA_ISA
