// Products with compressed weights; compress/cuda.py is the host's side, compress/weight.py the definition. Compiled at
// first use through NVRTC, one image for each kind of codes: the names in capitals that are not defined here are -D flags.
//
//   KIND    GRID, ADDITIVE or TRELLIS          BITS    of a weight's codes: 2, 3, 4, 8; a trellis' step; books of 8 bits
//   WINDOW  of a trellis                       WIDE    1: one book of 2^16 words, left in global memory
//   CENTER  a grid's zero where no table is    REP     copies of the table in shared memory
//   SCALE   0: of a row. 1: of GROUPS parts of a piece, each of 16 inputs or more. 2: two levels, of 16 inputs
//   ZEROS   1: the table holds zeros, too      BF16    of inputs and outputs; else fp16
//   NT      eights of tokens                   R       tiles of a warp          WARPS   of a block
//   DEPTH   pieces in flight (narrow) or stages of inputs (wide)                INPUTS  1: narrow keeps x in shared memory
//   SPARSE  1: there are outliers              PART    what to compile: 0 narrow, 1 wide and finish, 2 dense
//
// A tile is 16 outputs; a piece is 128 inputs of a tile, BITS * 8 bytes a lane. Its codes lie in the order in which lanes
// feed m16n8k16 of the tensor cores: lane = 4 g + t holds outputs `first` and `second` (g and g + 8; 2g and 2g + 1 of a
// trellis). Of 32 inputs it holds 8 t .. 8 t + 7; of a trellis 4 t .. 4 t + 3 of each 16. The order of inputs within a
// product is free as long as x follows, so no lane ever passes a weight on.

#define GRID 0
#define ADDITIVE 1
#define TRELLIS 2
#define WORDS (2 * BITS)  // of a piece, a lane
#define CHAINED (KIND == TRELLIS)
#define FAN (NT * 8)
#define CONVERT (BF16 && !(CHAINED && SCALE == 0))  // weights become fp16 first: its sums and products are 8 times finer
#define PARTS (SCALE == 2 ? 4 : CHAINED || GROUPS < 4 ? GROUPS : 4)  // scales of a lane in a piece
#define SCALE_WORDS (SCALE == 0 ? 0 : SCALE == 1 ? PARTS * (1 + ZEROS) : 10)
#define ALL ~0u

typedef unsigned int u32;
typedef unsigned short u16;

