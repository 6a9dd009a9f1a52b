// The cheapest paths through a bit-shift trellis: compress/viterbi.py is the definition. A block of S threads is a chain,
// a thread a state; a step costs one barrier. Compiled at first use through NVRTC.

// target, weight: (T, C). start: (C,) the state before the first, or null. lut: (S,). states: (T, C).
// Shared memory: `Viterbi.shared_bytes`.
extern "C" __global__ void viterbi(const float* target, const float* weight, const long long* start, const float* lut,
                                   long long* states, int T, int C, int step) {
    extern __shared__ float room[];
    const int S = blockDim.x, J = S >> step, P = 1 << step, s = threadIdx.x, set = s >> step;
    const long long c = blockIdx.x;
    float *best = room, *aim = best + 2 * J, *dear = aim + T;  // best: of each set of states, now and one step ago
    unsigned char *low = (unsigned char*)(dear + T), *path = low + T * J;  // low: the best state's low bits, (T, J)

    for (int t = s; t < T; t += S) {
        aim[t] = target[t * (long long)C + c];
        dear[t] = weight[t * (long long)C + c];
    }
    if (s < J) best[s] = start && start[c] >> step != s ? 1e30f : 0.f;
    const float value = lut[s];
    __syncthreads();

    for (int t = 0; t < T; ++t) {
        const float lost = aim[t] - value;
        float cost = dear[t] * lost * lost + best[(t & 1) * J + (s & (J - 1))];
        int least = s & (P - 1);
        for (int away = 1; away < P; away <<= 1) {  // the states of a set lie in neighbouring threads of a warp
            const float other = __shfl_xor_sync(~0u, cost, away);
            const int there = __shfl_xor_sync(~0u, least, away);
            if (other < cost || (other == cost && there < least)) cost = other, least = there;
        }
        if ((s & (P - 1)) == 0) {
            best[((t + 1) & 1) * J + set] = cost;
            low[t * J + set] = least;
        }
        __syncthreads();
    }

    if (s == 0) {
        const float* last = best + (T & 1) * J;
        int set = 0;
        for (int j = 1; j < J; ++j)
            if (last[j] < last[set]) set = j;
        for (int t = T - 1; t >= 0; --t) {
            const int state = set << step | low[t * J + set];
            path[t] = state;
            set = state & (J - 1);  // that of the state before
        }
    }
    __syncthreads();
    for (int t = s; t < T; t += S) states[t * (long long)C + c] = path[t];
}
