// A few threads that share the rows of a product. Workers spin for some microseconds after a task, then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace panza {

class Pool {
public:
    explicit Pool(int threads);  // fewer where the system gives no more; std::invalid_argument beyond 1 to MOST
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    static constexpr int MOST = 1024;
    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls task(i) once for every i in [0, parts), the caller helping, and returns when all are done. Which thread takes
    // which part is free: a thread that another program holds up keeps only the part it has. A second caller waits for the
    // first; a task must not call it. What a task throws is thrown again when all are done, the first of several.
    void run(int parts, const std::function<void(int)>& task);

    std::atomic<bool> alone{false};  // the caller does all itself

private:
    void work();
    void take(uint64_t round);
    void call(int part) noexcept;

    std::vector<std::thread> workers_;
    std::mutex running_;  // one round at a time
    std::mutex mutex_;
    std::condition_variable wake_;
    // (round << 32 | next part): a worker that comes late to a round cannot take a part of the one after.
    std::atomic<uint64_t> next_{~uint64_t(0)};
    std::atomic<int> done_{0};
    std::atomic<uint64_t> round_{0};
    std::atomic<int> parts_{0};
    std::atomic<const std::function<void(int)>*> task_{nullptr};
    std::exception_ptr thrown_;  // under mutex_
    std::atomic<int> sleeping_{0};
    std::atomic<bool> stop_{false};
};

// Whether work that comes again and again is done sooner with helpers or alone, by what it took: a helper whose core another
// program wants makes all wait. Both are tried at first, and the other way now and then.
class Company {
public:
    bool alone() const;
    void took(double seconds);  // the work, done as `alone` said

private:
    double mean_[2] = {0, 0};  // of late, seconds: with helpers, alone
    unsigned times_ = 0;
};

}  // namespace panza