__device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
__device__ __forceinline__ u32 add2(u32 a, u32 b) {
    u32 d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
__device__ __forceinline__ u32 sub2(u32 a, u32 b) {
    u32 d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
__device__ __forceinline__ u32 mul2(u32 a, u32 b) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
__device__ __forceinline__ float of_half(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
__device__ __forceinline__ u16 to_half(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
__device__ __forceinline__ float of_bf16(u16 h) { return __uint_as_float((u32)h << 16); }
__device__ __forceinline__ u16 to_bf16(float f) {  // to nearest, ties to even; of NaN stays one
    const u32 bits = __float_as_uint(f);
    return f != f ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
__device__ __forceinline__ u32 twice(float f) { return to_half(f) * 0x10001u; }

#if BF16  // of x and y
#define of_T of_bf16
#define to_T to_bf16
#else
#define of_T of_half
#define to_T to_half
#endif

__device__ __forceinline__ u32 half_to_bf16(u32 pair) {
#if __CUDA_ARCH__ >= 800
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(of_half(pair >> 16)), "f"(of_half(pair)));
    return d;
#else
    return to_bf16(of_half(pair)) | (u32)to_bf16(of_half(pair >> 16)) << 16;
#endif
}

__device__ __forceinline__ void mma(float* c, const u32* a, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800 && BF16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

__device__ __forceinline__ void read4(u32* d, const void* from) {  // codes are read once: they stay out of L1
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "l"(from));
}
__device__ __forceinline__ void read2(u32* d, const void* from) {
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "l"(from));
}

// A weight as it lies on the card, `Packed` in compress/cuda.py.
struct Weight {
    const char *codes, *scales, *second, *tail, *table;
    int tiles, pieces, span, rows;  // span: pieces of a scale group; rows: tiles of a second-level block
};

// What a lane reads of a piece.
struct Piece {
    u32 w[WORDS], s[SCALE_WORDS + CHAINED + 1];
};

__device__ __forceinline__ void load(Piece& p, const Weight& W, int tile, int piece, int lane) {
    const char* at = W.codes + (long long)(tile * W.pieces + piece) * (128 * WORDS);
#pragma unroll
    for (int i = 0; i < WORDS / 4; ++i) read4(p.w + 4 * i, at + 512 * i + 16 * lane);
    if (WORDS % 4) read2(p.w + WORDS / 4 * 4, at + WORDS / 4 * 512 + 8 * lane);
    const int g = lane >> 2, t = lane & 3;
#if SCALE == 1
    const int per = W.pieces * GROUPS / W.span;  // groups of a tile
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
        int group = GROUPS == 1 ? piece / W.span : piece * GROUPS + i;
        if (GROUPS == 8 && !CHAINED) group = piece * 8 + 2 * i + (t >> 1);
        const char* entry = W.scales + ((long long)(tile * per + group) * 8 + g) * (4 + 4 * ZEROS);
        if (ZEROS) *(uint2*)(p.s + 2 * i) = __ldg((const uint2*)entry);
        else p.s[i] = __ldg((const u32*)entry);
    }
#elif SCALE == 2
    const char* code = W.scales + (long long)(tile * W.pieces + piece) * 128 + (g * 2 + (t >> 1)) * 8;
    *(uint2*)p.s = __ldg((const uint2*)code);
    const char* level = W.second + ((long long)(tile / W.rows) * W.pieces + piece) * 64 + (t >> 1) * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) *(uint2*)(p.s + 2 + 2 * i) = __ldg((const uint2*)(level + 16 * i));
#endif
    if (CHAINED) p.s[SCALE_WORDS] = __ldg((const unsigned char*)W.tail + tile * W.pieces + piece);
}

__device__ __forceinline__ void zero(Piece& p) {
    for (int i = 0; i < WORDS; ++i) p.w[i] = 0;
    for (int i = 0; i <= SCALE_WORDS; ++i) p.s[i] = 0;
}

#if KIND == GRID
#define TABLE_BYTES 0
__device__ __forceinline__ void fill(char*, const Weight&) {}

// fp16 bits of a whole number below 2048, or of 2^-r.
__device__ __forceinline__ u32 whole(int v) {
    const int e = 31 - __clz(v);
    return (u32)(15 + e) << 10 | (v << (10 - e) & 0x3ff);
}
// Pair i of 32: codes lie in the low and the high half of a word, one behind the other; 3 bits fill 15 of 16, and the
// last bits of three words are one pair more. Or-ed below 1024's exponent a code is a number.
__device__ __forceinline__ u32 pair_of(const Piece& p, int i) {
    const u32 mask = (1u << BITS) - 1;
    u32 code;
    int up = 0;
    if (BITS == 3 && i >= 30) {
        const u32* w = p.w + 3 * (i - 30);
        code = (w[0] >> 15 & 0x10001) | (w[1] >> 14 & 0x20002) | (w[2] >> 13 & 0x40004);
    } else {
        const int per = 16 / BITS, far = 10 / BITS * BITS, at = i % per * BITS, from = at < far ? 0 : far;
        up = at - from;
        code = (p.w[i / per] >> from) & (mask << up) * 0x10001;
    }
    const u32 less = 0x8000 | whole((1024 >> up) + (ZEROS || SCALE == 2 ? 0 : CENTER));
    return fma2(code | 0x64006400, ((15u - up) << 10) * 0x10001, less * 0x10001);
}
__device__ __forceinline__ void weights(u32 a[2][4], const Piece& p, int j, const char*, int) {
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i >> 2][i & 3] = pair_of(p, 8 * j + i);
}
#endif

