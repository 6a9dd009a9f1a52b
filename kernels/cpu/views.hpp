// What kernels see of a coded weight: sizes and pointers, nothing that owns memory.
//
// Letters as in compress/ops.py: N outputs, D inputs, G groups along the inputs, K new bits a weight. Codes lie as in
// the file unless a kind says so: row by row, the least significant bit first. Every array of codes is followed by
// PAD readable bytes, so that a kernel may load whole registers.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace panza {

constexpr size_t PAD = 64;

// Scales of a (N, D) weight: (N, groups), or null for 1.
struct Scales {
    const float* values;
    int groups;
};

// What scales or zeros (N, groups) were made of: scale[n / rows][g] (codes[n][g] - zero[n / rows][g]). codes null:
// unknown.
struct Parts {
    const uint8_t* codes;
    const float* scale;
    const float* zero;
    int rows, groups;
};

// Each view ends with `packed`: the codes in the order in which its kernel reads them, or null if that is the file's.

// weight = code - zero; zero: (N, groups) or null for 2^(bits-1).
struct GridView {
    int N, D, bits;
    const uint8_t* codes;  // N rows of `stride` bytes
    size_t stride;
    Scales scale;
    const float* zero;
    int zero_groups;
    Parts scale_parts, zero_parts;
    const void* packed;
};

// weight = levels[row][code]; one row of levels for all when rows is 1.
struct LutView {
    int N, D, bits, rows;
    const uint8_t* codes;
    size_t stride;
    const float* levels;
    Scales scale;
    const void* packed;
};

// Neighbouring `group` weights are the sum over m of words[m][code].
struct AdditiveView {
    int N, D, books, bits, group;
    const uint8_t* codes;
    size_t stride;
    const float* words;  // (books, 2^bits, group)
    Scales scale;
    const void* packed;
};

// weight = lut[window]; 16 outputs are one chain, see compress/decode.py.
struct TrellisView {
    int N, D, step, window;
    const uint8_t* codes;  // N/16 chains of `stride` bytes
    size_t stride;
    const float* lut;
    Scales scale;
    const void* packed;
};

// Numbers of their own that a weight has besides its codes. 16 rows stand side by side: block b of rows has `starts[b
// + 1] - starts[b]` steps of 16 columns and 16 values (fp16), a row each. Columns of a row ascend; one that has fewer
// ends with zeros in its last column.
struct OutlierView {
    int N;
    const int32_t* starts;
    const uint16_t* columns;
    const uint16_t* values;
};

// The inputs of a product: tokens of D floats each, one after the other.
struct Inputs {
    const float* x;
    int tokens;
    const void* prepared;  // what the kind's `prepare` made of x, or null
    int slice = 0;         // of those of the kind's `slices`
    bool exact = true;     // false: inputs and tables may be rounded to 8 bits, an error of about a hundredth
};

}  // namespace panza
