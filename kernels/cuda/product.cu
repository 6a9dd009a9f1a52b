// Products with compressed weights; compress/cuda.py is the host's side, compress/weight.py the definition. Compiled at
// first use through NVRTC, one image for each kind of codes: the names in capitals that are not defined here are -D flags.
//
//   KIND    GRID, ADDITIVE or TRELLIS          BITS    of a weight's codes: 2, 3, 4, 8; a trellis' step; books of 8 bits
//   WINDOW  of a trellis                       WIDE    1: one book of 2^16 words, left in global memory
//   CENTER  a grid's zero where no table is    REP     copies of the table in shared memory
//   SCALE   0: of a row. 1: of GROUPS parts of a piece, each of 16 inputs or more. 2: two levels, of 16 inputs
//   ZEROS   1: the table holds zeros, too      BF16    of inputs and outputs; else fp16
//   SPARSE  1: there are outliers              TOKENS  1, 2, 4 or 8: of narrow, with outliers
//   NT      eights of tokens
//   WARPS   of a block, TEAM of a tile         R       tiles of a warp at once
//   DEPTH   pieces in flight; of narrow runs   RUN     pieces that a warp of narrow takes together
//   INPUTS  1: narrow keeps x in shared memory
//   HELD    if not 0, the pieces of a warp of narrow, whose inputs it keeps in registers; KEEP steps of a team whose sums wait
//   WGMMA   1: Hopper's products of a warpgroup, inputs from shared memory (wide)
//   PART    what to compile: 0 narrow, 1 wide and finish, 2 dense, 3 dots and total
//
// A tile is 16 outputs; a piece is 128 inputs of a tile. All of a piece lies in a record: its codes, BITS * 8 bytes a lane; its
// scales; where its outliers lie; the records of a tile one behind the other. Codes lie in the order in which lanes
// feed m16n8k16 of the tensor cores: lane = 4 g + t holds outputs `first` and `second` (g and g + 8; 2g and 2g + 1 of a
// trellis). Of 32 inputs it holds 8 t .. 8 t + 7; of a trellis 4 t .. 4 t + 3 of each 16; of groups of 16 (FINE) 16 t .. 16 t + 15
// of 64, so that a scale serves two products of 32. The order of inputs within a
// product is free as long as x follows, so no lane ever passes a weight on. wgmma takes its left side alike.
//
// Records come by asynchronous copies into a ring in shared memory, of each warp its own: nothing waits for another warp's
// codes, and what is on its way needs no registers. Where the driver lets a kernel begin while the one
// before it ends (Hopper), all that belongs to the weight is fetched first, and only then `previous_kernel` waited for.

#define GRID 0
#define ADDITIVE 1
#define TRELLIS 2
#define WORDS (2 * BITS)  // of a piece, a lane
#define CHAINED (KIND == TRELLIS)
#define FAN (NT * 8)
#define CONVERT (BF16 && !(CHAINED && SCALE == 0))  // weights become fp16 first: its sums and products are 8 times finer
#define EXTRA (SCALE == 2 ? 192 : SCALE == 1 ? GROUPS * 32 * (1 + ZEROS) : 0)  // bytes of scales
#define RECORD (128 * WORDS + EXTRA + 16 * SPARSE)
#define PAD (16 * CHAINED)  // behind the records of a tile: the byte that follows the last piece
#define THREADS (WARPS * 32)
#define BULK (__CUDA_ARCH__ >= 900)
#define FINE (GROUPS == 8 && !CHAINED)
#define PARTS (FINE ? 2 : GROUPS)  // scales of a lane in a piece
#define SCALE_WORDS (SCALE == 0 ? 0 : SCALE == 1 ? PARTS * (1 + ZEROS) : 5)
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

template <int BYTES>  // 4 or 16; zeros, where nothing is there
__device__ __forceinline__ void copy(void* to, const void* from, bool there = true) {
#if __CUDA_ARCH__ >= 800
    const u32 at = __cvta_generic_to_shared(to);
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(BYTES), "r"(there ? BYTES : 0) : "memory");
#else
    for (int i = 0; i < BYTES / 4; ++i) ((u32*)to)[i] = there ? __ldg((const u32*)from + i) : 0;
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
__device__ __forceinline__ int warp_of(int thread) { return __shfl_sync(ALL, thread >> 5, 0); }  // known to be that of all lanes
__device__ __forceinline__ void hold(u32& value) { asm volatile("" : "+r"(value)); }  // in a register, not made again

// Until here nothing may be read that an earlier kernel wrote, but for the weight, nor anything written.
__device__ __forceinline__ void previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ u32 shared_address(const void* p) { return __cvta_generic_to_shared(p); }

#if BULK
// Barriers in shared memory, which copies of many bytes by one lane, and warps, arrive at.
__device__ __forceinline__ void barrier_init(u32 at, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory"); }
__device__ __forceinline__ void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive(u32 at) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory"); }
__device__ __forceinline__ void barrier_arrive(u32 at, int bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory"); }
__device__ __forceinline__ void barrier_arrive_when_copied(u32 at) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(at) : "memory"); }
__device__ __forceinline__ void barrier_expect(u32 at, int bytes) { asm volatile("mbarrier.expect_tx.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(bytes) : "memory"); }
__device__ __forceinline__ void barrier_wait(u32 at, u32 parity) {
    u32 done;
    do asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(at), "r"(parity) : "memory");
    while (!done);
}
__device__ __forceinline__ void bulk_copy(u32 to, const void* from, int bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
#endif
__device__ __forceinline__ void warp_copy(char* to, const char* from, int bytes, int lane) {
    for (int i = 16 * lane; i < bytes; i += 512) copy<16>(to + i, from + i);
}

// A weight as it lies on the card, `Packed` in compress/cuda.py.
struct Weight {
    const char *records, *table;
    const u32* outliers;  // value << 16 | output of the tile << 12 | input modulo 4096, in the order in which lanes hold them
    int tiles, pieces;
};
__device__ __forceinline__ const char* record_of(const Weight& W, int tile, int piece) {  // offsets are below 2^32: `pack` sees to it
    return W.records + (tile * (u32)(W.pieces * RECORD + PAD) + piece * (u32)RECORD);
}

// What a lane needs of a piece.
struct Piece {
    u32 w[WORDS], s[SCALE_WORDS + CHAINED + 1];
};

// Where in a record a lane reads; held, because it would be made again for every piece.
struct Places {
    u32 fours, twos, scales, levels;
};
__device__ __forceinline__ Places places_of(int lane) {
    const int g = lane >> 2, t = lane & 3;
    Places at = {16u * lane, WORDS / 4 * 512 + 8u * lane, 128 * WORDS + (SCALE == 2 ? 4u * lane : ((FINE ? t : 0) * 8 + g) * (4 + 4u * ZEROS)), 128 * WORDS + 128 + 8u * t};
    hold(at.fours);
    if (WORDS % 4) hold(at.twos);
    if (SCALE) hold(at.scales);
    if (SCALE == 2) hold(at.levels);
    return at;
}

__device__ __forceinline__ void load(Piece& p, const char* record, const Places& at) {
#pragma unroll
    for (int i = 0; i < WORDS / 4; ++i) *(uint4*)(p.w + 4 * i) = *(const uint4*)(record + at.fours + 512 * i);
    if (WORDS % 4) *(uint2*)(p.w + WORDS / 4 * 4) = *(const uint2*)(record + at.twos);
#if SCALE == 1
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
        const char* entry = record + at.scales + i * (FINE ? 4 : 1) * 8 * (4 + 4 * ZEROS);
        if (ZEROS) *(uint2*)(p.s + 2 * i) = *(const uint2*)entry;
        else p.s[i] = *(const u32*)entry;
    }
#elif SCALE == 2
    p.s[0] = *(const u32*)(record + at.scales);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint2 level = *(const uint2*)(record + at.levels + 32 * i);
        p.s[1 + 2 * i] = level.x, p.s[2 + 2 * i] = level.y;
    }
#endif
    if (CHAINED) p.s[SCALE_WORDS] = (unsigned char)record[RECORD];  // the chain goes on in the next piece
}

