// Sums of codewords (AQLM, arXiv:2401.06118).
#include "here.hpp"

namespace panza::PANZA_ISA {

static void decode(const AdditiveView& w, int first, int last, float* out) {
    for (int n = first; n < last; n++, out += w.D) {
        const uint8_t* row = w.codes + (size_t)n * w.stride;
        size_t at = 0;
        for (int d = 0; d < w.D; d += w.group) {
            for (int j = 0; j < w.group; j++) out[d + j] = 0;
            for (int m = 0; m < w.books; m++, at += w.bits) {
                const float* word = w.words + (((size_t)m << w.bits) + window(row, at, w.bits)) * w.group;
                for (int j = 0; j < w.group; j++) out[d + j] += word[j];
            }
        }
        scale_row(w.scale, n, w.D, out);
    }
}

const Kind<AdditiveView> ADDITIVE = {.decode = decode, .rows = 1};

}  // namespace panza::PANZA_ISA
