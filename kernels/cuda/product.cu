// Products with compressed weights; compress/cuda.py is the host's side, compress/weight.py the definition. Compiled at
// first use through NVRTC, one image for each kind of codes: the names in capitals that are not defined here are -D flags.
//
//   KIND    GRID, ADDITIVE or TRELLIS          BITS    of a weight's codes: 2, 3, 4, 8; a trellis' step; books of 8 bits
//   WINDOW  of a trellis                       WIDE    1: one book of 2^16 words, left in global memory
//   CENTER  a grid's zero where no table is    REP     copies of the table in shared memory
//   SCALE   0: of a row. 1: of GROUPS parts of a piece, each of 16 inputs or more. 2: two levels, of 16 inputs
//   ZEROS   1: the table holds zeros, too      BF16    of inputs and outputs; else fp16
//   TOKENS  of narrow, if there are outliers
//   NT      eights of tokens                   R       tiles of a warp          WARPS   of a block, TEAM of a tile
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
#define LOG(n) (n >= 32 ? 5 : n >= 16 ? 4 : n >= 8 ? 3 : n >= 4 ? 2 : n >= 2 ? 1 : 0)

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
__device__ __forceinline__ u32 within(u32 a, u32 mask, u32 more) {  // (a & mask) | more, which ptxas likes to split
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(mask), "r"(more));
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
__device__ __forceinline__ u32 twice(float f) {
    u32 d;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %1;" : "=r"(d) : "f"(f));
#else
    d = to_half(f) * 0x10001u;
#endif
    return d;
}

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
    int groups, unused;             // scale groups of a tile
};

// What a lane reads of a piece.
struct Piece {
    u32 w[WORDS], s[SCALE_WORDS + CHAINED + 1];
};

__device__ __forceinline__ void load(Piece& p, const Weight& W, int tile, int piece, int lane) {
    const u32 unit = tile * W.pieces + piece;  // all offsets are below 2^32: `pack` sees to it
    const char* at = W.codes + unit * (u32)(128 * WORDS) + 16 * lane;
#pragma unroll
    for (int i = 0; i < WORDS / 4; ++i) read4(p.w + 4 * i, at + 512 * i);
    if (WORDS % 4) read2(p.w + WORDS / 4 * 4, at + WORDS / 4 * 512 - 8 * lane);
    const int g = lane >> 2, t = lane & 3;
#if SCALE == 1
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
        const int group = GROUPS == 1 ? (W.span == 1 ? piece : piece / W.span)
                        : GROUPS == 8 && !CHAINED ? piece * 8 + 2 * i + (t >> 1) : piece * GROUPS + i;
        const char* entry = W.scales + ((u32)(tile * W.groups + group) * 8 + g) * (4 + 4 * ZEROS);
        if (ZEROS) *(uint2*)(p.s + 2 * i) = __ldg((const uint2*)entry);
        else p.s[i] = __ldg((const u32*)entry);
    }
#elif SCALE == 2
    const char* code = W.scales + unit * 128 + (g * 2 + (t >> 1)) * 8;
    *(uint2*)p.s = __ldg((const uint2*)code);
    const char* level = W.second + (u32)((W.rows == 1 ? tile : tile / W.rows) * W.pieces + piece) * 64 + (t >> 1) * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) *(uint2*)(p.s + 2 + 2 * i) = __ldg((const uint2*)(level + 16 * i));
