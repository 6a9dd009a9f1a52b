// A block of CUDA threads on one thread of a CPU, so that the kernels' sources are run where there is no GPU: each is a
// fiber, resumed in random order and left at whatever waits for others. Copies arrive as late as they may, shared memory
// begins as NaNs and keeps them beyond what a launch asks for, and copies and loads by __ldg must lie in a buffer that the kernel was given. So a
// barrier or a wait that lacks is a wrong number or a sentence, on one seed or another. Below it: what the sources say in PTX.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

// Without alignment: pieces of a thread lie in registers there, anywhere on a stack here.
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct dim { int x; };
alignas(1024) static uint4 room[232448 / 16];  // of a block's shared memory what a launch asks for
static dim blockIdx, blockDim, gridDim;

namespace emulated {
constexpr size_t STACK = 128 << 10;

struct Copy {
    char* to;
    std::string bytes;
};
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = false;
    std::deque<std::vector<Copy>> groups{1};  // of cp.async, the last not yet committed
};
struct Meeting {  // of all threads of a warp, a team or a block
    int there = 0;
    unsigned turn = 0;
};
struct Barrier {  // an mbarrier
    int count, left, bytes;
    unsigned phase;
};
struct Bulk {
    Copy copy;
    unsigned barrier;
};
struct Warp {
    Meeting meeting;
    unsigned words[2][32][8];
    unsigned pace;  // resumed in one of so many rounds; 0: only when all others wait
};

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static std::map<int, Meeting> named;
static std::map<unsigned, Barrier> barriers;
static std::vector<Bulk> bulk;
static std::vector<std::pair<const char*, size_t>> buffers;
static std::mt19937 random;
static std::string fault;
static ucontext_t scheduler;
static int current, events, limit;
static void (*body)();

inline void pause() { swapcontext(&fibers[current].context, &scheduler); }
[[noreturn]] inline void fail(const std::string& what) {
    if (fault.empty()) fault = what;
    for (;;) pause();
}
inline void meet(Meeting& m, int count) {
    const unsigned turn = m.turn;
    ++events;
    if (++m.there == count) m.there = 0, ++m.turn;
    while (m.turn == turn) pause();
}
inline int lane() { return current & 31; }
inline Warp& warp() { return warps[current >> 5]; }
// What each lane of the warp says: words[lane][i]. Valid until the warp meets again but one time.
template <int COUNT>
const unsigned (*told(const unsigned (&words)[COUNT]))[8] {
    Warp& w = warp();
    auto& slot = w.words[w.meeting.turn & 1];
    std::copy(words, words + COUNT, slot[lane()]);
    meet(w.meeting, 32);
    return slot;
}
inline void inside(const void* from, size_t bytes) {
    for (auto& [start, size] : buffers)
        if ((const char*)from >= start && (const char*)from + bytes <= start + size) return;
    fail("read " + std::to_string(bytes) + " bytes outside of all buffers");
}
inline void land(const Copy& copy) { std::copy(copy.bytes.begin(), copy.bytes.end(), copy.to); }
inline void finish_phase(Barrier& b) {
    ++events;
    if (b.left == 0 && b.bytes == 0) b.left = b.count, ++b.phase;
}
inline Barrier& barrier(unsigned at) {
    if (!barriers.count(at)) fail("a barrier that nobody made");
    return barriers[at];
}
inline void entry() {
    body();
    fibers[current].done = true;
    ++events;
    for (;;) pause();
}
inline void run_block(int threads) {
    fibers = std::vector<Fiber>(threads), warps = std::vector<Warp>((threads + 31) / 32);
    named.clear(), barriers.clear(), bulk.clear();
    std::memset(room, 0xff, sizeof room);
    const int manner = random() % 3;  // all alike, each at a pace of its own, some as late as can be
    for (auto& w : warps) w.pace = manner == 0 ? 1 : manner == 1 ? 1u << random() % 7 : random() % 2;
    for (auto& f : fibers) {
        f.stack.reset(new char[STACK]);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get(), f.context.uc_stack.ss_size = STACK, f.context.uc_link = nullptr;
        makecontext(&f.context, entry, 0);
    }
    std::vector<int> order(threads);
    for (int i = 0; i < threads; ++i) order[i] = i;
    bool stuck = false;
    while (fault.empty() && !std::all_of(fibers.begin(), fibers.end(), [](auto& f) { return f.done; })) {
        std::shuffle(order.begin(), order.end(), random);
        const int before = events;
        const bool all = stuck || random() % 256 == 0;
        std::vector<bool> now(warps.size());
        for (size_t w = 0; w < now.size(); ++w) now[w] = all || warps[w].pace && random() % warps[w].pace == 0;
        for (int i : order)
            if (now[i >> 5] && !fibers[i].done) current = i, swapcontext(&scheduler, &fibers[i].context);
        const bool idle = events == before;
        if (!idle && random() % 2) continue;
        if (!bulk.empty()) {  // one of the copies on their way arrives
            std::swap(bulk[random() % bulk.size()], bulk.back());
            const Bulk b = bulk.back();
            bulk.pop_back(), land(b.copy);
            Barrier& full = barriers[b.barrier];
            full.bytes -= b.copy.bytes.size(), finish_phase(full);
        } else if (idle && all && fault.empty()) fault = "all threads wait for each other";
        stuck = idle && bulk.empty();
    }
    for (size_t i = limit; i < sizeof room; ++i)
        if (((unsigned char*)room)[i] != 0xff && fault.empty()) fault = "wrote beyond the shared memory that it asked for";
    if (fault.empty() && !bulk.empty()) fault = "copies still on their way when the block ended";
}
template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}
template <class... A>
void run(void (*kernel)(A...), int blocks, int threads, void** arguments) {
    static void (*of)(A...);
    static void** with;
    of = kernel, with = arguments;
    body = [] { call(of, with, std::index_sequence_for<A...>()); };
    gridDim.x = blocks, blockDim.x = threads;
    std::vector<int> order(blocks);
    for (int i = 0; i < blocks; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    for (int i : order)
        if (fault.empty()) blockIdx.x = i, run_block(threads);
}

// --- numbers ---
inline float of_half(unsigned short h) {
    const int e = h >> 10 & 31, m = h & 1023;
    const float f = e == 31 ? (m ? NAN : INFINITY) : std::ldexp(float(e ? m | 1024 : m), (e ? e : 1) - 25);
    return h >> 15 ? -f : f;
}
inline unsigned short to_half(double f) {
    const unsigned short sign = std::signbit(f) ? 0x8000 : 0;
    f = std::fabs(f);
    if (std::isnan(f)) return 0x7fff;
    if (f == 0) return sign;
    if (std::isinf(f)) return sign | 0x7c00;
    int e;
    std::frexp(f, &e);
    e = std::max(e, -13);
    const double m = std::nearbyint(std::ldexp(f, 11 - e));  // 11 bits, ties to even; carries go up by themselves
    if (m >= 2048 && e + 1 > 16 || m < 2048 && e > 16) return sign | 0x7c00;
    return sign | std::min(0x7c00, (int)m + (e + 13) * 1024);
}
template <class F>
unsigned both(F of) { return of(0) | (unsigned)of(16) << 16; }
inline float of_bf16(unsigned short h) {
    float f;
    const unsigned bits = (unsigned)h << 16;
    return std::memcpy(&f, &bits, 4), f;
}
}  // namespace emulated

