// The cheapest paths through a bit-shift trellis: compress/viterbi.py is the definition. Chains stand side by side in a
// register, so that nothing moves between its lanes and one state's cost does not wait for another's.
#include "here.hpp"

namespace panza::PANZA_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int Ints __attribute__((vector_size(4 * LANES)));

static void viterbi(int states, int step, const float* target, const float* weight, size_t stride, int T, int chains, const int64_t* start,
                    const float* lut, uint8_t* room, int64_t* path) {
    const int P = 1 << step, J = states >> step;
    Floats best[2][MOST_SETS];
    for (int j = 0; j < J; j++)
        for (int c = 0; c < LANES; c++) best[0][j][c] = !start || c >= chains || start[c] >> step == j ? 0 : 1e30f;
    for (int t = 0; t < T; t++) {
        const Floats* before = best[t & 1];
        Floats x = {}, w = {};
        memcpy(&x, target + t * stride, chains * sizeof(float));
        memcpy(&w, weight + t * stride, chains * sizeof(float));
        for (int j = 0; j < J; j++) {
            Floats least = x - x + 3e38f;
            Ints low = {};
            for (int l = 0; l < P; l++) {
                const int s = j << step | l;
                const Floats lost = x - lut[s], cost = w * lost * lost + before[s & (J - 1)];
                const Ints less = cost < least;
                least = less ? cost : least;
                low = less ? low * 0 + l : low;
            }
            best[(t + 1) & 1][j] = least;
            for (int c = 0; c < LANES; c++) room[((size_t)t * J + j) * LANES + c] = (uint8_t)low[c];
        }
    }
    for (int c = 0; c < chains; c++) {
        int set = 0;
        for (int j = 1; j < J; j++)
            if (best[T & 1][j][c] < best[T & 1][set][c]) set = j;
        for (int t = T - 1; t >= 0; t--) {
            const int state = set << step | room[((size_t)t * J + set) * LANES + c];
            path[t * stride + c] = state;
            set = state & (J - 1);  // that of the state before
        }
    }
}

const Search SEARCH = {LANES, viterbi};

}  // namespace panza::PANZA_ISA
