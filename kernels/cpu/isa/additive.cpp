// Sums of codewords (AQLM, arXiv:2401.06118).
#include "additive/blocks.hpp"
#include "additive/look.hpp"
#include "additive/shuffle4.hpp"
#include "additive/shuffle8.hpp"
#include "additive/walk.hpp"

namespace panza::PANZA_ISA {

// GROUP: w.group if the compiler may know it, or 0.
template <int GROUP>
static void decode_rows(const AdditiveView& w, int first, int last, float* out) {
    const int group = GROUP ? GROUP : w.group;
    for (int n = first; n < last; n++, out += w.D) {
        const uint8_t* row = w.codes + (size_t)n * w.stride;
        size_t at = 0;
        for (int d = 0; d < w.D; d += group) {
            float sum[GROUP ? GROUP : 1], *to = GROUP ? sum : out + d;
            for (int j = 0; j < group; j++) to[j] = 0;
            for (int m = 0; m < w.books; m++, at += w.bits) {
                const float* word = w.words + (((size_t)m << w.bits) + window(row, at, w.bits)) * group;
                for (int j = 0; j < group; j++) to[j] += word[j];
            }
            if (GROUP)
                for (int j = 0; j < group; j++) out[d + j] = sum[j];
        }
        scale_row(w.scale, n, w.D, out);
    }
}

static void decode(const AdditiveView& w, int first, int last, float* out) {
    (w.group == 8 ? decode_rows<8> : w.group == 4 ? decode_rows<4> : decode_rows<0>)(w, first, last, out);
}

// The kernels for small, medium and large books. Small ones in a set without shuffles go two at a time.
#ifdef PANZA_SHUFFLES
using Small = Blocks<Shuffle4>;
#else
using Small = Blocks<Look<2>>;
#endif
#if defined(__AVX512VBMI__)
using Medium = Blocks<Shuffle8>;
#else
using Medium = Blocks<Look<1>>;
#endif

static bool takes(const AdditiveView& w) {
    if (w.D / scale_groups(w) % w.group) return false;
    return w.bits <= 8 ? w.group <= WIDEST : w.group % 8 == 0;
}

#define BY_SIZE(function, ...)                     \
    (w.bits <= 4   ? Small::function(__VA_ARGS__)  \
     : w.bits <= 8 ? Medium::function(__VA_ARGS__) \
                   : Walk::function(__VA_ARGS__))

static int slices(const AdditiveView& w) {
    return w.bits <= 4 ? Small::plan_of(w).slices : w.bits <= 8 ? Medium::plan_of(w).slices : 1;
}
static void multiply(const AdditiveView& w, const Inputs& in, int first, int last, float* y, int ldy) {
    BY_SIZE(multiply, w, in, first, last, y, ldy);
}
static size_t prepared(const AdditiveView& w, int tokens) {
    return w.bits <= 4 ? Small::prepared(w, tokens) : w.bits <= 8 ? Medium::prepared(w, tokens) : 0;
}
static void prepare(const AdditiveView& w, const Inputs& in, void* out) {
    w.bits <= 4 ? Small::prepare(w, in, out) : Medium::prepare(w, in, out);
}
static size_t packed(const AdditiveView& w) { return BY_SIZE(packed, w); }
static void pack(const AdditiveView& w, void* out) { BY_SIZE(pack, w, out); }

static size_t reads(const AdditiveView& w) {
    return w.bits <= 8 ? packed(w) : w.N * w.stride + Walk::count(w) * sizeof(Walk::Word);
}

const Kind<AdditiveView> ADDITIVE = {
    .decode = decode, .takes = takes, .slices = slices, .multiply = multiply, .rows = 128,
    .prepared = prepared, .prepare = prepare, .packed = packed, .pack = pack, .reads = reads,
};

}  // namespace panza::PANZA_ISA
