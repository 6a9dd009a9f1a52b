#include "pool.hpp"

#include <chrono>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define PAUSE() asm volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

namespace panza {

namespace {
constexpr auto SPIN = std::chrono::microseconds(60);  // longer than a small layer takes, shorter than anyone notices
}

Pool::Pool(int threads) {
    if (threads < 1 || threads > MOST) throw std::invalid_argument("a pool has 1 to " + std::to_string(MOST) + " threads, not " + std::to_string(threads));
    workers_.reserve(threads - 1);
    try {
        for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
    } catch (const std::exception&) {  // of those who asked for work, some get it
    }
}

Pool::~Pool() {
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::run(int parts, const std::function<void(int)>& task) {
    if (parts <= 0) return;
    if (parts == 1 || workers_.empty() || alone) {
        for (int i = 0; i < parts; i++) task(i);
        return;
    }
    std::lock_guard running(running_);
    task_ = &task;
    parts_ = parts;
    done_ = 0;
    const uint64_t round = (round_ + 1) % 0xffffffff;  // has 32 bits of next_, where all ones are a closed round
    next_ = round << 32;
    round_ = round;
    if (sleeping_ > 0) {
        { std::lock_guard lock(mutex_); }
        wake_.notify_all();
    }
    take(round);
    for (int spins = 0; done_ < parts; spins++) {
        if (spins < 4000) PAUSE();
        else std::this_thread::yield();  // the straggler may want this very core
    }
    next_ = ~uint64_t(0);  // closed: who looked at it before the next round is set up takes nothing of it
    if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
}

void Pool::call(int part) noexcept {
    try {
        (*task_.load())(part);
    } catch (...) {
        std::lock_guard lock(mutex_);
        if (!thrown_) thrown_ = std::current_exception();
    }
    done_++;
}

void Pool::take(uint64_t round) {
    for (;;) {
        uint64_t at = next_;
        if (at >> 32 != round) return;
        const int part = static_cast<int>(at & 0xffffffff);
        if (part >= parts_) return;
        if (!next_.compare_exchange_weak(at, at + 1)) continue;
        call(part);
    }
}

void Pool::work() {
    uint64_t seen = 0;
    while (!stop_) {
        auto until = std::chrono::steady_clock::now() + SPIN;
        while (round_ == seen && !stop_ && std::chrono::steady_clock::now() < until) PAUSE();
        if (round_ == seen && !stop_) {
            std::unique_lock lock(mutex_);
            sleeping_++;
            wake_.wait(lock, [&] { return round_ != seen || stop_; });
            sleeping_--;
        }
        if (stop_) return;
        seen = round_;
        take(seen);
    }
}

bool Company::alone() const {
    constexpr unsigned FIRST = 4, ROUND = 64, OTHER = 3;  // times: of each way at first; of the other way in a round
    if (times_ < 2 * FIRST) return times_ >= FIRST;
    return (mean_[1] < mean_[0]) != (times_ % ROUND < OTHER);
}

void Company::took(double seconds) {
    double& mean = mean_[alone()];
    mean += mean ? (seconds - mean) / 4 : seconds;
    times_++;
}

}  // namespace panza
