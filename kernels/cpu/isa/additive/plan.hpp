// How a product with sums of codewords is cut up. Every code of a row names one entry of a table: the products of a
// group of inputs with all words of a book. A product is the sum of those entries: books and groups need no telling
// apart.
#pragma once

#include "../here.hpp"

namespace panza::PANZA_ISA {

constexpr int WIDEST = 64;         // inputs of a group
constexpr int MOST = 64;           // codes of a block
constexpr int BLOCK_INPUTS = 512;  // that share a step, at most
constexpr int SLICE_INPUTS = 512, SLICES = 16;

// Tables of a row stand in the order of its codes. Each scale group has its own, filled up to a multiple of `unit`; it
// is cut into blocks, whose tables fit the level-1 cache, and the weight into slices, which are runs of blocks.
struct Plan {
    int codes, tables;  // of a scale group
    int per_table;      // codes that one table takes at once
    int block, blocks;  // tables of a block, blocks of a scale group
    int slices;
};

struct Block {
    int code, codes;   // the first, in the order of a row, and how many
    int slot, tables;  // the first, fillers of earlier scale groups counted, and how many with fillers
    int scale;
};

static inline int up(int n, int unit) { return (n + unit - 1) / unit * unit; }
static inline int least(int a, int b) { return a < b ? a : b; }
static inline int most(int a, int b) { return a > b ? a : b; }
static inline int scale_groups(const AdditiveView& w) {
    return w.scale.values && w.scale.groups > 1 ? w.scale.groups : 1;
}

// `most_tables` is a multiple of `unit`.
static inline Plan plan(const AdditiveView& w, int most_tables, int unit, int per_table) {
    Plan p;
    p.codes = w.D / scale_groups(w) / w.group * w.books;
    p.per_table = per_table;
    p.tables = up(up(p.codes, per_table) / per_table, unit);
    p.block = least(most_tables, most(unit, BLOCK_INPUTS / w.group * w.books / per_table / unit * unit));
    p.blocks = (p.tables + p.block - 1) / p.block;
    p.slices = most(1, least(least(SLICES, p.blocks * scale_groups(w)), w.D / SLICE_INPUTS));
    return p;
}

static inline Block block(const Plan& p, int at) {
    const int scale = at / p.blocks, first = at % p.blocks * p.block;
    const int tables = least(p.block, p.tables - first);
    return {scale * p.codes + first * p.per_table, least(tables * p.per_table, p.codes - first * p.per_table),
            scale * p.tables + first, tables, scale};
}

static inline int first_block(const AdditiveView& w, const Plan& p, int slice) {
    return (int)((int64_t)p.blocks * scale_groups(w) * slice / p.slices);
}

static inline int most_blocks(const AdditiveView& w, const Plan& p) {  // of a slice
    return (p.blocks * scale_groups(w) + p.slices - 1) / p.slices;
}

static inline int first_input(const AdditiveView& w, const Block& b) { return b.code / w.books * w.group; }
static inline int inputs(const AdditiveView& w, const Block& b) {  // that the block's codes meet
    return ((b.code + b.codes - 1) / w.books + 1) * w.group - first_input(w, b);
}

// The codes of a block one after the other: their book, and their inputs.
struct Step {
    int book;
    const float* inputs;
    inline Step(const AdditiveView& w, const Block& b, const float* inputs) : book(b.code % w.books), inputs(inputs) {}
    inline void next(const AdditiveView& w) {
        if (++book < w.books) return;
        book = 0;
        inputs += w.group;
    }
};

// The scales of `count` rows from `row` on that block b needs, as they lie or copied into `to`.
static inline const float* scales(const AdditiveView& w, const Block& b, int row, int count, bool in_place, float* to) {
    if (w.scale.values && scale_groups(w) == 1 && in_place) return w.scale.values + row;
    for (int i = 0; i < count; i++)
        to[i] = w.scale.values ? w.scale.values[(size_t)(row + i) * scale_groups(w) + b.scale] : 1;
    return to;
}

// A book's words in the order [input of the group][code], `entries` codes each, zeros where the book has fewer.
static inline void transposed(const AdditiveView& w, int entries, float* out) {
    for (int m = 0; m < w.books; m++)
        for (int j = 0; j < w.group; j++)
            for (int e = 0; e < entries; e++)
                *out++ = e < 1 << w.bits ? w.words[(((size_t)m << w.bits) + e) * w.group + j] : 0;
}

static inline uint32_t code(const AdditiveView& w, int row, int at) {
    return window(w.codes + (size_t)row * w.stride, (size_t)at * w.bits, w.bits);
}

}  // namespace panza::PANZA_ISA