#endif
    if (CHAINED) p.s[SCALE_WORDS] = __ldg((const unsigned char*)W.tail + unit);
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
        code = within(w[0] >> 15, 0x10001, within(w[1] >> 14, 0x20002, within(w[2] >> 13, 0x40004, 0x64006400)));
    } else {
        const int per = 16 / BITS, far = 10 / BITS * BITS, at = i % per * BITS, from = at < far ? 0 : far;
        up = at - from;
        code = within(p.w[i / per] >> from, (mask << up) * 0x10001, 0x64006400);
    }
    const u32 less = 0x8000 | whole((1024 >> up) + (ZEROS || SCALE == 2 ? 0 : CENTER));
    return fma2(code, ((15u - up) << 10) * 0x10001, less * 0x10001);
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
    for (int i = threadIdx.x; i < BITS * 256; i += blockDim.x) {
        const uint4 word = __ldg((const uint4*)W.table + i);
#pragma unroll
        for (int k = 0; k < REP; ++k) *(uint4*)(table + (i * REP + (i + k) % REP) * 16) = word;  // lanes begin elsewhere
    }
}
#endif
__device__ __forceinline__ uint4 word_of(const Piece& p, int index, const char* table, int lane, const Weight& W) {
#if WIDE
    return __ldg((const uint4*)W.table + (p.w[index >> 1] >> 16 * (index & 1) & 0xffff));
#else
    uint4 words[BITS];
#pragma unroll
    for (int m = 0; m < BITS; ++m) {
        const int at = index * BITS + m;
        const u32 code = p.w[at >> 2], up = 4 + LOG(REP);
        const u32 place = 8 * (at & 3) < up ? code << (up - 8 * (at & 3)) : code >> (8 * (at & 3) - up);
        words[m] = *(const uint4*)(table + m * (4096 * REP) + within(place, 255 << up, (lane & (REP - 1)) << 4));
    }
#pragma unroll
    for (int step = 1; step < BITS; step *= 2)  // as a tree, whose sums are rounded least often
#pragma unroll
        for (int m = 0; m + step < BITS; m += 2 * step) {
            uint4 &a = words[m], &b = words[m + step];
            a = {add2(a.x, b.x), add2(a.y, b.y), add2(a.z, b.z), add2(a.w, b.w)};
        }
    return words[0];
#endif
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
    for (int i = threadIdx.x; i < ENTRIES; i += blockDim.x) {
        const u32 pair = lut[i & ((1 << WINDOW) - 1)] | (u32)lut[i >> BITS] << 16;
        if (REP < 4)
            for (int k = 0; k < REP; ++k) ((u32*)table)[i * REP + k] = pair;
#pragma unroll
        for (int k = 0; k < REP / 4; ++k) ((uint4*)table)[i * (REP / 4) + (i + k) % (REP > 3 ? REP / 4 : 1)] = {pair, pair, pair, pair};
    }
}
// A window reaches into the bits of the next lane of the chain; the last lane's next is the first of the next 16 inputs.
__device__ __forceinline__ void reach(const Piece& p, int lane, u32 next[2]) {
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
        const u32 up = 2 + LOG(REP), at = 2 * BITS * k;
        u32 place = at < up ? bits << (up - at) : bits >> (at - up);
        if (BITS == 4 && k == 3) place |= (over >> 8 * (i & 3) & 255) << (8 + up);
        a[order[k]] = *(const u32*)(table + within(place, (ENTRIES - 1) << up, (lane & (REP - 1)) << 2));
    }
}
#endif

// Scales of the 32 inputs j: of outputs first and second, each twice in a word; zeros likewise (of two levels minus zero
// times scale: a product is scale * code + that). m: which 16 of a trellis.
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
    const float by = of_half(p.s[2 + 2 * j]), zero_by = of_half(p.s[3 + 2 * j]);
    const float less = by * of_half(p.s[2 + 2 * j] >> 16), zero_less = zero_by * of_half(p.s[3 + 2 * j] >> 16);
    const u32 codes = p.s[j >> 1] >> 16 * (j & 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // or-ed to 2^23 a code is a number
        const float s = by * (__uint_as_float(0x4b000000 | (codes >> 8 * half & 15)) - 8388608.f) - less;
        const float z = zero_by * (__uint_as_float(0x4b000000 | (codes >> (8 * half + 4) & 15)) - 8388608.f) - zero_less;
        scale[half] = twice(s), zero[half] = twice(-z * s);
    }
#endif
}

// The 16 x 32 weights j of a piece as two fragments; bare: without scales and zeros of a table.
template <bool bare>
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
        if (SCALE && !bare && (m == 0 || CHAINED)) scales(p, j, m, scale, zero);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            u32& pair = a[m][c];
            if (SCALE == 1 && ZEROS && !bare) pair = sub2(pair, zero[c & 1]);
            if (SCALE == 1 && !bare) pair = mul2(pair, scale[c & 1]);
            if (SCALE == 2) pair = fma2(pair, scale[c & 1], zero[c & 1]);
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

#if PART == 0
#define TEAMS (WARPS / TEAM)
#define STEP (KIND == GRID || SCALE || WORDS > 8 ? 1 : 2)  // pieces at once, as registers allow
#define LATER (KIND == GRID && SCALE == 1 && GROUPS == 1)  // scales and zeros of a piece are applied to its sums