#if KIND == ADDITIVE
#if WIDE
#define TABLE_BYTES 0
__device__ __forceinline__ void fill(char*, const Weight&) {}
#else
#define TABLE_BYTES (BITS * 256 * 16 * REP)
// Word k of a book, 16 bytes, REP times: the eight lanes that shared memory serves at once find eight banks.
__device__ __forceinline__ void fill(char* table, const Weight& W) {
    for (int i = threadIdx.x; i < BITS * 256 * REP; i += blockDim.x)
        *(uint4*)(table + 16 * i) = __ldg((const uint4*)W.table + i / REP);
}
#endif
__device__ __forceinline__ uint4 word_of(const Piece& p, int index, const char* table, int lane, const Weight& W) {
    uint4 sum;
#if WIDE
    const u32 code = p.w[index >> 1] >> 16 * (index & 1) & 0xffff;
    sum = __ldg((const uint4*)W.table + code);
#else
#pragma unroll
    for (int m = 0; m < BITS; ++m) {
        const int at = index * BITS + m;
        const u32 code = p.w[at >> 2] >> 8 * (at & 3) & 255;
        const uint4 word = *(const uint4*)(table + (m * 256 * REP * 16 + (code * REP + (lane & (REP - 1))) * 16));
        if (m == 0) sum = word;
        else sum = {add2(sum.x, word.x), add2(sum.y, word.y), add2(sum.z, word.z), add2(sum.w, word.w)};
    }
#endif
    return sum;
}
__device__ __forceinline__ void weights(u32 a[2][4], const Piece& p, int j, const char* table, int lane, const Weight& W) {
    const uint4 first = word_of(p, 2 * j, table, lane, W), second = word_of(p, 2 * j + 1, table, lane, W);
    a[0][0] = first.x, a[0][2] = first.y, a[1][0] = first.z, a[1][2] = first.w;
    a[0][1] = second.x, a[0][3] = second.y, a[1][1] = second.z, a[1][3] = second.w;
}
#endif

#if KIND == TRELLIS
#define ENTRIES (1 << (WINDOW + BITS))
#define TABLE_BYTES (ENTRIES * 4 * REP)
// The pair of weights of every window + step bits, REP times: with 32 copies each lane has a bank of its own.
__device__ __forceinline__ void fill(char* table, const Weight& W) {
    const u16* lut = (const u16*)W.table;
    for (int i = threadIdx.x; i < ENTRIES * REP; i += blockDim.x) {
        const int k = i / REP;
        ((u32*)table)[i] = lut[k & ((1 << WINDOW) - 1)] | (u32)lut[k >> BITS] << 16;
    }
}
// A window reaches into the bits of the next lane of the chain; the last lane's next is the first of the next 16 inputs.
__device__ __forceinline__ void reach(Piece& p, int lane, u32 next[2]) {
    u32 low[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (BITS == 4)
            low[i] = __byte_perm(__byte_perm(p.w[4 * i], p.w[4 * i + 1], 0x0040), __byte_perm(p.w[4 * i + 2], p.w[4 * i + 3], 0x0040), 0x5410);
        else low[i] = __byte_perm(p.w[2 * i], p.w[2 * i + 1], 0x6420);
    }
    const u32 later = __byte_perm(low[1], p.s[SCALE_WORDS], 0x4321), soon = __byte_perm(low[0], low[1], 0x4321);
    const int from = lane < 28 ? lane + 4 : (lane + 1) & 3;
    next[0] = __shfl_sync(ALL, lane ? low[0] : soon, from);
    next[1] = __shfl_sync(ALL, lane ? low[1] : later, from);
}
// Tile i of 8: 8 weights of the lane, 8 * BITS bits and the reach.
__device__ __forceinline__ void weights16(u32 a[4], const Piece& p, int i, const char* table, int lane, const u32 next[2]) {
    const u32 over = next[i >> 2];
    u32 bits;
    if (BITS == 2) bits = __byte_perm(p.w[i >> 1], over, (i & 1 ? 0x0032 : 0x0010) | (4 + (i & 3)) << 8);
    else if (BITS == 3)
        bits = __byte_perm(__byte_perm(p.w[i >> 1], p.w[4 + (i >> 2)], (i & 1 ? 0x0032 : 0x0010) | (4 + (i & 3)) << 8), over, 0x0210 | (4 + (i & 3)) << 12);
    else bits = p.w[i];
    const int order[4] = {0, 2, 1, 3};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        u32 index = bits >> 2 * BITS * k;
        if (BITS == 4 && k == 3) index |= (over >> 8 * (i & 3)) << 8;
        a[order[k]] = *(const u32*)(table + ((index & (ENTRIES - 1)) * REP + (lane & (REP - 1))) * 4);
    }
}
#endif