#define threadIdx (dim{emulated::current})
template <class A, class B>
auto min(A a, B b) { return std::min<std::common_type_t<A, B>>(a, b); }
template <class A, class B>
auto max(A a, B b) { return std::max<std::common_type_t<A, B>>(a, b); }
inline float __uint_as_float(unsigned u) { float f; return std::memcpy(&f, &u, 4), f; }
inline float __int_as_float(int u) { return __uint_as_float(u); }
inline unsigned __float_as_uint(float f) { unsigned u; return std::memcpy(&u, &f, 4), u; }
inline float __fsub_rn(float a, float b) { volatile float f = a - b; return f; }
inline float __fadd_rn(float a, float b) { volatile float f = a + b; return f; }
inline float __fmul_rn(float a, float b) { volatile float f = a * b; return f; }
inline float rsqrtf(float f) { return 1 / std::sqrt(f); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned how) {
    const uint64_t all = a | (uint64_t)b << 32;
    unsigned d = 0;
    for (int i = 0; i < 4; ++i) d |= (unsigned)(all >> 8 * (how >> 4 * i & 7) & 255) << 8 * i;
    return d;
}
template <class T>
T __ldg(const T* p) { return emulated::inside(p, sizeof(T)), *p; }
inline unsigned __cvta_generic_to_shared(const void* p) { return (unsigned)((const char*)p - (const char*)room); }
inline char* shared_at(unsigned at) { return (char*)room + (int)at; }
inline void __syncthreads() { emulated::meet(emulated::named[0], blockDim.x); }
inline void __syncwarp() { emulated::meet(emulated::warp().meeting, 32); }
template <class T>
T __shfl_sync(unsigned, T v, int from) {
    unsigned bits[1];
    std::memcpy(bits, &v, 4);
    const auto all = emulated::told(bits);
    return std::memcpy(&v, all[from & 31], 4), v;
}
template <class T>
T __shfl_xor_sync(unsigned, T v, int away) { return __shfl_sync(~0u, v, emulated::lane() ^ away); }

