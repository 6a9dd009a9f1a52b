// Rows of a grid's weight in fp16, bf16 or fp32: compress/weight.py's `rows` is the definition, whose arithmetic this
// repeats in fp32, rounded once. Compiled at first use through NVRTC. A block of threads decodes one row, a thread 8
// numbers at a time: their codes fill `bits` whole bytes.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct Weight {  // as the file holds it
    const u8* codes;       // (N, width), the least significant bit first
    const u16* scale;      // (N, scales) fp16, or null for 1
    const void* zero;      // null for the middle; (N, zeros) fp16; or their codes of zero_bits bits, zero_width bytes a row
    const int* starts;     // outliers in CSR form, or null
    const u16* columns;
    const u16* values;     // fp16
    u64 N;
    int D, width, bits;    // D: of the weight, the codes may have more
    int scales, scale_size, zeros, zero_size;  // groups of a row, and inputs of each
    int zero_bits, zero_width, outliers;       // zero_bits: 0 for fp16
};

__device__ float half(u16 bits) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}
__device__ void write(void* y, u64 i, float f, int kind) {  // 0: fp16, 1: bf16, 2: fp32
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

__device__ float zero_of(const Weight& w, u64 row, int group) {
    if (!w.zero) return 1 << (w.bits - 1);
    if (!w.zero_bits) return half(((const u16*)w.zero)[row * w.zeros + group]);
    const u8* codes = (const u8*)w.zero + row * w.zero_width;
    const int at = group * w.zero_bits, last = (at + w.zero_bits - 1) >> 3;
    u32 bytes = 0;
    #pragma unroll 1
    for (int b = at >> 3; b <= last; b++) bytes |= (u32)codes[b] << 8 * (b - (at >> 3));
    return bytes >> (at & 7) & ((1 << w.zero_bits) - 1);
}
// No product and sum in one rounding: the definition has two.
__device__ float decoded(const Weight& w, u64 row, int d, u32 code) {
    const float level = __fsub_rn(code, zero_of(w, row, w.zero ? d / w.zero_size : 0));
    return w.scale ? __fmul_rn(level, half(w.scale[row * w.scales + d / w.scale_size])) : level;
}

// y: (blocks, D). A row that does not exist is NaN.
extern "C" __global__ void __launch_bounds__(256) rows(Weight w, const long long* ids, void* y, int kind) {
    const u64 row = ids[blockIdx.x], out = (u64)blockIdx.x * w.D;  // a negative one is larger than any
    if (row >= w.N) {
        for (int d = threadIdx.x; d < w.D; d += blockDim.x) write(y, out + d, __int_as_float(0x7fffffff), kind);
        return;
    }
    const u8* codes = w.codes + row * w.width;
    for (int d = threadIdx.x * 8; d < w.D; d += blockDim.x * 8) {
        const int first = d / 8 * w.bits;
        u64 eight = 0;
        #pragma unroll
        for (int b = 0; b < 8; b++)
            if (b < w.bits && first + b < w.width) eight |= (u64)codes[first + b] << 8 * b;
        #pragma unroll 1
        for (int i = 0; i < 8; i++)
            if (d + i < w.D) write(y, out + d + i, decoded(w, row, d + i, eight >> i * w.bits & ((1u << w.bits) - 1)), kind);
    }
    if (!w.starts) return;
    __syncthreads();
    const int end = min(w.starts[row + 1], w.outliers);
    for (int at = max(w.starts[row], 0) + threadIdx.x; at < end; at += blockDim.x) {
        const int d = w.columns[at], bit = d * w.bits, first = bit >> 3;
        if (d >= w.D) continue;
        const u32 two = codes[first] | (first + 1 < w.width ? codes[first + 1] << 8 : 0);  // 8 bits lie in two bytes
        const float rest = decoded(w, row, d, two >> (bit & 7) & ((1u << w.bits) - 1));
        write(y, out + d, __fadd_rn(rest, half(w.values[at])), kind);
    }
}
