// Permutation, signs and blockwise Hadamard transform of rows: compress/transform.py is the definition. Compiled at first
// use through NVRTC. A block of 512 threads transforms 1024 numbers, or one block of the transform if that is longer.

typedef unsigned int u32;
typedef unsigned short u16;

__device__ float read(const void* x, long long i, int kind) {  // 0: fp16, 1: bf16, 2: fp32
    float f;
    if (kind == 2) return ((const float*)x)[i];
    const u16 bits = ((const u16*)x)[i];
    if (kind == 1) return __uint_as_float((u32)bits << 16);
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}
__device__ void write(void* y, long long i, float f, int kind) {
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

// x: (rows, d) -> y: (rows, D), rows `stride` apart: the first D of a transform of `whole` numbers, zeros from d on. order: where an input
// comes from, or null; signs: packed bits, 1 for minus, or null, before the transform or `after` it. bias: (D,), of y's kind.
extern "C" __global__ void __launch_bounds__(512)
hadamard(const void* x, void* y, const int* order, const unsigned char* signs, const void* bias, int d, int D, int stride,
         int whole, int block, int after, int from_kind, int to_kind) {
    extern __shared__ float room[];
    const int span = block > 1024 ? block : 1024, spans = (whole + span - 1) / span;
    const long long row = blockIdx.x / spans;
    const int base = blockIdx.x % spans * span, count = min(span, whole - base);
#if __CUDA_ARCH__ >= 900  // it may begin while the kernel before it ends
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
    for (int i = threadIdx.x; i < count; i += 512) {
        const int at = base + i, source = order ? order[at] : at;
        float value = source < d ? read(x, row * d + source, from_kind) : 0;
        if (signs && !after && signs[at >> 3] >> (at & 7) & 1) value = -value;
        room[i] = value;
    }
    __syncthreads();
    for (int half = 1; half < block; half <<= 1) {
        for (int i = threadIdx.x; i < count / 2; i += 512) {
            const int low = (i & ~(half - 1)) * 2 + (i & (half - 1));
            const float a = room[low], b = room[low + half];
            room[low] = a + b, room[low + half] = a - b;
        }
        __syncthreads();
    }
    const float norm = rsqrtf((float)block);
    for (int i = threadIdx.x; i < count; i += 512) {
        const int at = base + i;
        if (at >= D) break;
        float value = room[i] * norm;
        if (signs && after && signs[at >> 3] >> (at & 7) & 1) value = -value;
        if (bias) value += read(bias, at, to_kind);
        write(y, row * stride + at, value, to_kind);
    }
}
