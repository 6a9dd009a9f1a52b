// A sliding window over a bit stream, with a learned table (QTIP, arXiv:2406.11235). 16 outputs are one chain.
#include "here.hpp"

namespace panza::PANZA_ISA {

static void decode(const TrellisView& w, int first, int last, float* out) {
    for (int n = first; n < last; n++, out += w.D) {
        const uint8_t* chain = w.codes + (size_t)(n / 16) * w.stride;
        for (int d = 0; d < w.D; d++) {  // quad of inputs, output of the chain, input of the quad
            const size_t at = ((size_t)(d / 4) * 16 + n % 16) * 4 + d % 4;
            out[d] = w.lut[window(chain, at * w.step, w.window)];
        }
        scale_row(w.scale, n, w.D, out);
    }
}

const Kind<TrellisView> TRELLIS = {.decode = decode, .rows = 1};

}  // namespace panza::PANZA_ISA