// `narrow` multiplies x by outliers alone. In `wide` and `dense` those of a piece are spread over zeros, LINE bytes an output,
// added to what is decoded, and taken away again.
#define LINE (CHAINED ? 288 : FINE ? 272 : 320)  // so that eight lanes meet no bank twice
#define SPREAD (SPARSE && PART ? 16 * LINE + 511 & ~511 : 0)
__device__ __forceinline__ uint2 outliers_of(const char* record) { return *(const uint2*)(record + RECORD - 16); }
__device__ __forceinline__ u32 ask(const Weight& W, uint2 range, int lane) {
    return range.x + lane < range.y ? __ldg(W.outliers + range.x + lane) : 0;
}
__device__ __forceinline__ u16* spread_at(char* more, u32 outlier) {
    return (u16*)(more + (outlier >> 12 & 15) * LINE) + (outlier & 127);
}
__device__ __forceinline__ void spread(char* more, const Weight& W, uint2 range, u32 first, int lane, bool set) {
    if (range.x + lane < range.y) *spread_at(more, first) = set ? first >> 16 : 0;
#pragma unroll 1
    for (u32 i = range.x + 32 + lane; i < range.y; i += 32) {
        const u32 next = __ldg(W.outliers + i);
        *spread_at(more, next) = set ? next >> 16 : 0;
    }
}

#if KIND == GRID
#define TABLE_BYTES 0
struct Table {};
__device__ __forceinline__ void ask(Table&, const Weight&) {}
__device__ __forceinline__ void fill(char*, const Table&) {}

// fp16 bits of a whole number below 2048, or of 2^-r.
__device__ __forceinline__ u32 whole(int v) {
    const int e = 31 - __clz(v);
    return (u32)(15 + e) << 10 | (v << (10 - e) & 0x3ff);
}
// Pair c of product q = 2 j + m: codes lie in the low and the high half of a word, those of c one behind the other. Of 3 bits
// five fill a word but for its last bit, two more and two bits lie in a byte of the words behind. `up`: where to leave them.
__device__ __forceinline__ u32 moved(u32 word, int at, int up) { return at < up ? word << (up - at) : word >> (at - up); }
__device__ __forceinline__ u32 pair_of(const Piece& p, int q, int c, int up, u32 more) {
    const u32 mask = ((1u << BITS) - 1) * 0x10001;
    if (BITS == 3 && q == 7) {
        more = within(moved(p.w[4 + (c >> 1)], 8 * (c & 1) + 6, up), 0x30003u << up, more);
        return within(moved(p.w[c], 13, up), 0x40004u << up, more);
    }
    const int per = 16 / BITS;
    const u32 word = BITS == 3 ? p.w[q < 5 ? c : 4 + (c >> 1)] : p.w[q / per * 4 + c];
    const int at = BITS == 3 ? q < 5 ? 3 * q : 8 * (c & 1) + (q == 5 ? 3 : 0) : q % per * BITS;
    return within(moved(word, at, up), mask << up, more);
}
// Products' codes are left on shelves, BITS above each other in fp16, so that most are where they are wanted without a shift.
#define SHELVES (BITS == 2 ? 4 : BITS == 3 ? 3 : BITS == 4 ? 2 : 1)
__device__ __forceinline__ constexpr int shelf_of(int q, int shelves) {
    return shelves == 3 ? q == 7 ? 2 : q > 4 ? 6 - q : q % 3 : q % shelves;
}
// With TINY they stay what they are as bits of fp16, code * 2^(up - 24), and `decode` makes weights of them.
#define TINY (BITS < 8 && (SCALE == 2 || SCALE == 1 && ZEROS))
__device__ __forceinline__ void weights(u32 a[2][4], const Piece& p, int j, const char*, int) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int c = 0; c < 4; ++c) {  // or-ed below 1024's exponent a code is a number
            const int up = shelf_of(2 * j + m, SHELVES) * BITS;
            const u32 less = 0x8000 | whole((1024 >> up) + (ZEROS || SCALE == 2 ? 0 : CENTER));
            if (TINY) a[m][c] = pair_of(p, 2 * j + m, c, up, 0);
            else a[m][c] = fma2(pair_of(p, 2 * j + m, c, up, 0x64006400), ((15u - up) << 10) * 0x10001, less * 0x10001);
        }
}
// The codes themselves: of fp16 tiny numbers, code * 2^(up - 24), which the tensor cores multiply exactly; bf16 is too coarse
// for that and has 128 + code * 2^up.
#define UP (BITS == 4 && BF16 ? 3 : BITS)
#define RAW_SHELVES (BF16 ? 2 : SHELVES)  // for which a number of bf16 has bits
__device__ __forceinline__ void raw(u32 a[2][4], const Piece& p, int j) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int c = 0; c < 4; ++c) a[m][c] = pair_of(p, 2 * j + m, c, shelf_of(2 * j + m, RAW_SHELVES) * UP, BF16 ? 0x43004300 : 0);
}
#endif