__device__ __forceinline__ void together(int team) {  // a barrier of one team
    asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "n"(TEAM * 32) : "memory");
}

// Up to FAN tokens, each read of codes once: teams of warps take tiles in turn, the warps of a team the pieces of a tile.
// y[n][o] = scale[o] * sum + outliers + bias. x: (B, pieces * 128). wide_out: y is fp32.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
narrow(Weight W, const u16* x, void* y, const u16* row_scale, const u16* bias, const int* starts, const u16* columns,
       const u16* values, int N, int B, int wide_out) {
    extern __shared__ uint4 room[];
    char* table = (char*)room;
    float* sums = (float*)(table + TABLE_BYTES);            // [2][WARPS][FAN][STRIDE]
    float* others = sums + 2 * WARPS * FAN * STRIDE;        // the same of outliers, if there are any
    u16* kept = (u16*)(others + (SPARSE ? 2 * WARPS * FAN * STRIDE : 0));
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, D = W.pieces * 128;
    const int team = warp / TEAM, member = warp % TEAM, row = lane & 15;
    const int turns = (W.pieces + TEAM * STEP - 1) / (TEAM * STEP), begin = blockIdx.x + team * gridDim.x, step = gridDim.x * TEAMS;
    const int count = begin < W.tiles ? ((W.tiles - begin + step - 1) / step) * turns : 0;

    Piece ring[DEPTH][STEP];
    int ahead_tile = begin, ahead_piece = member * STEP;
    auto fetch = [&](Piece* p) {
        if (ahead_tile < W.tiles)
#pragma unroll
            for (int q = 0; q < STEP; ++q)
                if (ahead_piece + q < W.pieces) load(p[q], W, ahead_tile, ahead_piece + q, lane);
        if ((ahead_piece += TEAM * STEP) >= turns * (TEAM * STEP)) ahead_piece = member * STEP, ahead_tile += step;
    };
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) fetch(ring[d]);
    const int stride = INPUTS ? D + SKEW : D;
    if (INPUTS)
        for (int n = 0; n < B; ++n)
#pragma unroll 2
            for (int i = threadIdx.x; i < D / 8; i += WARPS * 32)
                copy16(kept + n * stride + i * 8, x + (long long)n * D + i * 8, true);
    commit();
    fill(table, W);
    arrived<0>();
    __syncthreads();

    const u16* all = INPUTS ? kept : x;
    const u16* rows[NT];  // of the lane's tokens; what a token beyond B brings goes to sums that nobody reads
#pragma unroll
    for (int n = 0; n < NT; ++n) rows[n] = all + (long long)min(n * 8 + g, B - 1) * stride + member * (STEP * 128);

    float acc[NT][4] = {};
    int tile = begin, turn = 0, which = 0, turned = 0, from = 0, to = 0;
    u16 scale = 0x3c00;  // 1
    for (int u = 0; u < count; u += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            if (u + d >= count) continue;
            const int o = tile * 16 + row, piece = (turn * TEAM + member) * STEP;
            if (turn == 0) {  // asked for early, needed when the tile ends
                if (row_scale) scale = row_scale[min(o, N - 1)];
                if (SPARSE) from = starts[min(o, N)], to = starts[min(o + 1, N)];
            }
#pragma unroll
            for (int q = 0; q < STEP; ++q) {
                if (piece + q >= W.pieces) continue;
                const Piece& p = ring[d][q];
                u32 next[2];
#if KIND == TRELLIS
                reach(p, lane, next);
#endif
                float part[NT][4] = {}, inputs_sum[NT][4] = {};
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    u32 a[2][4];
                    decode<LATER>(a, p, j, table, lane, W, next);
#pragma unroll
                    for (int n = 0; n < NT; ++n) {
                        u32 b[4];
                        inputs(b, rows[n] + turn * (TEAM * STEP * 128), q * 128 + j * 32, t);
#pragma unroll
                        for (int m = 0; m < 2; ++m) {
                            mma((LATER ? part : acc)[n], a[m], b[2 * m], b[2 * m + 1]);
                            if (LATER && ZEROS) {
                                const u32 one = BF16 ? 0x3f803f80 : 0x3c003c00, ones[4] = {one, one, one, one};
                                mma(inputs_sum[n], ones, b[2 * m], b[2 * m + 1]);
                            }
                        }
                    }
                }
#if LATER
                const u32 s = p.s[0], z = ZEROS ? p.s[1] : 0;
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        float sum = part[n][c];
                        if (ZEROS) sum -= of_half(z >> 16 * (c >> 1)) * inputs_sum[n][c & 1];
                        acc[n][c] += of_half(s >> 16 * (c >> 1)) * sum;
                    }
