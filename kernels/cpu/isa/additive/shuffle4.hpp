// Books of up to 16 words: a table is the low parts of its entries and their high parts, 16 bytes each, and a shuffle
// looks up a whole chunk of rows. Four tables have ranges whose sum is 14 bits, so that four low parts (6 bits), and
// likewise four high parts, add up in a byte.
//
// A chunk is [four tables][register of rows][two registers: tables 0 and 1 in the low and the high half of a byte,
// tables 2 and 3]: with AVX-512 four tables stay in registers for all rows of a chunk.
// Prepared, a block is its step and offset, then [four tables][low parts, high parts].
#pragma once

#include "blocks.hpp"
#include "vectors.hpp"

#ifdef PANZA_SHUFFLES
namespace panza::PANZA_ISA {

struct Shuffle4 {
#if defined(__AVX512VBMI__)
    static constexpr int GANG = 2;  // registers of rows
#else
    static constexpr int GANG = 1;
#endif
    static constexpr int CHUNK = GANG * ROWS, UNIT = 4, TABLES = MOST, PER_TABLE = 1, TABLE = 32, LOW = 6, SOON = 512;

    static size_t head(const AdditiveView& w) { return (size_t)w.books * w.group * 16 * sizeof(float); }
    static void make_head(const AdditiveView& w, void* out) { transposed(w, 16, (float*)out); }
    static size_t bytes(int tables) { return (size_t)tables / 2 * CHUNK; }
    static void put(uint8_t* chunk, int, int t, int r, uint32_t code) {
        const int pair = (t / 4 * GANG + r / ROWS) * 2 + t % 4 / 2;
        chunk[pair * ROWS + place(r % ROWS)] |= code << t % 2 * 4;
    }

    static const uint8_t* tables(const AdditiveView& w, const Block& b, const float* from, uint8_t* out,
                                 const uint8_t* soon) {
        constexpr int PARTS = 16 / LANES;
        float x[(MOST + 2) * WIDEST + 16];
        alignas(64) float entries[MOST * 16];
        const float scale = normalised(from + first_input(w, b), inputs(w, b), x);
        Step at(w, b, x);
        Floats peaks[4][PARTS];
        for (int q = 0; q < 4; q++)
            for (int i = 0; i < PARTS; i++) peaks[q][i] = all(0);
        for (int t = 0; t < b.tables; t += 4) {
            soon = fetch(soon, SOON);
            for (int q = 0; q < 4; q++, at.next(w)) {
                Floats sums[PARTS];
                for (int i = 0; i < PARTS; i++) sums[i] = all(0);
                const float* words = (const float*)w.packed + (size_t)at.book * w.group * 16;
                if (t + q < b.codes) products(words, w.group, at.inputs, sums);
                for (int i = 0; i < PARTS; i++) {
                    peaks[q][i] = larger(peaks[q][i], sums[i]);
                    storef(entries + (t + q) * 16 + i * LANES, sums[i]);
                }
            }
        }
        float peak[4], sum = 0;
        for (int q = 0; q < 4; q++) sum += peak[q] = widest(peaks[q]);
        const float step = sum > 1e-20f ? 2 * sum / ((1 << (8 + LOW)) - 5) : 1;  // 4 roundings fit above
        ((float*)out)[0] = step * scale;
        ((float*)out)[1] = -sum * (b.tables / 4) * scale;
        out += 64;
        for (int t = 0; t < b.tables; t += 4, out += 4 * TABLE) {
            Floats values[4 * PARTS];
            for (int i = 0; i < 4 * PARTS; i++)
                values[i] = fma(loadf(entries + t * 16 + i * LANES), all(1 / step), all(peak[i / PARTS] / step));
            narrow<LOW>(values, out, out + 64);
        }
        return soon;
    }

    // Adds the products of the inputs with the words.
    static inline void products(const float* words, int group, const float* inputs, Floats* sums) {
        for (int j = 0; j < group; j++, words += 16)
            for (int i = 0; i < 16 / LANES; i++) sums[i] = fma(all(inputs[j]), loadf(words + i * LANES), sums[i]);
    }

    static inline float widest(const Floats* parts) {
        float peak = 0;
        for (int i = 0; i < 16 / LANES; i++) peak = largest(parts[i]) > peak ? largest(parts[i]) : peak;
        return peak;
    }

    static inline void chunk(const uint8_t* codes, int count, const uint8_t* tables, const float* scale, bool first,
                             float* y) {
        const float step = ((const float*)tables)[0], offset = ((const float*)tables)[1];
        Sums low[GANG], high[GANG];
        for (int i = 0; i < GANG; i++) low[i] = high[i] = {zero(), zero()};
        tables += 64;
        for (int t = 0; t < count; t += 4, tables += 4 * TABLE) {
            const Four lows(tables), highs(tables + 64);
            for (int i = 0; i < GANG; i++, codes += 2 * ROWS) {
                const Bytes a = load(codes), b = load(codes + ROWS);
                const Bytes at[4] = {nibbles(a), nibbles(right16<4>(a)), nibbles(b), nibbles(right16<4>(b))};
                fetch(codes + AHEAD, 2 * ROWS);
                low[i].add(lows.pick(at));
                high[i].add(highs.pick(at));
            }
        }
        for (int i = 0; i < GANG; i++) flush<LOW>(low[i], high[i], step, offset, scale + i * ROWS, first, y + i * ROWS);
    }

    // Four tables of 16 bytes, and the sum of what stands there for codes of each.
    struct Four {
        Bytes a, b, c, d;
        inline Four(const uint8_t* p) : a(sixteen(p)), b(sixteen(p + 16)), c(sixteen(p + 32)), d(sixteen(p + 48)) {}
        inline Bytes pick(const Bytes* at) const {
            return add8(add8(panza::PANZA_ISA::pick(a, at[0]), panza::PANZA_ISA::pick(b, at[1])),
                        add8(panza::PANZA_ISA::pick(c, at[2]), panza::PANZA_ISA::pick(d, at[3])));
        }
    };
};

}  // namespace panza::PANZA_ISA
#endif