#if KIND == ADDITIVE
#if WIDE
#define TABLE_BYTES 0
struct Table {};
__device__ __forceinline__ void ask(Table&, const Weight&) {}
__device__ __forceinline__ void fill(char*, const Table&) {}
#else
#define TABLE_BYTES (BITS * 256 * 16 * REP)
struct Table {
    uint4 words[(BITS * 256 + THREADS - 1) / THREADS];
};
__device__ __forceinline__ void ask(Table& t, const Weight& W) {
#pragma unroll
    for (int k = 0; k < BITS * 256; k += THREADS)
        if (k + threadIdx.x < BITS * 256) t.words[k / THREADS] = __ldg((const uint4*)W.table + k + threadIdx.x);
}
// Word i of the books, 16 bytes, REP times: the eight lanes that shared memory serves at once find eight banks.
__device__ __forceinline__ void fill(char* table, const Table& t) {
#pragma unroll
    for (int at = 0; at < BITS * 256; at += THREADS) {
        const int i = at + threadIdx.x;
        if (i < BITS * 256)
#pragma unroll
            for (int k = 0; k < REP; ++k) *(uint4*)(table + (i * REP + (i + k) % REP) * 16) = t.words[at / THREADS];  // lanes begin elsewhere
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
struct Table {
    u32 pairs[(ENTRIES + THREADS - 1) / THREADS];
};
__device__ __forceinline__ void ask(Table& t, const Weight& W) {
    const u16* lut = (const u16*)W.table;
#pragma unroll
    for (int k = 0; k < ENTRIES; k += THREADS) {
        const int i = k + threadIdx.x;
        if (i < ENTRIES) t.pairs[k / THREADS] = lut[i & ((1 << WINDOW) - 1)] | (u32)lut[i >> BITS] << 16;
    }
}
// The pair of weights of every window + step bits, REP times: with 32 copies each lane has a bank of its own.
__device__ __forceinline__ void fill(char* table, const Table& t) {
#pragma unroll
    for (int at = 0; at < ENTRIES; at += THREADS) {
        const int i = at + threadIdx.x;
        if (i >= ENTRIES) break;
        u32 pair = t.pairs[at / THREADS];
        if (BF16 && !CONVERT) pair = half_to_bf16(pair);  // a weight is one entry: rounded once, as a decoded weight is
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
    if (BITS == 2) bits = __byte_perm(p.w[i >> 1], over, (i & 1 ? 3 : 1) | (4 + (i & 3)) << 4);  // the later 8, and on
    else if (BITS == 3)
        bits = __byte_perm(__byte_perm(p.w[i >> 1], p.w[4 + (i >> 2)], (i & 1 ? 0x0032 : 0x0010) | (4 + (i & 3)) << 8), over, 0x0210 | (4 + (i & 3)) << 12);
    else bits = p.w[i];
    const int order[4] = {0, 2, 1, 3};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const bool soon = BITS == 2 && k < 2;
        const u32 up = 2 + LOG(REP), at = 2 * BITS * k + (BITS > 2 ? 0 : soon ? 16 * (i & 1) : -8), from = soon ? p.w[i >> 1] : bits;
        u32 place = at < up ? from << (up - at) : from >> (at - up);
        if (BITS == 4 && k == 3) place |= (over >> 8 * (i & 3) & 255) << (8 + up);
        a[order[k]] = *(const u32*)(table + within(place, (ENTRIES - 1) << up, (lane & (REP - 1)) << 2));
    }
}
#endif

#if KIND != GRID
#define TINY 0
#endif
#define POWER(n) (((n) + 15 << 10) * 0x10001)  // 2^n, twice

// Scales of the 32 inputs j: of outputs first and second, each twice in a word; zeros likewise. m: which 16 of a trellis. A weight
// is (code - zero) * scale. Of two levels it is scale * code + zero, all of it times a power of two that the scale of rows takes back.
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
    const int i = j >> 1;
    const float by = of_half(p.s[1 + 2 * i]), less = by * (16 + of_half(p.s[1 + 2 * i] >> 16));
    const float zero_by = of_half(p.s[2 + 2 * i]) * (TINY ? -0x1p-24f : -1), zero_less = zero_by * (16 + of_half(p.s[2 + 2 * i] >> 16));
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // or-ed below 16's exponent a code is 16 + code
        const int at = 16 * i + 8 * half;
        const float s = by * __uint_as_float(within(at > 19 ? p.s[0] >> (at - 19) : p.s[0] << (19 - at), 15 << 19, 0x41800000)) - less;
        const float z = zero_by * __uint_as_float(within(at > 15 ? p.s[0] >> (at - 15) : p.s[0] << (15 - at), 15 << 19, 0x41800000)) - zero_less;
        scale[half] = twice(s), zero[half] = twice(s * z);
    }
#endif
}

__device__ __forceinline__ int output_of(int g, int second) { return CHAINED ? 2 * g + second : g + 8 * second; }
// Where inputs of product j of 32 begin for lane t, beside those of other lanes.
__device__ __forceinline__ constexpr int place_of(int j, int t) { return FINE ? (j >> 1) * 64 + 16 * t + 8 * (j & 1) : 32 * j + 8 * t; }

// The 16 x 32 weights j of a piece as two fragments. more: its outliers.
__device__ __forceinline__ void decode(u32 a[2][4], const Piece& p, int j, const char* table, const char* more, int lane, const Weight& W, const u32 next[2]) {
#if KIND == GRID
    weights(a, p, j, table, lane);
#elif KIND == ADDITIVE
    weights(a, p, j, table, lane, W);
#else
    weights16(a[0], p, 2 * j, table, lane, next);
    weights16(a[1], p, 2 * j + 1, table, lane, next);
#endif
    uint4 outliers[2];  // of outputs first and second
    if (SPREAD)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            outliers[half] = *(const uint4*)(more + output_of(lane >> 2, half) * LINE + 2 * place_of(j, lane & 3));
    u32 scale[2], zero[2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
        if (SCALE && (m == 0 || CHAINED)) scales(p, j, m, scale, zero);
        u32 by[2] = {scale[0], scale[1]}, less[2] = {zero[0], zero[1]};
#if TINY  // (2^15 code + less) * by, of two levels code * by + less
        const int up = shelf_of(2 * j + m, SHELVES) * BITS;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (SCALE == 1) by[half] = mul2(scale[half], POWER(9 - up)), less[half] = mul2(zero[half], POWER(up - 9) | 0x80008000);
            else if (up) by[half] = mul2(scale[half], POWER(-up));
        }
#endif
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            u32& pair = a[m][c];
            if (TINY && SCALE == 1) pair = mul2(fma2(pair, POWER(15), less[c & 1]), by[c & 1]);
            else {
                if (SCALE == 1 && ZEROS) pair = sub2(pair, less[c & 1]);
                if (SCALE == 1) pair = mul2(pair, by[c & 1]);
                if (SCALE == 2) pair = fma2(pair, by[c & 1], less[c & 1]);
            }
            if (SPREAD) pair = add2(pair, (&outliers[c & 1].x)[2 * m + (c >> 1)]);
            if (CONVERT) pair = half_to_bf16(pair);
        }
    }
}

// x of product j for the token of this lane: the four words that two products of 16 take. row: of a piece.
__device__ __forceinline__ void inputs(u32 b[4], const u16* row, int j, int t) {
    if (CHAINED) {
        *(uint2*)b = *(const uint2*)(row + 32 * j + 4 * t);
        *(uint2*)(b + 2) = *(const uint2*)(row + 32 * j + 16 + 4 * t);
    } else
        *(uint4*)b = *(const uint4*)(row + place_of(j, t));
}

#define SKEW (CHAINED ? 16 : 32)  // numbers between rows of x in shared memory, so that a warp's reads meet no bank twice
#define STRIDE 20                 // of a token's 16 sums

#if PART == 0
#define TEAMS (WARPS / TEAM)
#define LATER (KIND == GRID && BITS <= 4 && SCALE == 1 && GROUPS == 1)  // scales are applied to a piece's sums
#define EACH (TOKENS > 1 ? 2 : 1)           // tokens of a lane
#define STEPS (TOKENS / EACH)               // in which a warp's outliers meet all tokens
#define BINS (SPARSE * 17 * 32 * EACH * 4)  // bytes: of a tile's outputs, EACH numbers of each lane; the last is nobody's

__device__ __forceinline__ void together(int team) {  // a barrier of one team
    asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "n"(TEAM * 32) : "memory");
}

#if LATER
template <int POWER>  // c += 2^POWER times the sums of inputs
__device__ __forceinline__ void sum_of(float* c, u32 b0, u32 b1) {
    const u32 one = (BF16 ? 0x3f80 + (POWER << 7) : 0x3c00 + (POWER << 10)) * 0x10001, ones[4] = {one, one, one, one};
    mma(c, ones, b0, b1);
}
struct Sums {
    float once[4], offset[4];  // of inputs, as the tensor cores lay out a product; times `raw`'s 128
};
__device__ __forceinline__ void add(Sums& sums, const uint4& b) {
    sum_of<0>(sums.once, b.x, b.y), sum_of<0>(sums.once, b.z, b.w);
    if (BF16) sum_of<7>(sums.offset, b.x, b.y), sum_of<7 - UP>(sums.offset, b.z, b.w);
}
#endif

