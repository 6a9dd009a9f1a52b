// Coded weights that own their memory, and their products on several threads.
#pragma once

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
    Buffer(const void* data, size_t bytes) : Buffer(bytes) { std::memcpy(data_, data, bytes); }
    template <class T = uint8_t>
    T* as() const { return reinterpret_cast<T*>(data_); }
    size_t size() const { return size_; }
    void grow(size_t bytes) { if (bytes > size_) *this = Buffer(bytes); }  // what was in it is lost

private:
    struct Free { void operator()(void* p) const; };
    std::unique_ptr<void, Free> memory_;
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

// scale ⊙ decode(codes), a (N, D) matrix: the part of compress.weight.QuantizedWeight that is coded.
class Core {
public:
    virtual ~Core() = default;
    virtual int N() const = 0;
    virtual int D() const = 0;
    virtual size_t bytes() const = 0;  // that a product of one token reads
    virtual void decode(int first, int last, float* out) const = 0;
    // y (tokens, N) = x (tokens, D) times the transpose.
    virtual void multiply(const float* x, int tokens, float* y, Pool& pool) const = 0;
};

// What the views point to.
struct Tables {
    std::vector<float> scale, zero, values;  // values: levels, words or lut
    int scale_groups = 0, zero_groups = 0;
};

std::unique_ptr<Core> make_grid(int N, int D, int bits, Buffer codes, Tables tables, const Isa&);
std::unique_ptr<Core> make_lut(int N, int D, int bits, int rows, Buffer codes, Tables tables, const Isa&);
std::unique_ptr<Core> make_additive(int N, int D, int books, int bits, int group, Buffer codes, Tables tables, const Isa&);
std::unique_ptr<Core> make_trellis(int N, int D, int step, int window, Buffer codes, Tables tables, const Isa&);
std::unique_ptr<Core> make_dense(int N, int D, Buffer halves, bool bfloat, const Isa&);  // fp16 or bf16

}  // namespace panza