// --- what product.cu, hadamard.cu and rows.cu say in PTX ---
static unsigned fma2(unsigned a, unsigned b, unsigned c) {
    return emulated::both([&](int i) { return emulated::to_half((double)emulated::of_half(a >> i) * emulated::of_half(b >> i) + emulated::of_half(c >> i)); });
}
static unsigned add2(unsigned a, unsigned b) {
    return emulated::both([&](int i) { return emulated::to_half((double)emulated::of_half(a >> i) + emulated::of_half(b >> i)); });
}
static unsigned sub2(unsigned a, unsigned b) { return add2(a, b ^ 0x80008000); }
static unsigned mul2(unsigned a, unsigned b) {
    return emulated::both([&](int i) { return emulated::to_half((double)emulated::of_half(a >> i) * emulated::of_half(b >> i)); });
}
static unsigned within(unsigned a, unsigned mask, unsigned more) { return (a & mask) | more; }
static float of_half(unsigned short h) { return emulated::of_half(h); }
static float half(unsigned short h) { return emulated::of_half(h); }
static unsigned short to_half(float f) { return emulated::to_half(f); }
static unsigned twice(float f) { return emulated::to_half(f) * 0x10001u; }
static unsigned half_to_bf16(unsigned pair) {
    return emulated::both([&](int i) {
        const unsigned bits = __float_as_uint(emulated::of_half(pair >> i));
        return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    });
}
static void hold(unsigned&) {}
static void previous_kernel() {}

template <int K, bool BF16_INPUTS>
void emulated_mma(float* c, const unsigned* a, const unsigned* b) {
    unsigned mine[6] = {};
    std::copy(a, a + K / 4, mine), std::copy(b, b + K / 8, mine + 4);
    const auto all = emulated::told(mine);
    const auto value = [](unsigned word, int k) { return BF16_INPUTS ? emulated::of_bf16(word >> 16 * (k & 1)) : emulated::of_half(word >> 16 * (k & 1)); };
    const int g = emulated::lane() >> 2, t = emulated::lane() & 3;
    for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i >> 1), n = 2 * t + (i & 1);
        double sum = c[i];
        for (int k = 0; k < K; ++k) {
            const int of = k % 8 / 2;
            sum += (double)value(all[row % 8 * 4 + of][k / 8 * 2 + row / 8], k) * value(all[n * 4 + of][4 + k / 8], k);
        }
        c[i] = sum;
    }
}

template <int BYTES>
void copy(void* to, const void* from, bool there = true) {
    if (there) emulated::inside(from, BYTES);
    std::string bytes = there ? std::string((const char*)from, BYTES) : std::string(BYTES, 0);
    if (__CUDA_ARCH__ < 800) emulated::land({(char*)to, bytes});
    else emulated::fibers[emulated::current].groups.back().push_back({(char*)to, bytes});
}
static void commit() { emulated::fibers[emulated::current].groups.emplace_back(); }
template <int LEFT>
void arrived() {
    auto& groups = emulated::fibers[emulated::current].groups;
    for (; groups.size() > LEFT + 1; groups.pop_front())
        for (auto& one : groups.front()) emulated::land(one);
}
static void barrier_init(unsigned at, int count) { emulated::barriers[at] = {count, count, 0, 0}; }
static void barriers_ready() {}
static void barrier_arrive(unsigned at) {
    auto& b = emulated::barrier(at);
    if (b.left-- == 0) emulated::fail("more arrive at a barrier than it waits for");
    emulated::finish_phase(b);
}
static void barrier_expect(unsigned at, int bytes) { emulated::barrier(at).bytes += bytes; }
static void barrier_arrive(unsigned at, int bytes) { barrier_expect(at, bytes), barrier_arrive(at); }
static void barrier_arrive_when_copied(unsigned at) { commit(), arrived<0>(), barrier_arrive(at); }
static void barrier_wait(unsigned at, unsigned parity) {
    while ((emulated::barrier(at).phase & 1) == parity) emulated::pause();
}
static void bulk_copy(unsigned to, const void* from, int bytes, unsigned barrier) {
    if ((to | (uintptr_t)from | bytes) & 15) emulated::fail("a copy that is not of whole 16 bytes");
    emulated::inside(from, bytes);
    emulated::bulk.push_back({{shared_at(to), std::string((const char*)from, bytes)}, barrier});
}
static void together_at(int name, int threads) { emulated::meet(emulated::named[name], threads); }
static void products_begin() {}
static void products_commit() {}
template <int LEFT>
void products_done() {}

#define LAUNCHED(kernel) if (name == #kernel) emulated::run(kernel, blocks, threads, arguments);
#define EMULATED(KERNELS)                                                                                                  \
    extern "C" const char* launch(const char* which, int blocks, int threads, int shared, void** arguments, int count,      \
                                  void** starts, size_t* sizes, unsigned seed) {                                           \
        const std::string name = which;                                                                                    \
        emulated::fault.clear(), emulated::buffers.clear(), emulated::random.seed(seed);                                   \
        emulated::limit = shared;                                                                                          \
        for (int i = 0; i < count; ++i) emulated::buffers.emplace_back((const char*)starts[i], sizes[i]);                  \
        KERNELS return emulated::fault.c_str();                                                                            \
    }