// Up to 8 tokens. Each block has a run of tiles; teams of warps take R of them at a time, the warps of a team their pieces.
// Sums of KEEP such steps wait in shared memory until warps add up what the others have. y[n][o] = scale[o] * sum + bias.
// x: (B, pieces * 128). wide_out: y is fp32. The outliers of a piece are
// multiplied by themselves, a lane one with EACH tokens into bins of its own, which are added up when a tile is done.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
narrow(Weight W, const u16* x, void* y, const u16* row_scale, const u16* bias, int N, int B, int wide_out) {
    extern __shared__ uint4 room[];
    const int lane = threadIdx.x & 31, warp = warp_of(threadIdx.x), g = lane >> 2, t = lane & 3, P = W.pieces, D = P * 128;
    const int slot = R * (RUN * RECORD + PAD);  // bytes of a run of records
    char* table = (char*)room;
    char* ring = table + TABLE_BYTES + warp * (DEPTH * slot);
    char* bins = table + TABLE_BYTES + WARPS * (DEPTH * slot) + warp * (R * BINS);
    float* sums = (float*)(table + TABLE_BYTES + WARPS * (DEPTH * slot + R * BINS));  // [KEEP][WARPS][R][B][STRIDE]
    float* factors = sums + KEEP * WARPS * R * B * STRIDE;  // [KEEP][TEAMS][R][16], scales of the rows
    u16* kept = (u16*)(factors + KEEP * TEAMS * R * 16);
    const int team = warp / TEAM, member = warp % TEAM, row = lane & 15;
    const int begin = (u32)W.tiles * blockIdx.x / gridDim.x, end = (u32)W.tiles * (blockIdx.x + 1) / gridDim.x;
    const int each = (P + TEAM - 1) / TEAM, head = min(P, member * each), tail = min(P, head + each);  // a warp's pieces

    int ahead_tile = head < tail ? begin + team * R : end, ahead_piece = head;
#if BULK
    __shared__ unsigned long long barriers[WARPS * DEPTH];
    u32 mine_full = shared_address(barriers) + warp * (DEPTH * 8), ring_at = shared_address(ring);
    hold(mine_full), hold(ring_at);
    if (lane < DEPTH) barrier_init(mine_full + 8 * lane, 1);
    barriers_ready();
    __syncwarp();
#endif
    auto fetch_next = [&](int place) {  // in the ring
        if (ahead_tile < end) {
            const int bytes = min(RUN, tail - ahead_piece) * RECORD + PAD;
            const char* from = record_of(W, ahead_tile, ahead_piece);
#if BULK
            if (lane == 0) {
                const u32 barrier = mine_full + place * 8, there = ring_at + place * slot;
                barrier_arrive(barrier, bytes * (R > 1 ? min(R, end - ahead_tile) : 1));
#pragma unroll
                for (int r = 0; r < R; ++r)
                    if (ahead_tile + r < end) bulk_copy(there + r * (slot / R), from + r * (u32)(P * RECORD + PAD), bytes, barrier);
            }
#else
#pragma unroll
            for (int r = 0; r < R; ++r)
                if (ahead_tile + r < end) warp_copy(ring + place * slot + r * (slot / R), from + r * (u32)(P * RECORD + PAD), bytes, lane);
#endif
            if ((ahead_piece += RUN) >= tail) ahead_piece = head, ahead_tile += TEAMS * R;
        }
        if (!BULK) commit();
    };
#pragma unroll 1
    for (int d = 0; d < DEPTH; ++d) fetch_next(d);
    Table words;
    ask(words, W);
#if SPARSE
#pragma unroll
    for (int i = 16 * lane; i < R * BINS; i += 512) *(uint4*)(bins + i) = {};
    u32 from[R], outlier[R];  // where those of the warp's next tiles begin; the lane's of the piece at hand
    auto look = [&](int tile) {
#pragma unroll
        for (int r = 0; r < R; ++r) from[r] = tile + r < end && head < tail ? __ldg((const u32*)(record_of(W, tile + r, head) + RECORD - 16)) : 0;
    };
    auto ask_first = [&] {
#pragma unroll
        for (int r = 0; r < R; ++r) outlier[r] = __ldg(W.outliers + (from[r] + lane));  // there are enough behind the last
    };
    look(begin + team * R), ask_first();
#endif
    previous_kernel();
    const int stride = D + (FINE ? 8 : 32);  // so that eight lanes meet no bank twice
    uint4 eight = {};
    if (INPUTS && threadIdx.x < D / 8) eight = ((const uint4*)x)[threadIdx.x];  // on its way while the table is filled
    const u16* mine = x + (long long)min(g, B - 1) * D;
    const bool token = g < B;  // others are zeros and stay it: what is not read takes no time
    uint4 inputs_of[HELD ? HELD : 1][4] = {};
#pragma unroll
    for (int i = 0; i < HELD; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (token && head + i < tail) inputs((u32*)&inputs_of[i][j], mine + (head + i) * 128, j, t);
    fill(table, words);
    if (INPUTS)
        for (int i = threadIdx.x; i < B * (D / 8); i += THREADS) {
            if (i >= THREADS || i >= D / 8) eight = ((const uint4*)x)[i];
            const int n = i / (D / 8), at = i - n * (D / 8);
            char* to = (char*)(kept + n * stride) + (CHAINED ? (at & ~3) * 16 + (at & 1) * 32 + (at & 2) * 4 : at * 16);
            if (CHAINED) *(uint2*)to = {eight.x, eight.y}, *(uint2*)(to + 16) = {eight.z, eight.w};  // a lane's 8 of 32 together
            else *(uint4*)to = eight;
        }
    __syncthreads();

    u32 kept_at = (char*)kept - table + (min(g, B - 1) * stride + place_of(0, t)) * 2, records_at = ring - table;
    hold(kept_at), hold(records_at);
    const Places places = places_of(lane);
#if LATER
    Sums sums_held[HELD ? HELD : 1] = {};
#pragma unroll
    for (int i = 0; i < HELD; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) add(sums_held[i], inputs_of[i][j]);
#endif
#if SPARSE
    u32 bins_at = bins - table + lane * (EACH * 4), numbers_at[EACH];
    const u16* numbers[EACH];
    hold(bins_at);
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        const int n = min(lane % STEPS * EACH + k, B - 1);
        numbers_at[k] = (char*)kept - table + (n * stride + head * 128) * 2;
        numbers[k] = x + (long long)n * D + head * 128;
        hold(numbers_at[k]);
    }
    const u32 nobody = head * 128 & 0xfff;  // no outlier, of an input that is there
    auto number = [&](int k, u32 one) {
        const u32 in = one - head * 128 & 0xfff, in32 = in & 31;
        return of_T(INPUTS ? *(const u16*)(table + numbers_at[k] + 2 * in)
            : numbers[k][CHAINED ? in - in32 + (in32 & 4) * 4 + (in32 >> 3) * 4 + (in32 & 3) : in]);
    };
    auto multiply = [&](int r, u32 some, bool there) {  // a warp's 32
        some = there ? some : nobody;
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            const u32 one = STEPS == 1 ? some : __shfl_sync(ALL, some, i * (32 / STEPS) + lane / STEPS);
            const u32 row = one < 0x10000 ? 16 : one >> 12 & 15;  // of none: zero times an infinite input would be something
            char* bin = table + bins_at + r * BINS + row * (128 * EACH);
            const float value = of_half(one >> 16);
            if (EACH == 1) *(float*)bin += value * number(0, one);
            else {
                float2 sum = *(float2*)bin;
                sum.x += value * number(0, one), sum.y += value * number(EACH - 1, one);
                *(float2*)bin = sum;
            }
        }
    };
