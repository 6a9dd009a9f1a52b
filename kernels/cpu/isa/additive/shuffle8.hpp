// Books of up to 256 words: a table is the low parts of its entries and their high parts, four registers each. Two
// tables have ranges whose sum is 15 bits, so that two low parts (7 bits), and likewise two high parts, add up in a
// byte.
//
// Of the words it keeps them transposed and the largest norm of each book. A chunk is [table][64 bytes]. Prepared, a
// block is its step and offset, then [table][low parts, high parts].
#pragma once

#include "blocks.hpp"
#include "vectors.hpp"

#if defined(__AVX512VBMI__)
namespace panza::PANZA_ISA {

struct Shuffle8 {
    static constexpr int CHUNK = ROWS, UNIT = 2, TABLES = 32, PER_TABLE = 1, TABLE = 512, LOW = 7, SOON = 512;

    static size_t words(const AdditiveView& w) { return (size_t)w.books * w.group * 256; }
    static size_t head(const AdditiveView& w) { return words(w) * sizeof(float) + up(w.books * sizeof(float), 64); }
    static size_t bytes(int tables) { return (size_t)tables * ROWS; }
    static void put(uint8_t* chunk, int, int t, int r, uint32_t code) { chunk[t * ROWS + place(r)] = (uint8_t)code; }

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
        Sums low = {zero(), zero()}, high = low;
        tables += 64;
        for (int t = 0; t < count; t += 2, codes += 2 * ROWS, tables += 2 * TABLE) {
            const Index a = load(codes), b = load(codes + ROWS);
            fetch(codes + AHEAD, 2 * ROWS);
            low.add(add8(a.pick(tables), b.pick(tables + TABLE)));
            high.add(add8(a.pick(tables + 256), b.pick(tables + TABLE + 256)));
        }
        flush<LOW>(low, high, step, offset, scale, first, y);
    }

    // 64 codes and where their two highest bits are set.
    struct Index {
        Bytes codes;
        __mmask64 bit6, bit7, both;
        inline Index(Bytes c)
            : codes(c), bit6(_mm512_movepi8_mask(left16<1>(c))), bit7(_mm512_movepi8_mask(c)),
              both(_kand_mask64(bit6, bit7)) {}
        inline Bytes pick(const uint8_t* table) const {
            Bytes v = _mm512_permutexvar_epi8(codes, load(table));
            v = _mm512_mask_permutexvar_epi8(v, bit6, codes, load(table + 64));
            v = _mm512_mask_permutexvar_epi8(v, bit7, codes, load(table + 128));
            return _mm512_mask_permutexvar_epi8(v, both, codes, load(table + 192));
        }
    };
};

}  // namespace panza::PANZA_ISA
#endif
