#include "core.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

namespace panza {

Buffer::Buffer(size_t bytes) : size_(bytes) {
    memory_.reset(std::calloc(bytes + PAD + 64, 1));
    if (!memory_) throw std::bad_alloc();
    data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) / 64 * 64);
}

void Buffer::Free::operator()(void* p) const { std::free(p); }

namespace {

constexpr int PANEL = 32;  // rows that are decoded at once for many tokens: with D = 4096, half a megabyte

void expect(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

size_t packed_bytes(size_t count, int bits) { return (count * bits + 7) / 8; }

// Products of many tokens: a panel of rows is decoded once, then multiplied with all of them.
class Decodable : public Core {
public:
    explicit Decodable(const Isa& isa) : isa_(isa) {}

protected:
    void multiply_panels(const float* x, int tokens, float* y, Pool& pool) const {
        const int n = N(), d = D(), panels = (n + PANEL - 1) / PANEL;
        std::fill(y, y + (size_t)tokens * n, 0.f);
        pool.run(panels, [&](int panel) {
            static thread_local Buffer rows;
            const int first = panel * PANEL, last = std::min(n, first + PANEL);
            rows.grow((size_t)PANEL * d * sizeof(float));
            decode(first, last, rows.as<float>());
            isa_.numerics->matmul(x, d, rows.as<float>(), d, y + first, n, tokens, last - first, d);
        });
    }
    const Isa& isa_;
};

template <class View>
class Coded final : public Decodable {
public:
    Coded(View view, Buffer codes, Tables tables, const Isa& isa, const Kind<View>& kind)
        : Decodable(isa), view_(view), kind_(kind), codes_(std::move(codes)), tables_(std::move(tables)) {
        view_.codes = codes_.as();
        view_.scale = {tables_.scale.empty() ? nullptr : tables_.scale.data(), tables_.scale_groups};
        view_.packed = nullptr;
        fill(view_);
        if (kind_.packed) {
            if (const size_t bytes = kind_.packed(view_)) {
                packed_ = Buffer(bytes);
                kind_.pack(view_, packed_.as());
                view_.packed = packed_.as();
            }
        }
    }
    int N() const override { return view_.N; }
    int D() const override { return view_.D; }
    size_t bytes() const override {
        return (view_.packed ? packed_.size() : codes_.size()) + 4 * (tables_.scale.size() + tables_.zero.size() + tables_.values.size());
    }
    void decode(int first, int last, float* out) const override { kind_.decode(view_, first, last, out); }

    void multiply(const float* x, int tokens, float* y, Pool& pool) const override {
        if (tokens > FEW || !kind_.multiply) return multiply_panels(x, tokens, y, pool);
        static thread_local Buffer prepared;
        Inputs inputs{x, tokens, nullptr};
        if (kind_.prepared) {
            if (const size_t bytes = kind_.prepared(view_, tokens)) {
                prepared.grow(bytes);
                kind_.prepare(view_, x, tokens, prepared.as());
                inputs.prepared = prepared.as();
            }
        }
        const int blocks = (view_.N + kind_.rows - 1) / kind_.rows;
        const int parts = pool.threads() == 1 ? 1 : std::min(blocks, 4 * pool.threads());
        pool.run(parts, [&](int part) {
            const int first = (int)((int64_t)blocks * part / parts) * kind_.rows;
            const int last = std::min(view_.N, (int)((int64_t)blocks * (part + 1) / parts) * kind_.rows);
            if (first < last) kind_.multiply(view_, inputs, first, last, y, view_.N);
        });
    }

private:
    void fill(GridView& v) {
        v.zero = tables_.zero.empty() ? nullptr : tables_.zero.data();
        v.zero_groups = tables_.zero_groups;
    }
    void fill(LutView& v) { v.levels = tables_.values.data(); }
    void fill(AdditiveView& v) { v.words = tables_.values.data(); }
    void fill(TrellisView& v) { v.lut = tables_.values.data(); }

    View view_;
    const Kind<View>& kind_;
    Buffer codes_, packed_;
    Tables tables_;
};

class Dense final : public Decodable {
public:
    Dense(int N, int D, Buffer halves, bool bfloat, const Isa& isa)
        : Decodable(isa), N_(N), D_(D), bfloat_(bfloat), halves_(std::move(halves)) {}
    int N() const override { return N_; }
    int D() const override { return D_; }
    size_t bytes() const override { return halves_.size(); }
    void decode(int first, int last, float* out) const override {
        const auto from = bfloat_ ? isa_.numerics->from_bfloat : isa_.numerics->from_half;
        from(halves_.as<uint16_t>() + (size_t)first * D_, out, (size_t)(last - first) * D_);
    }
    void multiply(const float* x, int tokens, float* y, Pool& pool) const override { multiply_panels(x, tokens, y, pool); }

private:
    int N_, D_;
    bool bfloat_;
    Buffer halves_;
};

void check_tables(int N, int D, const Tables& t, size_t values) {
    expect(N > 0 && D > 0, "a weight has outputs and inputs");
    expect(t.scale.size() == (size_t)N * t.scale_groups && (t.scale_groups == 0 || D % t.scale_groups == 0), "its scales do not fit its size");
    expect(t.zero.size() == (size_t)N * t.zero_groups && (t.zero_groups == 0 || D % t.zero_groups == 0), "its zeros do not fit its size");
    expect(t.values.size() == values, "its table does not fit its codes");
}

void check_bits(int bits) { expect(bits >= 1 && bits <= 16, "a code has 1 to 16 bits"); }

}  // namespace

std::unique_ptr<Core> make_grid(int N, int D, int bits, Buffer codes, Tables tables, const Isa& isa) {
    check_bits(bits);
    check_tables(N, D, tables, 0);
    GridView view{.N = N, .D = D, .bits = bits, .stride = packed_bytes(D, bits)};
    expect(codes.size() == N * view.stride, "its codes do not fit its size");
    return std::make_unique<Coded<GridView>>(view, std::move(codes), std::move(tables), isa, *isa.grid);
}

std::unique_ptr<Core> make_lut(int N, int D, int bits, int rows, Buffer codes, Tables tables, const Isa& isa) {
    check_bits(bits);
    expect(rows == 1 || rows == N, "a table for all rows or one for each");
    check_tables(N, D, tables, (size_t)rows << bits);
    LutView view{.N = N, .D = D, .bits = bits, .rows = rows, .stride = packed_bytes(D, bits)};
    expect(codes.size() == N * view.stride, "its codes do not fit its size");
    return std::make_unique<Coded<LutView>>(view, std::move(codes), std::move(tables), isa, *isa.lut);
}

std::unique_ptr<Core> make_additive(int N, int D, int books, int bits, int group, Buffer codes, Tables tables, const Isa& isa) {
    check_bits(bits);
    expect(books > 0 && group > 0 && D % group == 0, "the group divides the inputs");
    check_tables(N, D, tables, ((size_t)books << bits) * group);
    AdditiveView view{.N = N, .D = D, .books = books, .bits = bits, .group = group, .stride = packed_bytes((size_t)D / group * books, bits)};
    expect(codes.size() == N * view.stride, "its codes do not fit its size");
    return std::make_unique<Coded<AdditiveView>>(view, std::move(codes), std::move(tables), isa, *isa.additive);
}

std::unique_ptr<Core> make_trellis(int N, int D, int step, int window, Buffer codes, Tables tables, const Isa& isa) {
    check_bits(window);
    expect(step >= 1 && step <= window, "a window holds its new bits");
    expect(N % 16 == 0 && D % 16 == 0, "tiles fill the weight");
    check_tables(N, D, tables, (size_t)1 << window);
    TrellisView view{.N = N, .D = D, .step = step, .window = window, .stride = packed_bytes((size_t)16 * D * step + window - step, 1)};
    expect(codes.size() == N / 16 * view.stride, "its codes do not fit its size");
    return std::make_unique<Coded<TrellisView>>(view, std::move(codes), std::move(tables), isa, *isa.trellis);
}

std::unique_ptr<Core> make_dense(int N, int D, Buffer halves, bool bfloat, const Isa& isa) {
    expect(N > 0 && D > 0 && halves.size() == (size_t)N * D * 2, "a dense weight has N x D numbers of two bytes");
    return std::make_unique<Dense>(N, D, std::move(halves), bfloat, isa);
}

}  // namespace panza
