// Books of up to 256 words: a table is the low parts of its entries and their high parts, four registers each. Two
// tables have ranges whose sum is 15 bits, so that two low parts (7 bits), and likewise two high parts, add up in a
// byte.
//
// Of the words it keeps them transposed and the largest norm of each book. A chunk is [two tables][register of
// rows][table][64 bytes]: two tables stay in registers for all rows of a chunk. Prepared, a block is its step and
// offset, then [table][low parts, high parts].
#pragma once

#include "blocks.hpp"
#include "vectors.hpp"

#if defined(__AVX512VBMI__)
namespace panza::PANZA_ISA {

struct Shuffle8 {
    static constexpr int GANG = 2;  // registers of rows
    static constexpr int CHUNK = GANG * ROWS, UNIT = 2, TABLES = 32, PER_TABLE = 1, TABLE = 512, LOW = 7, SOON = 512;

    static size_t words(const AdditiveView& w) { return (size_t)w.books * w.group * 256; }
    static size_t head(const AdditiveView& w) { return words(w) * sizeof(float) + up(w.books * sizeof(float), 64); }
    static size_t bytes(int tables) { return (size_t)tables * CHUNK; }
    static void put(uint8_t* chunk, int, int t, int r, uint32_t code) {
        chunk[t / 2 * 2 * CHUNK + (r / ROWS * 2 + t % 2) * ROWS + place(r % ROWS)] = (uint8_t)code;
    }

    static void make_head(const AdditiveView& w, void* out) {
        transposed(w, 256, (float*)out);
        float* norms = (float*)out + words(w);
        for (size_t i = 0; i < (size_t)w.books << w.bits; i++) {
            double square = 0;
            for (int j = 0; j < w.group; j++) square += (double)w.words[i * w.group + j] * w.words[i * w.group + j];
            const float norm = (float)(sqrt(square) * 1.0001);
            if (norm > norms[i >> w.bits]) norms[i >> w.bits] = norm;
        }
    }

    // An entry is at most the norm of the inputs times that of the word. That bound sets the step before the only pass
    // over the words; looking for the true range would take a second one.
    static const uint8_t* tables(const AdditiveView& w, const Block& b, const float* from, uint8_t* out,
                                 const uint8_t* soon) {
        float x[(TABLES + 2) * WIDEST + 16], bounds[TABLES] = {};
        const float scale = normalised(from + first_input(w, b), inputs(w, b), x);
        const float* norms = (const float*)w.packed + words(w);
        float widest = 1e-20f, sum = 0, norm = 0;
        Step at(w, b, x);
        for (int t = 0; t < b.codes; t++, at.next(w)) {
            if (t == 0 || at.book == 0) norm = sqrtf(square(at.inputs, w.group));
            sum += bounds[t] = norm * norms[at.book];
        }
        for (int t = 0; t < b.tables; t += 2) {
            const float both = bounds[t] + bounds[t + 1];
            widest = both > widest ? both : widest;
        }
        const float step = 2 * widest / ((1 << (8 + LOW)) - 4);  // two roundings fit above
        ((float*)out)[0] = step * scale;
        ((float*)out)[1] = -sum * scale;
        for (int i = 0; i < up(inputs(w, b), 16); i += LANES) storef(x + i, times(loadf(x + i), all(1 / step)));
        out += 64;
        at = Step(w, b, x);
        for (int t = 0; t < b.codes; t++, at.next(w), out += TABLE) {
            soon = fetch(soon, SOON);
            table((const float*)w.packed + (size_t)at.book * w.group * 256, w.group, at.inputs, bounds[t] / step, out);
        }
        memset(out, 0, (size_t)(b.tables - b.codes) * TABLE);
        return soon;
    }

    static inline float square(const float* x, int count) {
        float sum = 0;
        for (int i = 0; i < count; i++) sum += x[i] * x[i];
        return sum;
    }

    // The entries (u, word) + bias of all 256 words, rounded, low parts and then high parts.
    static inline void table(const float* words, int group, const float* u, float bias, uint8_t* out) {
        for (int e = 0; e < 256; e += 128, words += 128) {
            Floats sums[8];
            for (int i = 0; i < 8; i++) sums[i] = all(bias);
            for (int j = 0; j < group; j++) {
                const Floats input = all(u[j]);
                for (int i = 0; i < 8; i++) sums[i] = fma(input, loadf(words + j * 256 + 16 * i), sums[i]);
            }
            narrow<LOW>(sums, out + e, out + 256 + e);
            narrow<LOW>(sums + 4, out + e + 64, out + 256 + e + 64);
        }
    }

    static inline void chunk(const uint8_t* codes, int count, const uint8_t* tables, const float* scale, bool first,
                             float* y) {
        const float step = ((const float*)tables)[0], offset = ((const float*)tables)[1];
        Sums low[GANG], high[GANG];
        for (int i = 0; i < GANG; i++) low[i] = high[i] = {zero(), zero()};
        tables += 64;
        for (int t = 0; t < count; t += 2, tables += 2 * TABLE) {
            const Table low_a(tables), high_a(tables + 256), low_b(tables + TABLE), high_b(tables + TABLE + 256);
            for (int i = 0; i < GANG; i++, codes += 2 * ROWS) {
                const Bytes a = load(codes), b = load(codes + ROWS);
                const __mmask64 in_a = _mm512_movepi8_mask(a), in_b = _mm512_movepi8_mask(b);
                fetch(codes + AHEAD, 2 * ROWS);
                low[i].add(add8(low_a.pick(a, in_a), low_b.pick(b, in_b)));
                high[i].add(add8(high_a.pick(a, in_a), high_b.pick(b, in_b)));
            }
        }
        for (int i = 0; i < GANG; i++) flush<LOW>(low[i], high[i], step, offset, scale + i * ROWS, first, y + i * ROWS);
    }

    // 256 bytes, and what stands there for 64 codes; upper: whose highest bit is set.
    struct Table {
        Bytes a, b, c, d;
        inline Table(const uint8_t* p) : a(held(p)), b(held(p + 64)), c(held(p + 128)), d(held(p + 192)) {}
        inline Bytes pick(Bytes codes, __mmask64 upper) const {
            return _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(a, codes, b),
                                          _mm512_permutex2var_epi8(c, codes, d));
        }
        static inline Bytes held(const uint8_t* p) {
            Bytes part = load(p);
#if defined(__GNUC__)
            asm("" : "+v"(part));  // or the compiler reads it again for every use
#endif
            return part;
        }
    };
};

}  // namespace panza::PANZA_ISA
#endif