#endif
    int at = 0, step = 0;
    u32 turn = 0;  // how often the ring has been read, modulo 2
    for (int tile = begin + team * R; tile < end; tile += TEAMS * R) {
        float acc[R][4] = {};
        u16 scale[R];
#pragma unroll
        for (int r = 0; r < R; ++r) scale[r] = row_scale ? row_scale[min((tile + r) * 16 + row, N - 1)] : 0x3c00;  // asked for early
#if SPARSE
        look(tile + TEAMS * R);
#endif
        for (int run = head; run < tail; run += RUN) {
#if BULK
            barrier_wait(mine_full + at * 8, turn);
#else
            arrived<DEPTH - 1>();
            __syncwarp();
#endif
            u32 record = records_at + at * slot, here = kept_at + run * 256;
            hold(record), hold(here);
#if HELD
#pragma unroll
#else
#pragma unroll 1
#endif
            for (int i = 0; i < RUN; ++i) {
                const int piece = run + i;
                if (piece >= tail) break;
                Piece now[R];
                u32 next[R][2];
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    load(now[r], table + record + r * (slot / R), places);
#if KIND == TRELLIS
                    reach(now[r], lane, next[r]);
#endif
                }
#if SPARSE
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    const uint2 range = tile + r < end ? outliers_of(table + record + r * (slot / R)) : uint2{};
                    multiply(r, outlier[r], range.x + lane < range.y);
                    outlier[r] = __ldg(W.outliers + (range.y + lane));  // of the next piece
                    u32 i = range.x + 32;
#pragma unroll 1
                    while (i < range.y) {
                        multiply(r, __ldg(W.outliers + (i + lane)), i + lane < range.y);
                        i += 32;
                        hold(i);  // not unrolled
                    }
                }
#endif
#if LATER
                float part[R][RAW_SHELVES][4] = {};
#endif
#if LATER
                Sums sums_of = HELD ? sums_held[HELD ? i : 0] : Sums{};
#endif
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    uint4& b = inputs_of[HELD ? i : 0][j];
                    if (!HELD && WARPS > 16) b = {};  // too few registers to keep them
                    if (!HELD && token) {
                        if (INPUTS) b = *(const uint4*)(table + here + 2 * place_of(j, 0));
                        else inputs((u32*)&b, mine + piece * 128, j, t);
                    }
#if LATER
                    if (!HELD) add(sums_of, b);
#endif
#pragma unroll
                    for (int r = 0; r < R; ++r) {
                        u32 a[2][4];
#if LATER
                        raw(a, now[r], j);
                        mma(part[r][shelf_of(2 * j, RAW_SHELVES)], a[0], b.x, b.y);
                        mma(part[r][shelf_of(2 * j + 1, RAW_SHELVES)], a[1], b.z, b.w);
#else
                        decode(a, now[r], j, table, nullptr, lane, W, next[r]);
                        mma(acc[r], a[0], b.x, b.y);
                        mma(acc[r], a[1], b.z, b.w);
#endif
                    }
                }
#if LATER
#pragma unroll
                for (int r = 0; r < R; ++r)
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        const float s = of_half(now[r].s[0] >> 16 * (c >> 1)), z = ZEROS ? of_half(now[r].s[1] >> 16 * (c >> 1)) : CENTER;
                        float sum = 0;
#pragma unroll
                        for (int k = RAW_SHELVES; k--;) sum += part[r][k][c] * (BF16 ? 1.f / (1 << UP * k) : (float)(1 << 24 - UP * k));
                        acc[r][c] += s * (sum - (BF16 ? sums_of.offset[c] : 0) - z * sums_of.once[c]);
                    }
#endif
                record += RECORD, here += 256;
            }
            __syncwarp();  // all have read the records, which are filled again
            fetch_next(at);
            if (++at == DEPTH) at = 0, turn ^= 1;
        }
        if (step == 0) together(team);  // nobody reads the last sums any more
        float* of_step = sums + step * (WARPS * R * B * STRIDE);
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const int n = 2 * t + (c & 1);
                if (n < B) of_step[((warp * R + r) * B + n) * STRIDE + output_of(g, c >> 1)] = acc[r][c];
            }
            if (member == 0 && lane < 16) factors[((step * TEAMS + team) * R + r) * 16 + lane] = of_half(scale[r]);
        }
#if SPARSE
        ask_first();
        __syncwarp();
#pragma unroll
        for (int r = 0; r < R; ++r) {
            float4* of_row = (float4*)(bins + r * BINS) + row * 8 * EACH;
            float sum[TOKENS] = {};
#pragma unroll
            for (int i = 0; i < 4 * EACH; ++i) {  // lanes 0 to 15 half of it, in an order by which few meet in a bank
                float4& four = of_row[(lane >> 4) * 4 * EACH ^ row & (TOKENS == 8 ? 6 : 7) ^ i];
                const int n = TOKENS == 8 ? i % 2 * 4 : 0;
                sum[n] += four.x, sum[n + 1 % TOKENS] += four.y, sum[n + 2 % TOKENS] += four.z, sum[n + 3 % TOKENS] += four.w;
                four = {};
            }
#pragma unroll
            for (int n = 0; n < TOKENS; ++n) {
                sum[n] += __shfl_xor_sync(ALL, sum[n], 16);
                if (lane < 16 && n < B) of_step[((warp * R + r) * B + n) * STRIDE + row] += sum[n];
            }
        }
        __syncwarp();
#endif
        if (KEEP > 1 && ++step < KEEP && tile + TEAMS * R < end) continue;
        together(team);
        const int steps = KEEP > 1 ? step : 1;
#pragma unroll(KEEP > 1 ? 1 : R)
        for (int i = 0; i < steps * R; ++i) {
            const int s = i / R, r = i % R, done = tile - (steps - 1 - s) * (TEAMS * R) + r, o = done * 16 + row;
            for (int n = (member + TEAM - i * B % TEAM) % TEAM; n < B; n += TEAM) {  // a token of a tile is a warp's
                const float* from = sums + (((s * WARPS + team * TEAM + (lane >> 4) * (TEAM / 2)) * R + r) * B + n) * STRIDE + row;
                float sum = 0;
#pragma unroll
                for (int w = 0; w < TEAM / 2; ++w) sum += from[w * R * B * STRIDE];
                sum *= factors[((s * TEAMS + team) * R + r) * 16 + row];
                sum += __shfl_xor_sync(ALL, sum, 16);
                if (lane >= 16 || o >= N || done >= end) continue;
                if (bias) sum += of_T(bias[o]);
                if (wide_out) ((float*)y)[(long long)n * N + o] = sum;
                else ((u16*)y)[(long long)n * N + o] = to_T(sum);
            }
        }
        step = 0;
    }
}
#endif

#if PART == 1
#define HEIGHT (WARPS * R * 16)  // outputs of a block
#if WGMMA
#define CHUNK (FAN * 16 + 16)  // bytes of 8 inputs of all tokens; the last 16 keep the banks of neighbours apart
#define STAGE (16 * CHUNK)
#else
#define ROW (128 + SKEW)
#define STAGE (FAN * ROW * 2)
#endif

