#include "isa.hpp"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(_MSC_VER)
#include <intrin.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace panza {

#define DECLARE(isa) \
    namespace isa {  \
    extern const Isa TABLE; \
    }
#ifdef PANZA_HAS_PLAIN
DECLARE(plain)
#endif
#ifdef PANZA_HAS_AVX2
DECLARE(avx2)
#endif
#ifdef PANZA_HAS_AVX512
DECLARE(avx512)
#endif
#ifdef PANZA_HAS_NEON
DECLARE(neon)
#endif

namespace {

#if defined(PANZA_HAS_AVX2) && !defined(_MSC_VER)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("avx512vnni");
}
#elif defined(PANZA_HAS_AVX2)
bool bit(int leaf, int reg, int at) {
    int r[4];
    __cpuidex(r, leaf, 0);
    return r[reg] >> at & 1;
}
bool saves(unsigned long long mask) { return bit(1, 2, 27) && (_xgetbv(0) & mask) == mask; }
bool has_avx2() { return saves(6) && bit(7, 1, 5) && bit(1, 2, 12) && bit(1, 2, 29); }
bool has_avx512() {
    return has_avx2() && saves(0xe6) && bit(7, 1, 16) && bit(7, 1, 30) && bit(7, 1, 31) && bit(7, 1, 17) &&
           bit(7, 2, 1) && bit(7, 2, 6) && bit(7, 2, 11);
}
#endif

#if defined(PANZA_HAS_NEON) && defined(__linux__)
bool has_neon() {  // ARMv8.2 and dot products
    constexpr unsigned long NEEDED = HWCAP_ATOMICS | HWCAP_ASIMDRDM | HWCAP_ASIMDDP;
    return (getauxval(AT_HWCAP) & NEEDED) == NEEDED;
}
#elif defined(PANZA_HAS_NEON)
bool has_neon() { return true; }  // every Mac with an ARM processor
#endif

struct Entry {
    const Isa* table;
    bool runs;
};

const Entry* entries(int& count) {
    static const Entry all[] = {
        {&plain::TABLE, true},
#ifdef PANZA_HAS_NEON
        {&neon::TABLE, has_neon()},
#endif
#ifdef PANZA_HAS_AVX2
        {&avx2::TABLE, has_avx2()},
#endif
#ifdef PANZA_HAS_AVX512
        {&avx512::TABLE, has_avx512()},
#endif
    };
    count = sizeof all / sizeof *all;
    return all;
}

}  // namespace

const char* const* isas() {
    static const char* names[8] = {};
    int count;
    const Entry* all = entries(count);
    for (int i = 0, n = 0; i < count; i++)
        if (all[i].runs) names[n++] = all[i].table->name;
    return names;
}

const Isa* isa(const char* name) {
    int count;
    const Entry* all = entries(count);
    for (int i = 0; i < count; i++)
        if (all[i].runs && !std::strcmp(all[i].table->name, name)) return all[i].table;
    return nullptr;
}

const Isa& isa() {
    static const Isa* chosen = [] {
        if (const char* wanted = std::getenv("PANZA_ISA"); wanted && *wanted) {
            if (const Isa* found = isa(wanted)) return found;
            std::string names;
            for (auto n = isas(); *n; n++) names += std::string(names.empty() ? "" : ", ") + *n;
            throw std::runtime_error("PANZA_ISA is '" + std::string(wanted) + "', and this computer runs " + names);
        }
        const Isa* best = nullptr;
        for (auto n = isas(); *n; n++) best = isa(*n);
        return best;
    }();
    return *chosen;
}

}  // namespace panza