// Scales of the 32 inputs j: of outputs first and second, each twice in a word; zeros likewise. m: which 16 of a trellis.
__device__ __forceinline__ void scales(const Piece& p, int j, int m, u32 scale[2], u32 zero[2]) {
#if SCALE == 1
    const int i = CHAINED ? (2 * j + m) * PARTS / 8 : j * PARTS / 4;
    const u32 s = p.s[i * (1 + ZEROS)];
    scale[0] = __byte_perm(s, s, 0x1010), scale[1] = __byte_perm(s, s, 0x3232);
    if (ZEROS) {
        const u32 z = p.s[i * 2 + 1];
        zero[0] = __byte_perm(z, z, 0x1010), zero[1] = __byte_perm(z, z, 0x3232);
    }
#elif SCALE == 2
    const u32 level = p.s[2 + 2 * j], low = p.s[3 + 2 * j], codes = p.s[j >> 1] >> 16 * (j & 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 s = codes >> 8 * half & 15, z = codes >> (8 * half + 4) & 15;
        scale[half] = twice(of_half(level) * ((float)s - of_half(level >> 16)));
        zero[half] = twice(of_half(low) * ((float)z - of_half(low >> 16)));
    }
#endif
}

// The 16 x 32 weights j of a piece as two fragments.
__device__ __forceinline__ void decode(u32 a[2][4], const Piece& p, int j, const char* table, int lane, const Weight& W, const u32 next[2]) {
#if KIND == GRID
    weights(a, p, j, table, lane);
#elif KIND == ADDITIVE
    weights(a, p, j, table, lane, W);
#else
    weights16(a[0], p, 2 * j, table, lane, next);
    weights16(a[1], p, 2 * j + 1, table, lane, next);
#endif
    u32 scale[2], zero[2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
        if (SCALE && (m == 0 || CHAINED)) scales(p, j, m, scale, zero);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            u32& pair = a[m][c];
            if (KIND == GRID && (ZEROS || SCALE == 2)) pair = sub2(pair, zero[c & 1]);
            if (SCALE) pair = mul2(pair, scale[c & 1]);
            if (CONVERT) pair = half_to_bf16(pair);
        }
    }
}

__device__ __forceinline__ int output_of(int g, int second) { return CHAINED ? 2 * g + second : g + 8 * second; }

// x of the 32 inputs at `at` for the token of this lane: the four words that two products take.
__device__ __forceinline__ void inputs(u32 b[4], const u16* row, int at, int t) {
    if (CHAINED) {
        *(uint2*)b = *(const uint2*)(row + at + 4 * t);
        *(uint2*)(b + 2) = *(const uint2*)(row + at + 16 + 4 * t);
    } else
        *(uint4*)b = *(const uint4*)(row + at + 8 * t);
}

#define SKEW (CHAINED ? 16 : 32)  // numbers between rows of x in shared memory, so that a warp's reads meet no bank twice
#define STRIDE 20                 // of a token's 16 sums