#if WGMMA
// What wgmma must know of 16 inputs of FAN tokens, (8 tokens, 8 inputs) at a time in 128 bytes: no swizzle, inputs first.
__device__ __forceinline__ unsigned long long matrix(u32 shared) {
    unsigned long long d;
    asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(shared >> 4 | (CHUNK >> 4) << 16), "n"(128 >> 4));
    return d;
}
#if BF16
#define OF "f32.bf16.bf16 "
#else
#define OF "f32.f16.f16 "
#endif
#define LIST8 "{%0,%1,%2,%3,%4,%5,%6,%7}"
#define LIST16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define LIST32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define SUMS1(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define SUMS2(n) SUMS1(n), SUMS1(n + 1)
#define SUMS4(n) SUMS2(n), SUMS2(n + 2)
#define LEFT_RIGHT "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
__device__ __forceinline__ void warpgroup_mma(float (*c)[4], const u32* a, unsigned long long b) {
#if NT == 2
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16." OF LIST8 ", {%8,%9,%10,%11}, %12, 1, 1, 1, 0;" : SUMS2(0) : LEFT_RIGHT);
#elif NT == 4
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16." OF LIST16 ", {%16,%17,%18,%19}, %20, 1, 1, 1, 0;" : SUMS4(0) : LEFT_RIGHT);
#elif NT == 8
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16." OF LIST32 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 0;" : SUMS4(0), SUMS4(4) : LEFT_RIGHT);
#endif
}
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void products_done() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
#endif

// FAN tokens: the pieces of all blocks of outputs, in one row, are cut into equal shares, one a block. Sums of a share go
// to parts[(block of outputs * slots + share's place among those of it)][token][output]; `finish` adds them in order.
// A warp fetches its own codes and a part of the inputs, DEPTH - 1 pieces ahead, or with WGMMA one less, so that warps may drift.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
wide(Weight W, const u16* x, float* parts, int B, int slots) {
    extern __shared__ uint4 room[];
    const int lane = threadIdx.x & 31, warp = warp_of(threadIdx.x), g = lane >> 2, t = lane & 3;
    char* stages = (char*)room;  // [DEPTH], x of a piece
    char* table = stages + DEPTH * STAGE;
    char* ring = table + TABLE_BYTES + warp * (DEPTH * R * (RECORD + PAD));
    char* more = table + TABLE_BYTES + WARPS * (DEPTH * R * (RECORD + PAD)) + warp * (R * SPREAD);
    const int P = W.pieces, D = P * 128, blocks = (W.tiles + WARPS * R - 1) / (WARPS * R), all = blocks * P;
    const int begin = blockIdx.x * (u32)all / gridDim.x, end = (blockIdx.x + 1) * (u32)all / gridDim.x;  // below 2^32: `wide`

    int ahead_piece = begin % P, ahead_block = begin / P, ahead = begin, slot = 0;
#if WGMMA
    __shared__ unsigned long long barriers[2 * DEPTH];
    const u32 full = shared_address(barriers), spent = full + 8 * DEPTH;
    if (threadIdx.x < DEPTH) barrier_init(full + 8 * threadIdx.x, THREADS), barrier_init(spent + 8 * threadIdx.x, WARPS);
    barriers_ready();
    __syncthreads();
#endif
    auto fetch_codes = [&] {
        if (ahead >= end) return;
        const int first = (ahead_block * WARPS + warp) * R;
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const char* from = record_of(W, min(first + r, W.tiles - 1), ahead_piece);  // beyond the last: nobody's
            char* to = ring + (slot * R + r) * (RECORD + PAD);
#if WGMMA
            if (lane == 0) barrier_expect(full + 8 * slot, RECORD + PAD), bulk_copy(shared_address(to), from, RECORD + PAD, full + 8 * slot);
#else
            warp_copy(to, from, RECORD + PAD, lane);
#endif
        }
    };
#if WGMMA  // lanes own pairs of inputs, wherever their products have them
    const int word = threadIdx.x & 63, token = threadIdx.x >> 6;
    const int chunk = CHAINED ? word >> 3 << 1 | (word & 1) : FINE ? word >> 5 << 3 | (word & 7) : word >> 4 << 2 | (word & 3);
    const int owner = CHAINED ? word >> 1 & 3 : FINE ? word >> 3 & 3 : word >> 2 & 3;
    u32 from = token * D + 2 * word, to = chunk * CHUNK + token * 16 + owner * 4;
    hold(from), hold(to);
#endif
    auto fetch_inputs = [&] {
        char* stage = stages + slot * STAGE;
#if WGMMA
#pragma unroll
        for (int k = 0; k < FAN * 64; k += THREADS)
            if (FAN * 64 - k >= THREADS || k + threadIdx.x < FAN * 64)
                copy<4>(stage + to + k / 4, x + (from + ahead_piece * 128 + k / 64 * D), token + k / 64 < B);
#else
#pragma unroll
        for (int k = 0; k < FAN * 16; k += THREADS) {
            const int i = k + threadIdx.x, n = i >> 4, at = (i & 15) * 8;
            if (FAN * 16 - k >= THREADS || i < FAN * 16)
                copy<16>((u16*)stage + n * ROW + at, x + (u32)(min(n, B - 1) * D + ahead_piece * 128 + at), n < B);
        }
#endif
    };
    auto step = [&] {
        ++ahead;
        if (++ahead_piece == P) ahead_piece = 0, ++ahead_block;
        if (++slot == DEPTH) slot = 0;
    };
    const int lead = DEPTH - 1 - WGMMA;  // pieces fetched before the first is multiplied
    for (int s = 0; s < lead; ++s) fetch_codes(), step();
    Table words;
    ask(words, W);
    fill(table, words);
    if (SPARSE)
#pragma unroll
        for (int i = 0; i < R * SPREAD / 512; ++i) *(uint4*)(more + 512 * i + 16 * lane) = {};
    ahead = begin, ahead_piece = begin % P, ahead_block = begin / P, slot = 0;
    previous_kernel();
    __syncthreads();  // of the table and the barriers
    for (int s = 0; s < lead; ++s) {
        if (ahead < end) fetch_inputs();
#if WGMMA
        barrier_arrive_when_copied(full + 8 * slot);
#else
        commit();  // the first group has all codes so far, too
#endif
        step();
    }

    const Places places = places_of(lane);
    int at = 0;
    u32 turn = 0;  // how often the ring has been read, modulo 2
    float acc[R][NT][4] = {};
#if SPARSE
    u32 outlier[R];  // the first of each lane, asked for a piece earlier
#if WGMMA
    barrier_wait(full, 0);
#else
    arrived<DEPTH - 2>();
    __syncwarp();
#endif
#pragma unroll
    for (int r = 0; r < R; ++r) outlier[r] = begin < end ? ask(W, outliers_of(ring + r * (RECORD + PAD)), lane) : 0;
