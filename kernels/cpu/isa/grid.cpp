// Uniform levels: code - zero, times the scale.
#include "here.hpp"

namespace panza::PANZA_ISA {

static void decode(const GridView& w, int first, int last, float* out) {
    const int width = w.zero ? w.D / w.zero_groups : w.D;
    for (int n = first; n < last; n++, out += w.D) {
        const uint8_t* row = w.codes + (size_t)n * w.stride;
        for (int d = 0; d < w.D; d++) {
            const float zero = w.zero ? w.zero[(size_t)n * w.zero_groups + d / width] : (float)(1 << (w.bits - 1));
            out[d] = (float)window(row, (size_t)d * w.bits, w.bits) - zero;
        }
        scale_row(w.scale, n, w.D, out);
    }
}

const Kind<GridView> GRID = {.decode = decode, .rows = 1};

}  // namespace panza::PANZA_ISA