#if PART == 0
// Up to FAN tokens, each read of codes once: blocks take tiles in turn, their warps the pieces of a tile.
// y[n][o] = scale[o] * sum + outliers + bias. x: (B, pieces * 128). wide_out: y is fp32.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
narrow(Weight W, const u16* x, void* y, const u16* row_scale, const u16* bias, const int* starts, const u16* columns,
       const u16* values, int N, int B, int wide_out) {
    extern __shared__ uint4 room[];
    char* table = (char*)room;
    float* sums = (float*)(table + TABLE_BYTES);      // [2][WARPS][FAN][STRIDE]
    float* others = sums + 2 * WARPS * FAN * STRIDE;  // [2][FAN][STRIDE], of outliers
    u16* kept = (u16*)(others + 2 * FAN * STRIDE);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, D = W.pieces * 128;
    const int turns = (W.pieces + WARPS - 1) / WARPS;
    const int count = ((W.tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x) * turns;

    Piece ring[DEPTH];
    int ahead_tile = blockIdx.x, ahead_turn = 0;
    auto fetch = [&](Piece& p) {
        const int piece = ahead_turn * WARPS + warp;
        if (ahead_tile < W.tiles && piece < W.pieces) load(p, W, ahead_tile, piece, lane);
        if (++ahead_turn == turns) ahead_turn = 0, ahead_tile += gridDim.x;
    };
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) fetch(ring[d]);
    fill(table, W);
    const int stride = INPUTS ? D + SKEW : D;
    if (INPUTS)
        for (int i = threadIdx.x; i < B * (D / 8); i += WARPS * 32)
            *(uint4*)(kept + i / (D / 8) * stride + i % (D / 8) * 8) = __ldg((const uint4*)x + i);
    __syncthreads();

    float acc[NT][4] = {};
    int tile = blockIdx.x, turn = 0, which = 0;
    for (int u = 0; u < count; u += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            if (u + d >= count) continue;
            const int piece = turn * WARPS + warp;
            if (piece < W.pieces) {
                u32 next[2];
#if KIND == TRELLIS
                reach(ring[d], lane, next);
#endif
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    u32 a[2][4];
                    decode(a, ring[d], j, table, lane, W, next);
#pragma unroll
                    for (int n = 0; n < NT; ++n) {
                        u32 b[4] = {};
                        const int token = n * 8 + g;
                        if (token < B) inputs(b, (INPUTS ? kept : x) + (long long)token * stride, piece * 128 + j * 32, t);
                        mma(acc[n], a[0], b[0], b[1]);
                        mma(acc[n], a[1], b[2], b[3]);
                    }
                }
            }
            fetch(ring[d]);
            if (++turn < turns) continue;

            float* mine = sums + (which * WARPS + warp) * FAN * STRIDE;
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    mine[(n * 8 + 2 * t + (c & 1)) * STRIDE + output_of(g, c >> 1)] = acc[n][c];
                    acc[n][c] = 0;
                }
            if (SPARSE)
                for (int row = warp; row < 16; row += WARPS) {
                    const int o = tile * 16 + row;
                    float more[FAN] = {};
                    if (o < N)
                        for (int i = starts[o] + lane; i < starts[o + 1]; i += 32) {
                            const float value = of_half(__ldg(values + i));
                            const int column = __ldg(columns + i);
#pragma unroll
                            for (int n = 0; n < FAN; ++n)
                                if (n < B) more[n] += value * of_T(((INPUTS ? kept : x) + (long long)n * stride)[column]);
                        }
#pragma unroll
                    for (int n = 0; n < FAN; ++n)
                        if (n < B) {
                            for (int away = 16; away; away >>= 1) more[n] += __shfl_xor_sync(ALL, more[n], away);
                            if (lane == 0) others[(which * FAN + n) * STRIDE + row] = more[n];
                        }
                }
            __syncthreads();
            for (int i = threadIdx.x; i < 16 * B; i += WARPS * 32) {
                const int row = i & 15, n = i >> 4, o = tile * 16 + row;
                float sum = 0;
#pragma unroll
                for (int w = 0; w < WARPS; ++w) sum += sums[((which * WARPS + w) * FAN + n) * STRIDE + row];
                if (o >= N) continue;
                if (row_scale) sum *= of_half(row_scale[o]);
                if (SPARSE) sum += others[(which * FAN + n) * STRIDE + row];
                if (bias) sum += of_T(bias[o]);
                if (wide_out) ((float*)y)[(long long)n * N + o] = sum;
                else ((u16*)y)[(long long)n * N + o] = to_T(sum);
            }
            which ^= 1, turn = 0, tile += gridDim.x;  // the next sums go where nobody reads any more
        }
    }
}

#endif

#if PART == 1
__device__ __forceinline__ void copy16(u16* to, const u16* from, bool there) {
#if __CUDA_ARCH__ >= 800
    const u32 at = __cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
#else
    *(uint4*)to = there ? __ldg((const uint4*)from) : uint4{};
#endif
}
__device__ __forceinline__ void commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int LEFT>
__device__ __forceinline__ void arrived() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

