// A sliding window over a bit stream, with a learned table (QTIP, arXiv:2406.11235). 16 outputs are one chain.
#include "vec.hpp"

namespace panza::PANZA_ISA {

#if VECTORS
// Row n of its chain, as many inputs from the first on as whole registers hold: their number. A lane is a quad of
// inputs.
static int decode_quads(const TrellisView& w, const uint8_t* chain, int n, float* out) {
    const int bit = n % 16 * 4 * w.step;  // of the row's four windows, in a quad of 8 step bytes
    if (bit % 8 + 3 * w.step + w.window > 32) return 0;
    const __m256i mask = _mm256_set1_epi32((1 << w.window) - 1);
    const __m256i places = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(8 * w.step));
    int d = 0;
    for (; d + 32 <= w.D; d += 32) {
        const uint8_t* p = chain + (size_t)d / 4 * 8 * w.step + bit / 8;
        const __m256i bits =
            _mm256_srl_epi32(_mm256_i32gather_epi32((const int*)p, places, 1), _mm_cvtsi32_si128(bit % 8));
        __m256 v[4];
        for (int j = 0; j < 4; j++) {
            const __m256i at = _mm256_and_si256(_mm256_srl_epi32(bits, _mm_cvtsi32_si128(j * w.step)), mask);
            v[j] = _mm256_i32gather_ps(w.lut, at, 4);
        }
        const __m256 a = _mm256_unpacklo_ps(v[0], v[1]), b = _mm256_unpackhi_ps(v[0], v[1]);
        const __m256 c = _mm256_unpacklo_ps(v[2], v[3]), e = _mm256_unpackhi_ps(v[2], v[3]);
        const __m256 quads[] = {_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xee),
                                _mm256_shuffle_ps(b, e, 0x44), _mm256_shuffle_ps(b, e, 0xee)};
        for (int i = 0; i < 4; i++) {  // quads i and 4 + i
            _mm_storeu_ps(out + d + 4 * i, _mm256_castps256_ps128(quads[i]));
            _mm_storeu_ps(out + d + 16 + 4 * i, _mm256_extractf128_ps(quads[i], 1));
        }
    }
    return d;
}
#else
static int decode_quads(const TrellisView&, const uint8_t*, int, float*) { return 0; }
#endif

// Rows [first, last). Quad of inputs, output of the chain, input of the quad: four neighbours are a row's.
static void decode(const TrellisView& w, int first, int last, float* out) {
    const uint32_t mask = (1u << w.window) - 1;
    const bool together = 7 + 3 * w.step + w.window <= 64;  // four windows are in eight bytes
    for (int n = first; n < last; n++, out += w.D) {
        const uint8_t* chain = w.codes + (size_t)(n / 16) * w.stride;
        for (int d = decode_quads(w, chain, n, out); d < w.D; d += 4) {
            const size_t at = ((size_t)d * 16 + n % 16 * 4) * w.step;
            if (together) {
                uint64_t bits;
                memcpy(&bits, chain + at / 8, 8);
                bits >>= at % 8;
                for (int j = 0; j < 4; j++) out[d + j] = w.lut[bits >> j * w.step & mask];
            } else {
                for (int j = 0; j < 4; j++) out[d + j] = w.lut[window(chain, at + (size_t)j * w.step, w.window)];
            }
        }
        scale_row(w.scale, n, w.D, out);
    }
}

// Inputs that share a scale.
static int group_of(const TrellisView& w) { return w.scale.values ? w.D / w.scale.groups : w.D; }

}  // namespace panza::PANZA_ISA

#if defined(__AVX512VBMI__)
#include "trellis/planes.hpp"
#else
#include "trellis/pairs.hpp"
#endif
