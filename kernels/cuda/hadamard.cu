// Permutation, signs and blockwise Hadamard transform of rows: compress/transform.py is the definition. Compiled at first
// use through NVRTC, once for each size of blocks: -DBLOCK, a power of two up to 8192.
//
// A thread has 8 neighbours: three steps are its own, five its warp's by shuffles; blocks above 256 pass through shared
// memory once, after which a thread has the same place of up to 8 warps, and of the 16 or 32 of the largest the rest is
// its neighbours' again.

#define CROSS (BLOCK > 256 ? BLOCK / 256 : 1)  // warps of a block of the transform
#define WARPS (CROSS > 4 ? CROSS : 4)
#define OWN (CROSS < 8 ? CROSS : 8)            // of these in a thread's registers, behind shared memory
#define PITCH 260                              // floats of a warp in shared memory

typedef unsigned int u32;
typedef unsigned short u16;

__device__ __forceinline__ float read(const void* x, long long i, int kind) {  // 0: fp16, 1: bf16, 2: fp32
    float f;
    if (kind == 2) return ((const float*)x)[i];
    const u16 bits = ((const u16*)x)[i];
    if (kind == 1) return __uint_as_float((u32)bits << 16);
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}
__device__ __forceinline__ void write(void* y, long long i, float f, int kind) {
    u16 bits;
    if (kind == 2) ((float*)y)[i] = f;
    else if (kind == 1) {
        const u32 all = __float_as_uint(f);
        ((u16*)y)[i] = f != f ? 0x7fff : (all + 0x7fff + (all >> 16 & 1)) >> 16;
    } else {
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f));
        ((u16*)y)[i] = bits;
    }
}
// Numbers i and i + `away` of a thread become their sum and difference.
template <int AWAY>
__device__ __forceinline__ void step(float* v) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
        if (!(i & AWAY)) {
            const float a = v[i], b = v[i + AWAY];
            v[i] = a + b, v[i + AWAY] = a - b;
        }
}
// The same of all numbers of two lanes.
__device__ __forceinline__ void step_of_lanes(float* v, int away) {
    const bool second = threadIdx.x & away;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float other = __shfl_xor_sync(~0u, v[i], away);
        v[i] = second ? other - v[i] : v[i] + other;
    }
}

// x: (rows, d) -> y: (rows, D): the first D of a transform of `whole` numbers and zeros beyond; x is zero from d on. order: where
// an input comes from, or null; signs: packed bits, 1 for minus, or null, before the transform or `after` it. bias: (D,), of y's kind.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
hadamard(const void* x, void* y, const int* order, const unsigned char* signs, const void* bias, int d, int D, int whole,
         int after, int from_kind, int to_kind) {
    const int span = WARPS * 256, spans = (max(whole, D) + span - 1) / span, base = blockIdx.x % spans * span;
    const long long row = blockIdx.x / spans;
    const int first = base + 8 * threadIdx.x;
    u32 minus = signs && !after && first < whole ? signs[first >> 3] : 0;
#if __CUDA_ARCH__ >= 900  // it may begin while the kernel before it ends
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int at = first + i, source = at < whole ? order ? order[at] : at : d;
        v[i] = source < d ? read(x, row * d + source, from_kind) : 0;
        if (minus >> i & 1) v[i] = -v[i];
    }
    if (BLOCK > 1) step<1>(v);
    if (BLOCK > 2) step<2>(v);
    if (BLOCK > 4) step<4>(v);
#pragma unroll
    for (int away = 1; away < 32 && 8 * away < BLOCK; away <<= 1) step_of_lanes(v, away);

    int place = first;
#if CROSS > 1
    __shared__ float4 room[WARPS * PITCH / 4];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float4* mine = room + (warp * PITCH + 8 * lane) / 4;
    mine[0] = {v[0], v[1], v[2], v[3]}, mine[1] = {v[4], v[5], v[6], v[7]};
    __syncthreads();
    const int group = warp / CROSS, q = threadIdx.x - group * (CROSS * 32);
    const int sub = q % (CROSS / OWN), index = q / (CROSS / OWN);  // warps OWN * sub ... of the numbers at `index`, ...
    const float* from = (const float*)room + (group * CROSS + OWN * sub) * PITCH + index;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = from[i % OWN * PITCH + i / OWN * (CROSS * 32)];
    step<1>(v);
    if (OWN > 2) step<2>(v);
    if (OWN > 4) step<4>(v);
#pragma unroll
    for (int away = 1; away < CROSS / OWN; away <<= 1) step_of_lanes(v, away);
    place = base + (group * CROSS + OWN * sub) * 256 + index;
#endif
    const float norm = rsqrtf((float)BLOCK);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int at = CROSS > 1 ? place + i % OWN * 256 + i / OWN * (CROSS * 32) : place + i;
        if (at >= D) continue;
        float value = v[i] * norm;
        if (signs && after && at < whole && signs[at >> 3] >> (at & 7) & 1) value = -value;
        if (bias) value += read(bias, at, to_kind);
        write(y, row * D + at, value, to_kind);
    }
}