#define HEIGHT (WARPS * R * 16)  // outputs of a block
#define ROW (128 + SKEW)

// FAN tokens: the pieces of all blocks of outputs, in one row, are cut into equal shares, one a block. Sums of a share go
// to parts[(block of outputs * slots + share's place among those of it)][token][output]; `finish` adds them in order.
// turned: (pieces * 128, FAN), x with its axes swapped for the outliers of `finish`, or null.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
wide(Weight W, const u16* x, float* parts, u16* turned, int B, int slots) {
    extern __shared__ uint4 room[];
    char* table = (char*)room;
    u16* stages = (u16*)(table + TABLE_BYTES);  // [DEPTH][FAN][ROW]
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int P = W.pieces, D = P * 128, blocks = (W.tiles + WARPS * R - 1) / (WARPS * R), all = blocks * P;
    const int begin = (long long)blockIdx.x * all / gridDim.x, end = (long long)(blockIdx.x + 1) * all / gridDim.x;

    auto stage = [&](int u) {
        if (u < end) {
            const int piece = u % P;
            u16* to = stages + (u - begin) % DEPTH * (FAN * ROW);
            for (int i = threadIdx.x; i < FAN * 16; i += WARPS * 32) {
                const int n = i >> 4, at = (i & 15) * 8;
                copy16(to + n * ROW + at, x + (long long)(n < B ? n : 0) * D + piece * 128 + at, n < B);
            }
        }
        commit();
    };
    Piece now[R], then[R];
    auto fetch = [&](Piece* p, int u) {
        if (u >= end) return;
        const int first = (u / P * WARPS + warp) * R;
#pragma unroll
        for (int r = 0; r < R; ++r)
            if (first + r < W.tiles) load(p[r], W, first + r, u % P, lane);
            else zero(p[r]);
    };
#pragma unroll
    for (int s = 0; s < DEPTH - 1; ++s) stage(begin + s);
    fetch(now, begin);
    fill(table, W);
    if (SPARSE)
        for (int i = blockIdx.x * WARPS * 32 + threadIdx.x; i < D * FAN; i += gridDim.x * WARPS * 32)
            turned[i] = i % FAN < B ? x[(long long)(i % FAN) * D + i / FAN] : 0;

    float acc[R][NT][4] = {};
    for (int u = begin; u < end; ++u) {
        arrived<DEPTH - 2>();
        __syncthreads();  // of everybody's copies; and nobody reads the stage any more that is filled next
        stage(u + DEPTH - 1);
        fetch(then, u + 1);
        const u16* rows = stages + (u - begin) % DEPTH * (FAN * ROW);
        u32 next[R][2];
#if KIND == TRELLIS
#pragma unroll
        for (int r = 0; r < R; ++r) reach(now[r], lane, next[r]);
#endif
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            u32 a[R][2][4];
#pragma unroll
            for (int r = 0; r < R; ++r) decode(a[r], now[r], j, table, lane, W, next[r]);
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                u32 b[4];
                inputs(b, rows + (n * 8 + g) * ROW, j * 32, t);
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    mma(acc[r][n], a[r][0], b[0], b[1]);
                    mma(acc[r][n], a[r][1], b[2], b[3]);
                }
            }
        }
        if (u + 1 == end || (u + 1) % P == 0) {
            const int block = u / P, first = (int)(((long long)(block * P + 1) * gridDim.x - 1) / all);
            float* part = parts + ((long long)block * slots + (int)blockIdx.x - first) * FAN * HEIGHT;
#pragma unroll
            for (int r = 0; r < R; ++r)
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        part[(n * 8 + 2 * t + (c & 1)) * HEIGHT + (warp * R + r) * 16 + output_of(g, c >> 1)] = acc[r][n][c];
                        acc[r][n][c] = 0;
                    }
        }
#pragma unroll
        for (int r = 0; r < R; ++r) now[r] = then[r];
    }
}

