// Books of up to 256 words: a table is the low parts of its entries and their high parts, four registers each. Two
// tables have ranges whose sum is 15 bits, so that two low parts (7 bits), and likewise two high parts, add up in a
// byte.
//
// Of the words it keeps them in 16 bits, see Book. A chunk is [two tables][register of
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

    // A book as the head keeps it: its words in 16 bits as [pair of inputs][slot of a code][2], the step of those numbers and the
    // largest norm of a word.
    struct Book { float step, norm; };
    static int pairs(const AdditiveView& w) { return (w.group + 1) / 2; }
    static size_t words(const AdditiveView& w) { return (size_t)w.books * pairs(w) * 256 * 2; }
    static size_t head(const AdditiveView& w) { return words(w) * sizeof(int16_t) + up(w.books * sizeof(Book), 64); }
    static size_t bytes(int tables) { return (size_t)tables * CHUNK; }
    static void put(uint8_t* chunk, int, int t, int r, uint32_t code) {
        chunk[t / 2 * 2 * CHUNK + (r / ROWS * 2 + t % 2) * ROWS + place(r % ROWS)] = (uint8_t)code;
    }

    // Where code e stands: such that what `upper_halves` packs comes out in the order of the codes.
    static int slot(int e) { return e / 64 * 64 + e % 16 / 4 * 16 + e % 64 / 16 * 4 + e % 4; }

    static void make_head(const AdditiveView& w, void* out) {
        int16_t* to = (int16_t*)out;
        Book* books = (Book*)(to + words(w));
        for (int m = 0; m < w.books; m++, to += (size_t)pairs(w) * 256 * 2) {
            const float* word = w.words + ((size_t)m << w.bits) * w.group;
            float peak = 1e-20f;
            double most = 0;
            for (int e = 0; e < 1 << w.bits; e++) {
                double square = 0;
                for (int j = 0; j < w.group; j++) {
                    const float x = word[(size_t)e * w.group + j];
                    peak = fabsf(x) > peak ? fabsf(x) : peak, square += (double)x * x;
                }
                most = square > most ? square : most;
            }
            books[m] = {peak / 32767, (float)sqrt(most)};
            for (int e = 0; e < 1 << w.bits; e++)
                for (int j = 0; j < w.group; j++)
                    to[(j / 2 * 256 + slot(e)) * 2 + j % 2] = (int16_t)lrintf(word[(size_t)e * w.group + j] / books[m].step);
        }
    }

    // An entry is at most the norm of the inputs times that of the word. That bound sets the step before the only pass
    // over the words; looking for the true range would take a second one. Words and inputs are whole numbers of 16
    // bits such that a sum of their products is 2^16 times the entry; rounding them moves it by up to `slack`.
    static const uint8_t* tables(const AdditiveView& w, const Block& b, const float* from, uint8_t* out,
                                 const uint8_t* soon) {
        float x[(TABLES + 2) * WIDEST + 16], bounds[TABLES] = {};
        const float scale = normalised(from + first_input(w, b), inputs(w, b), x), slack = (float)(w.group / 2 + 2);
        const int16_t* words16 = (const int16_t*)w.packed;
        const Book* books = (const Book*)(words16 + words(w));
        float widest = 1e-20f, sum = 0, norm = 0;
        Step at(w, b, x);
        for (int t = 0; t < b.codes; t++, at.next(w)) {
            if (t == 0 || at.book == 0) norm = sqrtf(square(at.inputs, w.group));
            sum += bounds[t] = norm * books[at.book].norm;
        }
        for (int t = 0; t < b.tables; t += 2) {
            const float both = bounds[t] + bounds[t + 1];
            widest = both > widest ? both : widest;
        }
        const float step = 2 * widest / ((1 << (8 + LOW)) - 1 - 4 * slack);
        ((float*)out)[0] = step * scale;
        ((float*)out)[1] = -(sum + (float)b.codes * slack * step) * scale;
        out += 64;
        at = Step(w, b, x);
        for (int t = 0; t < b.codes; t++, at.next(w), out += TABLE) {
            soon = fetch(soon, SOON);
            int32_t u[WIDEST / 2 + 8];
            round_pairs(at.inputs, w.group, 65536 * books[at.book].step / step, u);
            table(words16 + (size_t)at.book * pairs(w) * 256 * 2, pairs(w), u, bounds[t] / step + slack, out);
        }
        memset(out, 0, (size_t)(b.tables - b.codes) * TABLE);
        return soon;
    }

    static inline float square(const float* x, int count) {
        float sum = 0;
        for (int i = 0; i < count; i++) sum += x[i] * x[i];
        return sum;
    }

    // Inputs times a scale as 16-bit numbers, two in each of `out`; zero beyond `count`, up to a multiple of 16 numbers.
    static inline void round_pairs(const float* x, int count, float scale, int32_t* out) {
        for (int i = 0; i < count; i += 16) {
            const __mmask16 there = (__mmask16)(count - i < 16 ? (1 << (count - i)) - 1 : 0xffff);
            const __m512i whole = _mm512_cvtps_epi32(times(_mm512_maskz_loadu_ps(there, x + i), all(scale)));
            _mm256_storeu_si256((__m256i*)(out + i / 2), _mm512_cvtsepi32_epi16(whole));
        }
    }

    // The entries (u, word) / 2^16 + bias of all 256 words, rounded, low parts and then high parts.
    static inline void table(const int16_t* words, int pairs, const int32_t* u, float bias, uint8_t* out) {
        const Bytes start = _mm512_set1_epi32((int32_t)(bias * 65536) + 32768);
        for (int e = 0; e < 256; e += 128, words += 256) {
            Bytes sums[8];
            for (int i = 0; i < 8; i++) sums[i] = start;
            for (int j = 0; j < pairs; j++) {
                const Bytes two = _mm512_set1_epi32(u[j]);
                for (int i = 0; i < 8; i++) add_pairs(sums[i], two, words + (size_t)j * 512 + 32 * i);
            }
            for (int i = 0; i < 8; i += 4) upper_halves(sums + i, out + e + 16 * i, out + 256 + e + 16 * i);
        }
    }

    // sums += products of two 16-bit numbers each. In assembly since GCC moves sums of the intrinsic to and fro.
    static inline void add_pairs(Bytes& sums, Bytes two, const int16_t* words) {
#if defined(__GNUC__)
        asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(two), "m"(*(const Bytes*)words));
#else
        sums = _mm512_dpwssd_epi32(sums, two, load((const uint8_t*)words));
#endif
    }

    // The upper 16 bits of 64 sums: their low LOW bits, and what is above.
    static inline void upper_halves(const Bytes* v, uint8_t* low, uint8_t* high) {
        alignas(64) static const uint16_t ODD[32] = {1,  3,  5,  7,  33, 35, 37, 39, 9,  11, 13, 15, 41, 43, 45, 47,
                                                     17, 19, 21, 23, 49, 51, 53, 55, 25, 27, 29, 31, 57, 59, 61, 63};
        const Bytes odd = load((const uint8_t*)ODD), mask = _mm512_set1_epi16((1 << LOW) - 1);
        const Bytes a = _mm512_permutex2var_epi16(v[0], odd, v[1]), b = _mm512_permutex2var_epi16(v[2], odd, v[3]);
        _mm512_store_si512(low, _mm512_packus_epi16(_mm512_and_si512(a, mask), _mm512_and_si512(b, mask)));
        _mm512_store_si512(high, _mm512_packus_epi16(_mm512_srli_epi16(a, LOW), _mm512_srli_epi16(b, LOW)));
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