#endif
    for (int u = begin; u < end;) {
        const int block = u / P, first = (block * WARPS + warp) * R, stop = min(end, (block + 1) * P);
        for (; u < stop; ++u) {
            const int after = at + 1 == DEPTH ? 0 : at + 1;
#if WGMMA
            if (ahead - begin >= DEPTH) barrier_wait(spent + 8 * slot, (ahead - begin) / DEPTH + 1 & 1);
            fetch_codes();
            if (ahead < end) fetch_inputs();
            barrier_arrive_when_copied(full + 8 * slot);
            step();
            barrier_wait(full + 8 * at, turn);
            if (SPARSE) barrier_wait(full + 8 * after, turn ^ (after == 0));
#else
            arrived<DEPTH - 2 - (SPARSE && DEPTH > 2)>();
            __syncwarp();
#endif
            Piece now[R];
            u32 next[R][2], fragments[2][R][2][4];  // of these 32 inputs and the next, whose look-ups run beneath the products
#pragma unroll
            for (int r = 0; r < R; ++r) {
                load(now[r], ring + (at * R + r) * (RECORD + PAD), places);
#if KIND == TRELLIS
                reach(now[r], lane, next[r]);
#endif
            }
#if SPARSE
            uint2 range[R];
            u32 head[R];
#pragma unroll
            for (int r = 0; r < R; ++r) {
                range[r] = outliers_of(ring + (at * R + r) * (RECORD + PAD)), head[r] = outlier[r];
                outlier[r] = u + 1 < end ? ask(W, outliers_of(ring + (after * R + r) * (RECORD + PAD)), lane) : 0;
                spread(more + r * SPREAD, W, range[r], head[r], lane, true);
            }
            __syncwarp();
#endif
#pragma unroll
            for (int r = 0; r < R; ++r) decode(fragments[0][r], now[r], 0, table, more + r * SPREAD, lane, W, next[r]);
#if WGMMA
            products_done<0>();
            if (u > begin && lane == 0) barrier_arrive(spent + 8 * (at == 0 ? DEPTH - 1 : at - 1));
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // copies were ordinary writes
            u32 inputs_at = __cvta_generic_to_shared(stages) + at * STAGE;
            hold(inputs_at);
#else
            __syncthreads();  // of everybody's copies; and nobody reads the stage any more that is filled next
            fetch_codes();
            if (ahead < end) fetch_inputs();
            commit();
            step();
            const u16* rows = (const u16*)(stages + at * STAGE) + g * ROW;
#endif
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                auto& a = fragments[j & 1];
#if WGMMA
                products_begin();
#pragma unroll
                for (int m = 0; m < 2; ++m)
#pragma unroll
                    for (int r = 0; r < R; ++r) warpgroup_mma(acc[r], a[r][m], matrix(inputs_at + (4 * j + 2 * m) * CHUNK));
                products_commit();
                if (j) products_done<1>();
#endif
                if (j < 3)
#pragma unroll
                    for (int r = 0; r < R; ++r) decode(fragments[j + 1 & 1][r], now[r], j + 1, table, more + r * SPREAD, lane, W, next[r]);
#if !WGMMA
#pragma unroll
                for (int n = 0; n < NT; n += 2) {  // two at a time: a sum's next product is not the next one
                    u32 b[2][4];
                    inputs(b[0], rows + n * 8 * ROW, j, t);
                    inputs(b[1], rows + (n * 8 + 8) * ROW, j, t);
#pragma unroll
                    for (int i = 0; i < 4 * R; ++i) {
                        const int m = i / (2 * R), k = i / R & 1, r = i % R;
                        mma(acc[r][n + k], a[r][m], b[k][2 * m], b[k][2 * m + 1]);
                    }
                }
#endif
            }
#if SPARSE
            __syncwarp();
#pragma unroll
            for (int r = 0; r < R; ++r) spread(more + r * SPREAD, W, range[r], head[r], lane, false);
            __syncwarp();
#endif
            at = after, turn ^= at == 0;
        }
#if WGMMA
        products_done<0>();
#endif
        const int share = ((u32)(block * P + 1) * gridDim.x - 1) / all;
        float* part = parts + ((long long)block * slots + (int)blockIdx.x - share) * FAN * HEIGHT;
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
}

// y[n][o] from the parts of `wide`, launched with `shares` blocks: a thread has four outputs of a token.
extern "C" __global__ void __launch_bounds__(256)
finish(const float* parts, void* y, const u16* row_scale, const u16* bias, int N, int B, int wide_out, int tiles, int pieces,
       int shares, int slots) {
    const int i = blockIdx.x * 256 + threadIdx.x, o = i % (tiles * 4) * 4, n = i / (tiles * 4), block = o / HEIGHT;
    const int all = (tiles + WARPS * R - 1) / (WARPS * R) * pieces;
    const int first = ((u32)(block * pieces + 1) * shares - 1) / all, last = ((u32)(block + 1) * pieces * shares - 1) / all;
    const float* part = parts + ((u32)block * slots * FAN + n) * (size_t)HEIGHT + o % HEIGHT;
    previous_kernel();
    if (n >= B) return;
    float sum[4] = {};
#pragma unroll 4
    for (int s = 0; s <= last - first; ++s) {
        const float4 more = *(const float4*)(part + (size_t)s * FAN * HEIGHT);
        sum[0] += more.x, sum[1] += more.y, sum[2] += more.z, sum[3] += more.w;
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        if (o + c >= N) return;
        if (row_scale) sum[c] *= of_half(row_scale[o + c]);
        if (bias) sum[c] += of_T(bias[o + c]);
        if (wide_out) ((float*)y)[(long long)n * N + o + c] = sum[c];
        else ((u16*)y)[(long long)n * N + o + c] = to_T(sum[c]);
    }
}
#endif

#if PART == 2
// The weight itself: (tiles * 16, pieces * 128), a warp a piece.
extern "C" __global__ void __launch_bounds__(THREADS)
dense(Weight W, u16* out, const u16* row_scale, int N) {
    extern __shared__ uint4 room[];
    const int lane = threadIdx.x & 31, warp = warp_of(threadIdx.x), g = lane >> 2, t = lane & 3;
    const int all = W.tiles * W.pieces, step = gridDim.x * WARPS;
    char* table = (char*)room;
    char* ring = table + TABLE_BYTES + warp * (2 * (RECORD + PAD));
    char* more = table + TABLE_BYTES + WARPS * (2 * (RECORD + PAD)) + warp * SPREAD;
    int ahead = blockIdx.x * WARPS + warp, place = 0;
    auto fetch_next = [&] {
        if (ahead < all) warp_copy(ring + place * (RECORD + PAD), record_of(W, ahead / W.pieces, ahead % W.pieces), RECORD + PAD, lane);
        commit();
        ahead += step, place ^= 1;
    };
    fetch_next();
    Table words;
    ask(words, W);
    fill(table, words);
    if (SPARSE)
#pragma unroll
        for (int i = 0; i < SPREAD / 512; ++i) *(uint4*)(more + 512 * i + 16 * lane) = {};
    previous_kernel();
    __syncthreads();
    const Places places = places_of(lane);
    for (int u = blockIdx.x * WARPS + warp; u < all; u += step) {
        const int tile = u / W.pieces, piece = u % W.pieces;
        fetch_next();
        arrived<1>();
        __syncwarp();
        const char* record = ring + place * (RECORD + PAD);
        Piece p;
        load(p, record, places);
        u32 next[2];
#if KIND == TRELLIS
        reach(p, lane, next);
#endif
#if SPARSE
        const uint2 range = outliers_of(record);
        const u32 first = ask(W, range, lane);
        spread(more, W, range, first, lane, true);
#endif
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            u32 a[2][4];
            decode(a, p, j, table, more, lane, W, next);
#pragma unroll
            for (int second = 0; second < 2; ++second) {
                const int o = tile * 16 + output_of(g, second);
                u32 pair[4] = {a[0][second], a[0][2 + second], a[1][second], a[1][2 + second]};
                if (row_scale && o < N) {
                    const float scale = of_half(row_scale[o]);
#pragma unroll
                    for (int i = 0; i < 4; ++i) pair[i] = to_T(of_T(pair[i]) * scale) | (u32)to_T(of_T(pair[i] >> 16) * scale) << 16;
                }
                u16* row = out + (long long)o * (W.pieces * 128) + piece * 128;
                if (CHAINED) {
                    *(uint2*)(row + 32 * j + 4 * t) = {pair[0], pair[1]};
                    *(uint2*)(row + 32 * j + 16 + 4 * t) = {pair[2], pair[3]};
                } else
                    *(uint4*)(row + place_of(j, t)) = {pair[0], pair[1], pair[2], pair[3]};
            }
        }
#if SPARSE
        __syncwarp();
        spread(more, W, range, first, lane, false);
#endif
    }
}
#endif

