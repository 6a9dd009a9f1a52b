// The kernels of one instruction set, as a table of functions.
//
// The sources in cpu/isa/ are compiled once for each set, in a namespace of its name. They use no templates and no inline
// functions of the standard library: the linker could keep the copy that has the wider instructions.
#pragma once

#include "views.hpp"

namespace panza {

// What one instruction set does with one kind of codes. `View` is the kind's struct of views.hpp. All but `decode` may be null.
template <class View>
struct Kind {
    // Rows [first, last) as floats, scaled, into out (last - first, D). The definition; reads `codes`, never `packed`.
    void (*decode)(const View&, int first, int last, float* out);
    // y[t * ldy + n] = sum over d of x[t][d] W[n][d] for the rows [first, last), 1 to FEW tokens. first is a multiple of
    // `rows`, last too or N. Null: decode and dot.
    void (*multiply)(const View&, const Inputs&, int first, int last, float* y, int ldy);
    int rows;  // that go together
    // Bytes of what `prepare` makes of the inputs, once a product: tables, quantised inputs.
    size_t (*prepared)(const View&, int tokens);
    void (*prepare)(const View&, const float* x, int tokens, void* out);
    // Bytes of the kernel's own layout, and making it. 0: this weight is read as it lies in the file.
    size_t (*packed)(const View&);
    void (*pack)(const View&, void* out);
};

constexpr int FEW = 4;  // tokens that a matrix-vector kernel takes at once

struct Numerics {
    // C[t][n] += sum over d of A[t][d] B[n][d]; a: tokens rows of lda floats, b: n rows of ldb floats.
    void (*matmul)(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int tokens, int n, int d);
    void (*hadamard)(float* x, int n, int block);            // orthonormal, each block of the n floats
    void (*from_half)(const uint16_t* x, float* y, size_t n);  // IEEE fp16
    void (*from_bfloat)(const uint16_t* x, float* y, size_t n);
    float (*dot)(const float* a, const float* b, int n);
    void (*add_scaled)(float* y, const float* x, float scale, int n);  // y += scale x
    uint64_t (*sum)(const uint64_t* x, size_t n);  // of n words, modulo 2^64: what reading memory costs, and no more
};

// Between the products of a transformer.
struct Steps {
    // C[r][n] += sum over j of A[r][j] B[j][n], in the order of j.
    void (*mix)(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int rows, int n, int d);
    float (*exp_sum)(float* x, int n, float most);  // x = e^(x - most); returns the sum
    void (*swiglu)(float* gate, const float* up, int n);  // gate = silu(gate) up
    void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int n);
    void (*rotate)(float* x, const float* cosines, const float* sines, int half);  // pairs (i, i + half)
    void (*to_half)(const float* x, uint16_t* y, int n, int stride);
    float (*to_int8)(const float* x, int8_t* y, int n, int stride);  // returns the step: x ~ step y
    void (*from_int8)(const int8_t* x, float* y, size_t n);
};

struct Isa {
    const char* name;
    const Kind<GridView>* grid;
    const Kind<LutView>* lut;
    const Kind<AdditiveView>* additive;
    const Kind<TrellisView>* trellis;
    const Numerics* numerics;
    const Steps* steps;
};

// The best that this machine runs, or the one named in PANZA_ISA. Throws std::runtime_error for a name that it does not.
const Isa& isa();
const Isa* isa(const char* name);  // null when this machine cannot run it or this build lacks it
const char* const* isas();         // names of this build, the best last, null at the end

}  // namespace panza