#endif
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
            if (SPARSE) {
                float more[TOKENS] = {};
#pragma unroll 2
                for (int i = from + 2 * member + (lane >> 4); i < to; i += 2 * TEAM) {
                    const float value = of_half(__ldg(values + i));
                    const u16* at = all + __ldg(columns + i);
#pragma unroll
                    for (int n = 0; n < TOKENS; ++n) more[n] += value * of_T(at[n * stride]);
                }
#pragma unroll
                for (int n = 0; n < TOKENS; ++n) {
                    more[n] += __shfl_xor_sync(ALL, more[n], 16);
                    others[((which * WARPS + warp) * FAN + n) * STRIDE + row] = more[n];
                }
            }
            together(team);
#pragma unroll 1
            for (int n = (member + turned) % TEAM; n < B; n += TEAM) {  // a token a warp; with few, another one each tile
                const int at = ((which * WARPS + team * TEAM + (lane >> 4) * (TEAM / 2)) * FAN + n) * STRIDE + row;
                float sum = 0, more = 0;
#pragma unroll
                for (int w = 0; w < TEAM / 2; ++w) {
                    sum += sums[at + w * FAN * STRIDE];
                    if (SPARSE) more += others[at + w * FAN * STRIDE];
                }
                sum = sum * of_half(scale) + more;
                sum += __shfl_xor_sync(ALL, sum, 16);
                if (lane >= 16 || o >= N) continue;
                if (bias) sum += of_T(bias[o]);
                if (wide_out) ((float*)y)[(long long)n * N + o] = sum;
                else ((u16*)y)[(long long)n * N + o] = to_T(sum);
            }
            which ^= 1, turn = 0, tile += step, turned = turned + 1 == TEAM ? 0 : turned + 1;
        }  // the next sums go where nobody reads any more
    }
}
#endif

#if PART == 1
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
    const int begin = blockIdx.x * (u32)all / gridDim.x, end = (blockIdx.x + 1) * (u32)all / gridDim.x;  // below 2^32: `wide`

    int stage_piece = begin % P, stage_at = 0, staged = begin;
    auto stage = [&] {
        if (staged++ < end) {
            u16* to = stages + stage_at * (FAN * ROW);
#pragma unroll
            for (int k = 0; k < FAN * 16; k += WARPS * 32) {
                const int i = k + threadIdx.x, n = i >> 4, at = (i & 15) * 8;
                if (FAN * 16 - k >= WARPS * 32 || i < FAN * 16)
                    copy16(to + n * ROW + at, x + (u32)(min(n, B - 1) * D + stage_piece * 128 + at), n < B);
            }
            if (++stage_piece == P) stage_piece = 0;
            if (++stage_at == DEPTH) stage_at = 0;
        }
        commit();
    };
    Piece now[R], then[R];
    int fetch_piece = begin % P, fetch_block = begin / P, fetched = begin;
    auto fetch = [&](Piece* p) {
        if (fetched++ >= end) return;
        const int first = (fetch_block * WARPS + warp) * R;
#pragma unroll
        for (int r = 0; r < R; ++r) load(p[r], W, min(first + r, W.tiles - 1), fetch_piece, lane);  // beyond: nobody's
        if (++fetch_piece == P) fetch_piece = 0, ++fetch_block;
    };
