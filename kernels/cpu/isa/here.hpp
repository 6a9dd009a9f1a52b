// For the sources of this folder: the namespace of the instruction set, and what they share. Inline functions stand in it.
#pragma once

#include <math.h>
#include <string.h>

#include "../isa.hpp"

#if defined(__AVX2__) || defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace panza::PANZA_ISA {

extern const Kind<GridView> GRID;
extern const Kind<LutView> LUT;
extern const Kind<AdditiveView> ADDITIVE;
extern const Kind<TrellisView> TRELLIS;
extern const Matmul MATMUL;
extern const Matmul8 MATMUL8;
extern const Numerics NUMERICS;
extern const Steps STEPS;
extern const Search SEARCH;

// The `width` bits that start at bit `at` (width <= 16): see windows() in compress/ops.py.
static inline uint32_t window(const uint8_t* stream, size_t at, int width) {
    uint32_t value;  // its fourth byte may be one of the PAD
    memcpy(&value, stream + (at >> 3), 4);
    return value >> (at & 7) & ((1u << width) - 1);
}

// Multiply row `row` (D floats) by its scales in place.
static inline void scale_row(const Scales& scale, int row, int D, float* out) {
    if (!scale.values) return;
    const int width = D / scale.groups;
    for (int g = 0; g < scale.groups; g++) {
        const float s = scale.values[(size_t)row * scale.groups + g];
        for (int d = g * width; d < (g + 1) * width; d++) out[d] *= s;
    }
}

}  // namespace panza::PANZA_ISA
