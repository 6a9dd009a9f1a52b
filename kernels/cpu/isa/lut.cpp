// Free levels, of each row or of the whole weight.
#include "here.hpp"

namespace panza::PANZA_ISA {

static void decode(const LutView& w, int first, int last, float* out) {
    for (int n = first; n < last; n++, out += w.D) {
        const uint8_t* row = w.codes + (size_t)n * w.stride;
        const float* levels = w.levels + ((size_t)(w.rows == 1 ? 0 : n) << w.bits);
        for (int d = 0; d < w.D; d++) out[d] = levels[window(row, (size_t)d * w.bits, w.bits)];
        scale_row(w.scale, n, w.D, out);
    }
}

const Kind<LutView> LUT = {.decode = decode, .rows = 1};

}  // namespace panza::PANZA_ISA