#pragma unroll
    for (int s = 0; s < DEPTH - 1; ++s) stage();
    fetch(now);
    fill(table, W);
    if (SPARSE)
        for (int i = blockIdx.x * WARPS * 32 + threadIdx.x; i < D * FAN; i += gridDim.x * WARPS * 32)
            turned[i] = i % FAN < B ? x[(long long)(i % FAN) * D + i / FAN] : 0;

    int block = begin / P, piece = begin % P, at = 0;
    float acc[R][NT][4] = {};
    for (int u = begin; u < end; ++u) {
        arrived<DEPTH - 2>();
        __syncthreads();  // of everybody's copies; and nobody reads the stage any more that is filled next
        stage();
        fetch(then);
        const u16* rows = stages + at * (FAN * ROW) + g * ROW;
        if (++at == DEPTH) at = 0;
        u32 next[R][2];
#if KIND == TRELLIS
#pragma unroll
        for (int r = 0; r < R; ++r) reach(now[r], lane, next[r]);
#endif
        u32 fragments[2][R][2][4];  // of these 32 inputs and the next, whose look-ups run beneath the products
#pragma unroll
        for (int r = 0; r < R; ++r) decode<false>(fragments[0][r], now[r], 0, table, lane, W, next[r]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (j < 3)
#pragma unroll
                for (int r = 0; r < R; ++r) decode<false>(fragments[j + 1 & 1][r], now[r], j + 1, table, lane, W, next[r]);
            auto& a = fragments[j & 1];
#pragma unroll
            for (int n = 0; n < NT; n += 2) {  // two at a time: a sum's next product is not the next one
                u32 b[2][4];
                inputs(b[0], rows + n * 8 * ROW, j * 32, t);
                inputs(b[1], rows + (n * 8 + 8) * ROW, j * 32, t);
#pragma unroll
                for (int i = 0; i < 4 * R; ++i) {
                    const int m = i / (2 * R), k = i / R & 1, r = i % R;
                    mma(acc[r][n + k], a[r][m], b[k][2 * m], b[k][2 * m + 1]);
                }
            }
        }
        if (u + 1 == end || piece + 1 == P) {
            const int first = ((u32)(block * P + 1) * gridDim.x - 1) / all;
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
        if (++piece == P) piece = 0, ++block;
#pragma unroll
        for (int r = 0; r < R; ++r) now[r] = then[r];
    }
}

#define EIGHTS (FAN / 8)

// y[n][o] from the parts of `wide`, launched with `shares` blocks: a block of 256 threads has 16 outputs of 16 tokens, of
// all if there are outliers.
extern "C" __global__ void __launch_bounds__(256)
finish(const float* parts, const u16* turned, void* y, const u16* row_scale, const u16* bias, const int* starts,
       const u16* columns, const u16* values, int N, int B, int wide_out, int tiles, int pieces, int shares, int slots) {
    __shared__ float others[16][SPARSE ? FAN + 1 : 1];
    const int all = (tiles + WARPS * R - 1) / (WARPS * R) * pieces, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int tile = blockIdx.x % tiles, token = blockIdx.x / tiles * 16;
    const int row = threadIdx.x & 15, o = tile * 16 + row, block = tile / (WARPS * R);
    const int first = ((u32)(block * pieces + 1) * shares - 1) / all, last = ((u32)(block + 1) * pieces * shares - 1) / all;
    if (SPARSE)
#pragma unroll
        for (int k = warp; k < 16; k += 8) {  // EIGHTS lanes read an outlier's inputs, eight tokens each
            const int end = starts[min(tile * 16 + k + 1, N)];
            float more[8] = {};
#pragma unroll 4
            for (int i = starts[min(tile * 16 + k, N)] + lane / EIGHTS; i < end; i += 32 / EIGHTS) {
                const float value = of_half(__ldg(values + i));
                const uint4 x = __ldg((const uint4*)(turned + (u32)__ldg(columns + i) * FAN + lane % EIGHTS * 8));
                const u32 pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    more[2 * c] += value * of_T(pairs[c]);
                    more[2 * c + 1] += value * of_T(pairs[c] >> 16);
                }
            }
#pragma unroll
            for (int c = 0; c < 8; ++c) {
#pragma unroll
                for (int away = 16; away >= EIGHTS; away >>= 1) more[c] += __shfl_xor_sync(ALL, more[c], away);
                if (lane < EIGHTS) others[k][8 * lane + c] = more[c];
            }
        }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < (SPARSE ? FAN : 16); k += 16) {
        const int n = token + k + (threadIdx.x >> 4);
        if (o >= N || n >= B) return;
        const float* part = parts + ((u32)block * slots * FAN + n) * (size_t)HEIGHT + o % HEIGHT;
        float sum = 0;
#pragma unroll 4
        for (int s = 0; s <= last - first; ++s) sum += part[(size_t)s * FAN * HEIGHT];
        if (row_scale) sum *= of_half(row_scale[o]);
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
            decode<false>(a, p, j, table, lane, W, next);
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