// y[n][o] from the parts of `wide`, launched with `shares` blocks: 16 outputs a block, 256 threads.
extern "C" __global__ void __launch_bounds__(256)
finish(const float* parts, const u16* turned, void* y, const u16* row_scale, const u16* bias, const int* starts,
       const u16* columns, const u16* values, int N, int B, int wide_out, int tiles, int pieces, int shares, int slots) {
    __shared__ float others[16][FAN + 1];
    const int all = (tiles + WARPS * R - 1) / (WARPS * R) * pieces, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int lanes = FAN / 2 < 32 ? FAN / 2 : 32;  // that read one outlier's inputs, two tokens each
    if (SPARSE) {
        for (int row = warp; row < 16; row += 8) {
            const int o = blockIdx.x * 16 + row, last = o < N ? starts[o + 1] : 0;
            float2 sum = {};
#pragma unroll 4
            for (int i = (o < N ? starts[o] : 0) + lane / lanes; i < last; i += 32 / lanes) {
                const u32 pair = __ldg((const u32*)(turned + (long long)__ldg(columns + i) * FAN) + lane % lanes);
                const float value = of_half(__ldg(values + i));
                sum.x += value * of_T(pair), sum.y += value * of_T(pair >> 16);
            }
            for (int away = 16; away >= lanes; away >>= 1) {
                sum.x += __shfl_xor_sync(ALL, sum.x, away);
                sum.y += __shfl_xor_sync(ALL, sum.y, away);
            }
            if (lane < lanes) others[row][2 * lane] = sum.x, others[row][2 * lane + 1] = sum.y;
        }
        __syncthreads();
    }
    const int row = threadIdx.x & 15, o = blockIdx.x * 16 + row, block = o / HEIGHT;
    if (o >= N) return;
    const int first = (int)(((long long)(block * pieces + 1) * shares - 1) / all);
    const int last = (int)(((long long)(block + 1) * pieces * shares - 1) / all);
    const float scale = row_scale ? of_half(row_scale[o]) : 1;
    for (int n = threadIdx.x >> 4; n < B; n += 16) {
        const float* part = parts + ((long long)block * slots * FAN + n) * HEIGHT + o % HEIGHT;
        float sum = 0;
        for (int s = 0; s <= last - first; ++s) sum += part[(long long)s * FAN * HEIGHT];
        sum *= scale;
        if (SPARSE) sum += others[row][n];
        if (bias) sum += of_T(bias[o]);
        if (wide_out) ((float*)y)[(long long)n * N + o] = sum;
        else ((u16*)y)[(long long)n * N + o] = to_T(sum);
    }
}

#endif

#if PART == 2
// The weight itself: (tiles * 16, pieces * 128), a warp a piece.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
dense(Weight W, u16* out, const u16* row_scale, int N) {
    extern __shared__ uint4 room[];
    char* table = (char*)room;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    fill(table, W);
    __syncthreads();
    for (int u = blockIdx.x * WARPS + warp; u < W.tiles * W.pieces; u += gridDim.x * WARPS) {
        const int tile = u / W.pieces, piece = u % W.pieces;
        Piece p;
        load(p, W, tile, piece, lane);
        u32 next[2];
#if KIND == TRELLIS
        reach(p, lane, next);
#endif
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            u32 a[2][4];
            decode(a, p, j, table, lane, W, next);
#pragma unroll
            for (int second = 0; second < 2; ++second) {
                const int o = tile * 16 + output_of(g, second);
                u32 pair[4] = {a[0][second], a[0][2 + second], a[1][second], a[1][2 + second]};
                if (row_scale && o < N) {
                    const float scale = of_half(row_scale[o]);
                    const bool as_half = !BF16;
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const float low = (as_half ? of_half(pair[i]) : of_bf16(pair[i])) * scale;
                        const float high = (as_half ? of_half(pair[i] >> 16) : of_bf16(pair[i] >> 16)) * scale;
                        pair[i] = to_T(low) | (u32)to_T(high) << 16;
                    }
                }
                u16* row = out + (long long)o * (W.pieces * 128) + piece * 128 + j * 32;
                if (CHAINED) {
                    *(uint2*)(row + 4 * t) = {pair[0], pair[1]};
                    *(uint2*)(row + 16 + 4 * t) = {pair[2], pair[3]};
                } else
                    *(uint4*)(row + 8 * t) = {pair[0], pair[1], pair[2], pair[3]};
            }
        }
    }
}
#endif