#if PART == 3
// One token, two books, a scale a row. What a codeword adds to an output is its product with 8 inputs, the same for all
// outputs: a block makes those of both books for the 64 groups of SLICE pieces, and then only looks up and adds, a lane a
// group, so that no two lanes meet in a bank. `total` adds the slices.
#define SLICE 4
#define ROWS 256  // bytes of a codeword's products, 4 a group

__device__ __forceinline__ void mma8(float* c, u32 a0, u32 a1, u32 b) {
#if __CUDA_ARCH__ >= 800 && BF16
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
#endif
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b));
}

// parts: (slices, tiles * 16). blocks: of a slice, each with a run of its tiles.
extern "C" __global__ void __launch_bounds__(512, 1)
dots(Weight W, const u16* x, float* parts, int blocks) {
    extern __shared__ uint4 room[];
    const int lane = threadIdx.x & 31, warp = warp_of(threadIdx.x), g = lane >> 2, t = lane & 3, p = lane >> 4, j = lane >> 2 & 3;
    const int slice = blockIdx.x / blocks, place = blockIdx.x % blocks, first = slice * SLICE, count = min(SLICE, W.pieces - first);
    const int begin = (u32)W.tiles * place / blocks, end = (u32)W.tiles * (place + 1) / blocks;
    char* products = (char*)room;                                          // [512 codewords][64 groups] fp32
    char* ring = products + 512 * ROWS + warp * (DEPTH * SLICE * RECORD);  // of the warp's tiles
    const u32 full = shared_address(products + 512 * ROWS + 16 * DEPTH * SLICE * RECORD) + warp * (DEPTH * 8);

    int ahead = begin + warp, slot = 0;
    if (lane < DEPTH) barrier_init(full + 8 * lane, 1);
    barriers_ready();
    __syncwarp();
    auto fetch_next = [&] {
        if (ahead < end && lane == 0) {
            barrier_arrive(full + 8 * slot, count * RECORD);
            bulk_copy(shared_address(ring + slot * (SLICE * RECORD)), record_of(W, ahead, first), count * RECORD, full + 8 * slot);
        }
        ahead += 16;
        if (++slot == DEPTH) slot = 0;
    };
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) fetch_next();
    u32 words[4], inputs[4][2];  // of the warp's 32 codewords, and of all groups
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        words[q] = __ldg((const u32*)W.table + (warp * 32 + q * 8 + g) * 4 + t);
        if (BF16) words[q] = half_to_bf16(words[q]);
    }
    previous_kernel();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int group = 8 * i + g;  // beyond the last piece: zeros, whatever its codes are
        inputs[i >> 1][i & 1] = group < count * 16 ? ((const u32*)x)[(first * 16 + group) * 4 + t] : 0;
    }
    char* to = products + (warp * 32 + 2 * t) * ROWS;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        float c[4][4] = {};
#pragma unroll
        for (int i = 0; i < 4; ++i) mma8(c[i], inputs[i][0], inputs[i][1], words[q]);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int h = 0; h < 2; ++h) {  // groups 8 b + g of codeword 8 q + 2 t + h, in an order that is another for each t
                float v[4] = {c[2 * half][h], c[2 * half][2 + h], c[2 * half + 1][h], c[2 * half + 1][2 + h]};
                if (t & 1) {
                    const float v0 = v[0];
                    v[0] = v[1], v[1] = v[2], v[2] = v[3], v[3] = v0;
                }
                if (t & 2) {
                    const float v0 = v[0], v1 = v[1];
                    v[0] = v[2], v[1] = v[3], v[2] = v0, v[3] = v1;
                }
#pragma unroll
                for (int k = 0; k < 4; ++k) *(float*)(to + (8 * q + h) * ROWS + half * 128 + (k + t & 3) * 32 + g * 4) = v[k];
            }
    }
    __syncthreads();

    const u32 own[2] = {4u * lane, 4u * lane + 128};
    const char* from = ring + p * RECORD + t * 16 + j * 4 + p * 64;  // lanes of the second piece are an output ahead: other banks
    int at = 0;
    u32 turn = 0;
    for (int tile = begin + warp; tile < end; tile += 16) {
        barrier_wait(full + 8 * at, turn);
        float s[16] = {};
#pragma unroll
        for (int pair = 0; pair < 2; ++pair)
#pragma unroll
            for (int k = 0; k < 8; ++k) {  // of outputs k and k + 8; k ^ 1 and its second of lanes of the second piece
                const int back = k & 1 ? p * 128 : 0;
                const u32 codes = *(const u32*)(from + at * (SLICE * RECORD) + pair * (2 * RECORD) + k * 64 - back);
                s[k] += *(const float*)(products + __byte_perm(codes, own[pair], 0x6504)) +
                        *(const float*)(products + 256 * ROWS + __byte_perm(codes, own[pair], 0x6514));
                s[8 + k] += *(const float*)(products + __byte_perm(codes, own[pair], 0x6524)) +
                            *(const float*)(products + 256 * ROWS + __byte_perm(codes, own[pair], 0x6534));
            }
        __syncwarp();
        fetch_next();
        if (++at == DEPTH) at = 0, turn ^= 1;
        float sum[8];  // each step halves the outputs of a lane and the lanes that are not added yet
#pragma unroll
        for (int k = 0; k < 8; ++k) sum[k] = (p ? s[8 + (k ^ 1)] : s[k]) + __shfl_xor_sync(ALL, p ? s[k ^ 1] : s[8 + k], 16);
#pragma unroll
        for (int n = 4; n; n >>= 1)
#pragma unroll
            for (int k = 0; k < n; ++k) {
                const bool upper = lane & 2 * n;
                sum[k] = (upper ? sum[n + k] : sum[k]) + __shfl_xor_sync(ALL, upper ? sum[k] : sum[n + k], 2 * n);
            }
        sum[0] += __shfl_xor_sync(ALL, sum[0], 1);
        if (!(lane & 1)) parts[((size_t)slice * W.tiles + tile) * 16 + (lane >> 1)] = sum[0];
    }
}

// y (N,) from the parts of `dots`.
extern "C" __global__ void __launch_bounds__(128)
total(const float* parts, void* y, const u16* row_scale, const u16* bias, int N, int slices, int rows, int wide_out) {
    const int o = blockIdx.x * 128 + threadIdx.x;
    const u16 scale = row_scale && o < N ? row_scale[o] : 0x3c00;
    previous_kernel();
    if (o >= N) return;
    float sum = 0;
#pragma unroll 8
    for (int s = 0; s < slices; ++s) sum += parts[(size_t)s * rows + o];
    sum *= of_half(scale);
    if (bias) sum += of_T(bias[o]);
    if (wide_out) ((float*)y)[o] = sum;
    else ((u16*)y)[o] = to_T(sum);
}
#endif
