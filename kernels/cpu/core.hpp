// Coded weights that own their memory, and their products on several threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "isa.hpp"
#include "pool.hpp"

namespace panza {

// Memory that starts on a cache line and ends with PAD readable zeros.
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t bytes);  // zeros; pages that nobody writes take no memory
    Buffer(const void* data, size_t bytes) : Buffer(bytes) {
        read_as_stream();
        std::memcpy(data_, data, bytes);
    }
    template <class T = uint8_t>
    T* as() const { return reinterpret_cast<T*>(data_); }
    size_t size() const { return size_; }
    void read_as_stream();  // before it is written: on huge pages, of which a stream crosses few
    void grow(size_t bytes) { if (bytes > size_) *this = Buffer(bytes); }  // what was in it is lost

private:
    struct Free { void operator()(void* p) const; };
    std::unique_ptr<void, Free> memory_;
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

// Outliers of a weight in the order in which kernels read them: see OutlierView.
class Outliers {
public:
    // CSR of a weight of `inputs` inputs; values: fp16. Throws std::invalid_argument for parts that do not fit.
    Outliers(int inputs, const std::vector<int32_t>& starts, const std::vector<uint16_t>& columns,
             const std::vector<uint16_t>& values);
    const OutlierView& view() const { return view_; }
    size_t bytes() const { return columns_.size() + values_.size() + 4 * starts_.size(); }
    // Adds those of the rows from `first` on (first a multiple of 16) and the inputs [from, to) to a block (to -
    // from, 16).
    void add_to(int first, int from, int to, float* block, const Isa&) const;

private:
    std::vector<int32_t> starts_;
    Buffer columns_, values_;
    OutlierView view_;
};

// scale ⊙ decode(codes), a (N, D) matrix: the part of compress.weight.QuantizedWeight that is coded.
class Core {
public:
    bool exact = true;  // false: products may round inputs and tables to 8 bits, see Inputs

    virtual ~Core() = default;
    virtual int N() const = 0;
    virtual int D() const = 0;
    virtual size_t bytes() const = 0;  // that a product of one token reads
    virtual void decode(int first, int last, float* out) const = 0;
    // y (tokens, N) = x (tokens, D) times the transpose, of the sum of this and the outliers, if any.
    virtual void multiply(const float* x, int tokens, float* y, Pool& pool,
                          const Outliers* outliers = nullptr) const = 0;
};

// What scales or zeros were made of, see Parts; no codes: unknown.
struct TwoLevel {
    std::vector<uint8_t> codes;
    std::vector<float> scale, zero;
    int rows = 1;
};

// What the views point to.
struct Tables {
    std::vector<float> scale, zero, values;  // values: levels, words or lut
    int scale_groups = 0, zero_groups = 0;
    TwoLevel scale_parts, zero_parts;
};

// Splits `blocks` blocks of rows among threads: task(first, last) for each part.
template <class Task>
void share(int blocks, Pool& pool, Task task) {
    const int parts = pool.threads() == 1 ? 1 : std::min(blocks, 4 * pool.threads());
    pool.run(parts, [&](int part) {
        const int first = (int)((int64_t)blocks * part / parts), last = (int)((int64_t)blocks * (part + 1) / parts);
        if (first < last) task(first, last);
    });
}

// task(token) for each of them.
template <class Task>
void each(int tokens, Pool& pool, Task task) {
    if (tokens <= FEW) {  // too little to wake others for
        for (int t = 0; t < tokens; t++) task(t);
        return;
    }
    share(tokens, pool, [&](int first, int last) {
        for (int t = first; t < last; t++) task(t);
    });
}

std::unique_ptr<Core> make_grid(int N, int D, int bits, Buffer codes, Tables tables, const Isa&);
std::unique_ptr<Core> make_lut(int N, int D, int bits, int rows, Buffer codes, Tables tables, const Isa&);
std::unique_ptr<Core> make_additive(int N, int D, int books, int bits, int group, Buffer codes, Tables tables,
                                    const Isa&);
std::unique_ptr<Core> make_trellis(int N, int D, int step, int window, Buffer codes, Tables tables, const Isa&);
std::unique_ptr<Core> make_dense(int N, int D, Buffer halves, bool bfloat, const Isa&);  // fp16 or bf16

}  // namespace panza
