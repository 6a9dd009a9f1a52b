// What the kernels with tables share: the order of codes and tables in memory, and the walk over them.
//
// Packed: what the kernel makes of the words, then [block][chunk of rows][codes of a chunk as the kernel wants them].
// Prepared, for a slice: [token][block][64 bytes of its own][table].
#pragma once

#include "plan.hpp"

namespace panza::PANZA_ISA {

// Bytes of codes that are on their way from memory to the level-2 cache: several times what a core gets while it waits
// for the first of them. Servers that do not look far ahead by themselves take twice as long without.
constexpr int AHEAD = 8192;

// Asks for the next `bytes` bytes; returns where they end.
static inline const uint8_t* fetch(const uint8_t* codes, int bytes) {
#if defined(__GNUC__)
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(codes + i, 0, 2);
#endif
    return codes + bytes;
}

// Kernel: the numbers CHUNK (rows), UNIT, TABLES, PER_TABLE (see Plan) and TABLE (bytes), and the functions
//   head, make_head   what it keeps of the words, a multiple of 64 bytes
//   bytes, put        of a chunk with so many tables; writes one code into such a chunk of zeros
//   tables            makes a block's part of what is prepared; meanwhile fetches codes from `soon` on
//   chunk             y = or += the products of one chunk and one block
template <class Kernel>
struct Blocks {
    static Plan plan_of(const AdditiveView& w) { return plan(w, Kernel::TABLES, Kernel::UNIT, Kernel::PER_TABLE); }
    static size_t stride(const Plan& p) { return 64 + (size_t)p.block * Kernel::TABLE; }

    static size_t packed(const AdditiveView& w) {
        return Kernel::head(w) + chunks(w) * Kernel::bytes(plan_of(w).tables) * scale_groups(w);
    }

    static size_t chunks(const AdditiveView& w) { return up(w.N, Kernel::CHUNK) / Kernel::CHUNK; }
    static const uint8_t* codes(const AdditiveView& w, int slot) {
        return (const uint8_t*)w.packed + Kernel::head(w) + chunks(w) * Kernel::bytes(slot);
    }

    static void pack(const AdditiveView& w, void* out) {
        const Plan p = plan_of(w);
        Kernel::make_head(w, out);
        uint8_t* to = (uint8_t*)out + Kernel::head(w);
        for (int at = 0; at < p.blocks * scale_groups(w); at++) {
            const Block b = block(p, at);
            for (int first = 0; first < w.N; first += Kernel::CHUNK, to += Kernel::bytes(b.tables))
                for (int r = 0; r < least(Kernel::CHUNK, w.N - first); r++)
                    for (int i = 0; i < b.codes; i++) Kernel::put(to, b.tables, i, r, code(w, first + r, b.code + i));
        }
    }

    static size_t prepared(const AdditiveView& w, int tokens) {
        const Plan p = plan_of(w);
        return tokens * most_blocks(w, p) * stride(p);
    }

    static void prepare(const AdditiveView& w, const Inputs& in, void* out) {
        const Plan p = plan_of(w);
        const int first = first_block(w, p, in.slice), last = first_block(w, p, in.slice + 1);
        for (int t = 0; t < in.tokens; t++) {
            uint8_t* to = (uint8_t*)out + t * most_blocks(w, p) * stride(p);
            const uint8_t* soon = codes(w, block(p, first).slot);
            for (int at = first; at < last; at++, to += stride(p))
                soon = Kernel::tables(w, block(p, at), in.x + (size_t)t * w.D, to, soon);
        }
    }

    static void multiply(const AdditiveView& w, const Inputs& in, int first, int last, float* y, int ldy) {
        const Plan p = plan_of(w);
        const int start = first_block(w, p, in.slice), end = first_block(w, p, in.slice + 1);
        for (int at = start; at < end; at++) {
            const Block b = block(p, at);
            const uint8_t* from = codes(w, b.slot) + first / Kernel::CHUNK * Kernel::bytes(b.tables);
            for (int row = first; row < last; row += Kernel::CHUNK, from += Kernel::bytes(b.tables)) {
                float room[Kernel::CHUNK];
                const int rows = least(Kernel::CHUNK, last - row);
                const float* scale = scales(w, b, row, rows, rows == Kernel::CHUNK, room);
                for (int t = 0; t < in.tokens; t++) {
                    const size_t made = (size_t)t * most_blocks(w, p) + at - start;
                    const uint8_t* tables = (const uint8_t*)in.prepared + made * stride(p);
                    float* to = y + (size_t)t * ldy + row;
                    if (rows == Kernel::CHUNK) Kernel::chunk(from, b.tables, tables, scale, at == start, to);
                    else some(rows, from, b.tables, tables, scale, at == start, to);
                }
            }
        }
    }

    // The last rows, when they do not fill a chunk.
    static void some(int rows, const uint8_t* codes, int count, const uint8_t* tables, const float* scale, bool first,
                     float* y) {
        float whole[Kernel::CHUNK] = {}, scales[Kernel::CHUNK] = {};
        memcpy(scales, scale, rows * sizeof(float));
        if (!first) memcpy(whole, y, rows * sizeof(float));
        Kernel::chunk(codes, count, tables, scales, first, whole);
        memcpy(y, whole, rows * sizeof(float));
    }
};

}  // namespace panza::PANZA_ISA
