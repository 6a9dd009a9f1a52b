// The kernels of one instruction set, as a table of functions.
//
// The sources in cpu/isa/ are compiled once for each set, in a namespace of its name. They use no templates and no
// inline functions of the standard library: the linker could keep the copy that has the wider instructions.
#pragma once

#include "views.hpp"

namespace panza {

// What one instruction set does with one kind of codes. `View` is the kind's struct of views.hpp. All but `decode`
// may be null.
template <class View>
struct Kind {
    // Rows [first, last) as floats, scaled, into out (last - first, D). The definition; reads `codes`, never `packed`. A
    // weight with a `panel` and `packs_tables` keeps neither codes nor tables once it is packed.
    void (*decode)(const View&, int first, int last, float* out);
    // Whether `multiply` and what belongs to it take this weight. Null: every one; otherwise decode and dot.
    bool (*takes)(const View&);
    // Parts of the inputs that are prepared and multiplied apart from each other, by different threads; their products
    // are added in order, whoever made them. Null: one.
    int (*slices)(const View&);
    // y[t * ldy + n] = sum over d (of the slice) of x[t][d] W[n][d] for the rows [first, last), 1 to FEW tokens or `most`. first is
    // a multiple of `rows`, last too or N. Null: decode and dot.
    void (*multiply)(const View&, const Inputs&, int first, int last, float* y, int ldy);
    int rows;  // that go together
    // Bytes of what `prepare` makes of the inputs (of a slice), once a product: tables, quantised inputs. Starts on a
    // cache line.
    size_t (*prepared)(const View&, int tokens);
    void (*prepare)(const View&, const Inputs&, void* out);
    // Bytes of the kernel's own layout, and making it. 0: this weight is read as it lies in the file.
    size_t (*packed)(const View&);
    void (*pack)(const View&, void* out);
    // Rows [16 block, 16 block + 16) of the inputs [from, to) as floats, scaled, into out (to - from, 16); rows from
    // N on are of no account. Reads `packed`, and is for weights that have it. Null: decode and transpose.
    void (*panel)(const View&, int block, int from, int to, float* out);
    // The 128 rows from `first` on (a multiple of 128; `rows` says of 128), inputs [from, to), as blocks of 8 bits for
    // `Matmul8`: value = step (number - 128) + offset, lane i of the blocks in a row's place `order[i]`. False, for all
    // of a weight: not this one. Null: none; `panel` is rounded.
    bool (*panel8)(const View&, int first, int from, int to, uint8_t* out, float* step, float* offset, uint8_t* order);
    bool packs_tables;  // a product of few tokens reads `packed` alone
    int most;           // tokens up to which `multiply` beats panels, if it takes more than FEW
    // Bytes of codes and tables that a product of one token reads. Null: what is packed, or the codes, and the table.
    size_t (*reads)(const View&);
};

constexpr int FEW = 4;  // tokens that a matrix-vector kernel takes at once

// Products of many tokens: see isa/matmul.cpp.
struct Matmul {
    int tokens;  // of a whole strip; the last may have fewer
    // `tokens` inputs of `depth` floats, ldx from one to the next, as a strip of room for depth x a whole strip's
    // tokens.
    void (*strip)(const float* x, size_t ldx, int tokens, int depth, float* out);
    // Up to 16 rows of `depth` floats as a block (depth, 16), zeros for those that lack.
    void (*block)(const float* x, size_t ldx, int rows, int depth, float* out);
    // y[t][n] = the product over inputs [from, from + depth) of a strip with `rows` rows in blocks, one after the
    // other; or += that. It sums one input after the other.
    void (*multiply)(const float* strip, int tokens, int from, const float* blocks, int rows, int depth, float* y,
                     int ldy, bool adds);
    // y[t][n] of rows [first, last) of a (N, D) weight of halves, 1 to FEW tokens. Null: decode and dot.
    void (*halves)(const uint16_t* w, bool bfloat, const float* x, int D, int tokens, int first, int last, float* y,
                   int ldy);
};

// Products of many tokens that round inputs and weights to 8 bits: see isa/matmul8.cpp.
struct Matmul8 {
    static constexpr int DEPTH = 256;  // inputs of a token or of a row that share a step
    int tokens;                        // of a whole strip, the last may have fewer; 0: this set has none of these
    size_t (*strip_bytes)(int D);
    void (*strip)(const float* x, size_t ldx, int tokens, int D, void* out);
    // A block of floats (depth, 16) as bytes (depth / 4 rounded up, 16, 4), and the steps of its rows.
    void (*block)(const float* x, int depth, uint8_t* out, float* step);
    // y[t][lane] += or = the product of a whole strip's tokens with `blocks` blocks, one after the other, of the inputs [from, from +
    // depth); from is a multiple of DEPTH, and depth at most that.
    void (*multiply)(const void* strip, int tokens, int from, const uint8_t* panel, int blocks, int depth,
                     const float* step, const float* offset, float* y, int ldy, bool adds);
};

struct Numerics {
    void (*hadamard)(float* x, int n, int block);            // orthonormal, each block of the n floats
    void (*from_half)(const uint16_t* x, float* y, size_t n);  // IEEE fp16
    void (*from_bfloat)(const uint16_t* x, float* y, size_t n);
    float (*dot)(const float* a, const float* b, int n);
    void (*add_scaled)(float* y, const float* x, float scale, int n);  // y += scale x
    // y[t][n] += the product of the rows [first, last) of outliers, first a multiple of 16.
    void (*add_outliers)(const OutlierView&, const float* x, size_t ldx, int tokens, int first, int last, float* y,
                         size_t ldy);
    // `now` (inputs, outputs) becomes what its numbers round to on grids of the outputs' own, one input after the other: each takes
    // its errors times -gain[j][k] along to the inputs k after it. finer: 1 / scale, or 0. A number further than
    // reach[j] from its grid stays as it is. `feedback.round_group` is the definition.
    void (*round_group)(float* now, int inputs, int outputs, const float* gain, const float* scale, const float* finer,
                        const float* zero, float top, const float* reach);
    uint64_t (*sum)(const uint64_t* x, size_t n);  // of n words, modulo 2^64: what reading memory costs, and no more
};

// Between the products of a transformer.
struct Steps {
    // C[r][n] += sum over j of A[r][j] B[j][n], in the order of j.
    void (*mix)(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int rows, int n, int d);
    // As `mix`, with B of halves. Null: unpack them first.
    void (*mix_halves)(const float* a, int lda, const uint16_t* b, int ldb, float* c, int ldc, int rows, int n, int d);
    float (*most)(const float* x, int n);  // the greatest
    float (*exp_sum)(float* x, int n, float most);  // x = e^(x - most); returns the sum
    void (*swiglu)(float* gate, const float* up, int n);  // gate = silu(gate) up
    void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int n);
    void (*rotate)(float* x, const float* cosines, const float* sines, int half);  // pairs (i, i + half)
    void (*to_half)(const float* x, uint16_t* y, int n, int stride);
    float (*to_int8)(const float* x, int8_t* y, int n, int stride);  // returns the step: x ~ step y
    void (*from_int8)(const int8_t* x, float* y, size_t n);
};

constexpr int MOST_SETS = 128;  // of states with the same successors

struct Search {
    int lanes;
    // The cheapest paths of up to `lanes` chains of T steps, which lie side by side, `stride` numbers from one step to the next,
    // through a trellis with `step` new bits a state. start: the states before the first, or null. room: lanes T J bytes, J =
    // states / 2^step sets, MOST_SETS at most.
    void (*viterbi)(int states, int step, const float* target, const float* weight, size_t stride, int T, int chains, const int64_t* start,
                    const float* lut, uint8_t* room, int64_t* path);
};

struct Isa {
    const char* name;
    const Kind<GridView>* grid;
    const Kind<LutView>* lut;
    const Kind<AdditiveView>* additive;
    const Kind<TrellisView>* trellis;
    const Matmul* matmul;
    const Matmul8* matmul8;
    const Numerics* numerics;
    const Steps* steps;
    const Search* search;
};

// The best that this machine runs, or the one named in PANZA_ISA. Throws std::runtime_error for a name that it does
// not.
const Isa& isa();
const Isa* isa(const char* name);  // null when this machine cannot run it or this build lacks it
const char* const* isas();         // names of this build, the best last, null at the end

}  // namespace panza
