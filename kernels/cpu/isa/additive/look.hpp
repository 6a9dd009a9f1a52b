// Tables of floats, looked up one by one: for sets without wide shuffles of bytes. A table takes a code of up to 8
// bits, or two codes of up to 4.
//
// A chunk is [row][table], a byte each.
#pragma once

#include "blocks.hpp"
#include "vectors.hpp"

namespace panza::PANZA_ISA {

template <int CODES>
struct Look {
    static constexpr int CHUNK = 16, UNIT = 8, TABLES = 16, PER_TABLE = CODES, TABLE = 256 * sizeof(float);
    static constexpr int ENTRIES = CODES == 1 ? 256 : 16;  // of a code

    static size_t head(const AdditiveView& w) { return (size_t)w.books * w.group * ENTRIES * sizeof(float); }
    static void make_head(const AdditiveView& w, void* out) { transposed(w, ENTRIES, (float*)out); }
    static size_t bytes(int tables) { return (size_t)tables * CHUNK; }
    static void put(uint8_t* chunk, int tables, int i, int r, uint32_t code) {
        chunk[r * tables + i / CODES] |= code << i % CODES * 4;
    }

    static const uint8_t* tables(const AdditiveView& w, const Block& b, const float* x, uint8_t* out,
                                 const uint8_t* soon) {
        float* table = (float*)(out + 64);
        for (int t = 0; t < b.tables; t++, table += 256) {
            if (CODES == 1) {
                entries(w, b, t, x, table);
                continue;
            }
            float low[ENTRIES], high[ENTRIES];
            entries(w, b, 2 * t, x, low);
            entries(w, b, 2 * t + 1, x, high);
            for (int e = 0; e < 256; e += 16)
                for (int i = 0; i < 16; i++) table[e + i] = high[e / 16] + low[i];
        }
        return soon;
    }

    // The products of the inputs with the words that code i of the block may name.
    static inline void entries(const AdditiveView& w, const Block& b, int i, const float* x, float* out) {
        if (i >= b.codes) {
            for (int e = 0; e < ENTRIES; e++) out[e] = 0;
            return;
        }
        const int at = b.code + i;
        const float* words = (const float*)w.packed + (size_t)(at % w.books) * w.group * ENTRIES;
        products(words, w.group, x + at / w.books * w.group, out);
    }

    static inline void products(const float* words, int group, const float* inputs, float* out) {
#ifdef PANZA_SHUFFLES
        constexpr int STEP = 4 * LANES < ENTRIES ? 4 * LANES : ENTRIES, PARTS = STEP / LANES;
        for (int e = 0; e < ENTRIES; e += STEP) {
            Floats sums[PARTS];
            for (int k = 0; k < PARTS; k++) sums[k] = all(0);
            for (int j = 0; j < group; j++)
                for (int k = 0; k < PARTS; k++)
                    sums[k] = fma(all(inputs[j]), loadf(words + j * ENTRIES + e + k * LANES), sums[k]);
            for (int k = 0; k < PARTS; k++) storef(out + e + k * LANES, sums[k]);
        }
#else
        for (int e = 0; e < ENTRIES; e += 16) {
            float sums[16] = {};
            for (int j = 0; j < group; j++)
                for (int k = 0; k < 16; k++) sums[k] += inputs[j] * words[j * ENTRIES + e + k];
            memcpy(out + e, sums, sizeof sums);
        }
#endif
    }

    // A float that the compiler does not put next to others in a vector: its gathers take longer.
#if defined(__AVX2__)
    using Sum = __m128;
    static inline Sum none() { return _mm_setzero_ps(); }
    static inline Sum added(Sum a, const float* b) { return _mm_add_ss(a, _mm_load_ss(b)); }
    static inline Sum added(Sum a, Sum b) { return _mm_add_ss(a, b); }
    static inline float value(Sum a) { return _mm_cvtss_f32(a); }
#else
    using Sum = float;
    static inline Sum none() { return 0; }
    static inline Sum added(Sum a, const float* b) { return a + *b; }
    static inline Sum added(Sum a, Sum b) { return a + b; }
    static inline float value(Sum a) { return a; }
#endif

    static inline void chunk(const uint8_t* codes, int count, const uint8_t* tables, const float* scale, bool first,
                             float* y) {
        fetch(codes + AHEAD, CHUNK * count);
        for (int r = 0; r < CHUNK; r++) {
            const float* table = (const float*)(tables + 64);
            Sum sums[4] = {none(), none(), none(), none()};
            for (int t = 0; t < count; t += 8, codes += 8, table += 8 * 256)
                for (int i = 0; i < 8; i++) sums[i % 4] = added(sums[i % 4], table + 256 * i + codes[i]);
            const float sum = value(added(added(sums[0], sums[1]), added(sums[2], sums[3])));
            y[r] = scale[r] * sum + (first ? 0 : y[r]);
        }
    }
};

}  // namespace panza::PANZA_ISA
