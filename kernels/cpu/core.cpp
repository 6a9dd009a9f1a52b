#include "core.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace panza {

namespace {
constexpr size_t HUGE_PAGE = size_t(2) << 20;
}

Buffer::Buffer(size_t bytes) : size_(bytes) {
    const size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
    memory_.reset(std::calloc(bytes + PAD + alignment, 1));
    if (!memory_) throw std::bad_alloc();
    data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory_.get()) + alignment - 1) / alignment * alignment);
#if defined(__SANITIZE_ADDRESS__)
    const uint8_t* end = data_ + bytes + PAD;  // what is over for the alignment would hide who reads beyond
    ASAN_POISON_MEMORY_REGION(end, static_cast<uint8_t*>(memory_.get()) + bytes + PAD + alignment - end);
#endif
}

void Buffer::read_as_stream() {
#if defined(__linux__)
    if (size_ >= HUGE_PAGE) madvise(data_, size_ / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
}

void Buffer::Free::operator()(void* p) const { std::free(p); }

namespace {

constexpr int BLOCK = 16;   // rows that lie side by side when many tokens multiply
constexpr int PANEL = 128;  // rows of a panel at most, and
constexpr int DEPTH = 256;  // its inputs: 128 KB, which stay in the second-level cache
constexpr int MANY = 96;    // tokens whose prepared inputs are kept at once
constexpr int NEAR = 8;     // tokens whose inputs stay near while all outliers meet them
constexpr int ROUNDED = 8;  // tokens from which products in 8 bits are faster than those of few tokens
constexpr size_t BATCH = 4 << 20;  // floats of the inputs that multiply a panel while it is there

void expect(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

constexpr int MOST_SIZE = 1 << 26;      // outputs or inputs: kernels count bytes of a row in 32 bits
constexpr int MOST_BOOKS = 1 << 10;
constexpr size_t MOST_CODES = 1 << 28;  // of a row

size_t packed_bytes(size_t count, int bits) { return (count * bits + 7) / 8; }

// Products of many tokens: a panel of the weight is decoded once, then multiplied with all of them.
class Decodable : public Core {
public:
    explicit Decodable(const Isa& isa) : isa_(isa) {}

protected:
    // Rows [first, last), first a multiple of BLOCK, of the inputs [from, to) as blocks: see Matmul. A thread that
    // asks for a part of some rows has asked for the parts before.
    virtual void panel(int first, int last, int from, int to, float* out) const {
        static thread_local Buffer rows;
        const int d = D();
        rows.grow((size_t)PANEL * d * sizeof(float));
        if (from == 0) decode(first, last, rows.as<float>());
        for (int n = first; n < last; n += BLOCK, out += (size_t)BLOCK * (to - from))
            isa_.matmul->block(rows.as<float>() + (size_t)(n - first) * d + from, d, std::min(BLOCK, last - n),
                               to - from, out);
    }

    // As `panel`, of at most 128 rows and Matmul8::DEPTH inputs, in 8 bits: see Kind::panel8. Returns the blocks.
    virtual int panel8(int first, int last, int from, int to, uint8_t* out, float* step, float* offset, uint8_t* order) const {
        static thread_local Buffer floats;
        const int depth = to - from;
        floats.grow((size_t)PANEL * Matmul8::DEPTH * sizeof(float));
        panel(first, last, from, to, floats.as<float>());
        for (int i = 0; i < last - first; i += BLOCK, out += (size_t)(depth + 3) / 4 * 64)
            isa_.matmul8->block(floats.as<float>() + (size_t)i * depth, depth, out, step + i);
        std::fill(offset, offset + PANEL, 0.f);
        std::iota(order, order + PANEL, (uint8_t)0);
        return (last - first + BLOCK - 1) / BLOCK;
    }

    // Inputs and weights rounded to 8 bits, each with a step of its own for every DEPTH inputs.
    void multiply_rounded(const float* x, int tokens, float* y, Pool& pool) const {
        static thread_local Buffer mine;
        const Matmul8& m = *isa_.matmul8;
        const int n = N(), d = D(), strips = (tokens + m.tokens - 1) / m.tokens;
        const size_t bytes = m.strip_bytes(d);
        const auto length = [&](int s) { return std::min(m.tokens, tokens - s * m.tokens); };
        mine.grow(strips * bytes);
        uint8_t* packed = mine.as();
        pool.run(strips, [&](int s) { m.strip(x + (size_t)s * m.tokens * d, d, length(s), d, packed + s * bytes); });
        pool.run((n + PANEL - 1) / PANEL, [&](int i) {
            static thread_local Buffer panels, products;
            float step[PANEL], offset[PANEL];
            uint8_t order[PANEL];
            const int first = i * PANEL, last = std::min(n, first + PANEL);
            int blocks = 0;
            panels.grow((size_t)PANEL * Matmul8::DEPTH), products.grow((size_t)strips * m.tokens * PANEL * sizeof(float));
            float* made = products.as<float>();
            for (int from = 0; from < d; from += Matmul8::DEPTH) {
                const int to = std::min(d, from + Matmul8::DEPTH);
                blocks = panel8(first, last, from, to, panels.as(), step, offset, order);
                for (int s = 0; s < strips; s++)
                    m.multiply(packed + s * bytes, length(s), from, panels.as(), blocks, to - from, step, offset,
                               made + (size_t)s * m.tokens * PANEL, PANEL, from > 0);
            }
            for (int t = 0; t < tokens; t++)
                for (int lane = 0; lane < blocks * BLOCK; lane++)
                    if (first + order[lane] < last) y[(size_t)t * n + first + order[lane]] = made[(size_t)t * PANEL + lane];
        });
    }

    void multiply_panels(const float* x, int tokens, float* y, Pool& pool, const Outliers* outliers) const {
        const int strip = isa_.matmul->tokens, most = std::max(1, (int)(BATCH / D() / strip)) * strip;
        for (int t = 0; t < tokens; t += most)
            multiply_batch(x + (size_t)t * D(), std::min(most, tokens - t), y + (size_t)t * N(), pool, outliers);
    }

    const Isa& isa_;

private:
    void multiply_batch(const float* x, int tokens, float* y, Pool& pool, const Outliers* outliers) const {
        static thread_local Buffer mine;
        const Matmul& m = *isa_.matmul;
        const int n = N(), d = D(), strips = (tokens + m.tokens - 1) / m.tokens;
        const auto length = [&](int s) { return std::min(m.tokens, tokens - s * m.tokens); };
        mine.grow((size_t)strips * m.tokens * d * sizeof(float));
        float* packed = mine.as<float>();
        pool.run(strips, [&](int s) {
            const size_t at = (size_t)s * m.tokens * d;
            m.strip(x + at, d, length(s), d, packed + at);
        });
        const int rows = std::clamp(n / (4 * pool.threads()) / (2 * BLOCK) * (2 * BLOCK), 2 * BLOCK, PANEL);
        pool.run((n + rows - 1) / rows, [&](int i) {
            static thread_local Buffer blocks;
            const int first = i * rows, last = std::min(n, first + rows);
            blocks.grow((size_t)PANEL * DEPTH * sizeof(float));
            for (int from = 0; from < d; from += DEPTH) {
                const int to = std::min(d, from + DEPTH);
                panel(first, last, from, to, blocks.as<float>());
                if (outliers)
                    for (int r = first; r < last; r += BLOCK)
                        outliers->add_to(r, from, to, blocks.as<float>() + (size_t)(r - first) * (to - from), isa_);
                for (int s = 0; s < strips; s++)
                    m.multiply(packed + (size_t)s * m.tokens * d, length(s), from, blocks.as<float>(), last - first,
                               to - from, y + (size_t)s * m.tokens * n + first, n, from > 0);
            }
        });
    }
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
        few_ = kind_.multiply && (!kind_.takes || kind_.takes(view_));
        slices_ = few_ && kind_.slices ? kind_.slices(view_) : 1;
        if (few_ && kind_.packed) {
            if (const size_t bytes = kind_.packed(view_)) {
                packed_ = Buffer(bytes);
                packed_.read_as_stream();
                kind_.pack(view_, packed_.as());
                view_.packed = packed_.as();
                tables_.scale_parts = tables_.zero_parts = {};
                if (kind_.panel && kind_.packs_tables) forget();
            }
        }
    }
    int N() const override { return view_.N; }
    int D() const override { return view_.D; }
    size_t bytes() const override {
        if (view_.packed && kind_.packs_tables) return packed_.size();
        const size_t numbers = 4 * (tables_.scale.size() + tables_.zero.size());
        if (few_ && kind_.reads) return numbers + kind_.reads(view_);
        return numbers + 4 * tables_.values.size() + (view_.packed ? packed_.size() : codes_.size());
    }
    void decode(int first, int last, float* out) const override {
        if (view_.codes) return kind_.decode(view_, first, last, out);
        static thread_local Buffer block;
        block.grow((size_t)BLOCK * view_.D * sizeof(float));
        for (int n = first / BLOCK * BLOCK; n < last; n += BLOCK) {
            kind_.panel(view_, n / BLOCK, 0, view_.D, block.as<float>());
            for (int r = std::max(first, n); r < std::min(last, n + BLOCK); r++)
                for (int d = 0; d < view_.D; d++)
                    out[(size_t)(r - first) * view_.D + d] = block.as<float>()[(size_t)d * BLOCK + r - n];
        }
    }

    void multiply(const float* x, int tokens, float* y, Pool& pool, const Outliers* outliers) const override {
        if (!exact && tokens >= ROUNDED && isa_.matmul8->tokens) {
            multiply_rounded(x, tokens, y, pool);
            if (outliers)
                share((view_.N + BLOCK - 1) / BLOCK, pool, [&](int first, int last) {
                    for (int t = 0; t < tokens; t += NEAR)
                        add_outliers(*outliers, x + (size_t)t * view_.D, std::min(NEAR, tokens - t), first * BLOCK,
                                     std::min(view_.N, last * BLOCK), y + (size_t)t * view_.N);
                });
            return;
        }
        if (tokens > std::max(FEW, kind_.most) || !few_) return multiply_panels(x, tokens, y, pool, outliers);
        for (int t = 0; t < tokens; t += MANY) {
            const float* from = x + (size_t)t * view_.D;
            float* to = y + (size_t)t * view_.N;
            const int some = std::min(MANY, tokens - t);
            if (slices_ > 1) multiply_slices(from, some, to, pool, outliers);
            else multiply_few(from, some, to, pool, outliers);
        }
    }

protected:
    void panel(int first, int last, int from, int to, float* out) const override {
        if (!kind_.panel || !view_.packed) return Decodable::panel(first, last, from, to, out);
        for (int n = first; n < last; n += BLOCK, out += (size_t)BLOCK * (to - from))
            kind_.panel(view_, n / BLOCK, from, to, out);
    }
    int panel8(int first, int last, int from, int to, uint8_t* out, float* step, float* offset, uint8_t* order) const override {
        const bool made = kind_.panel8 && view_.packed && kind_.panel8(view_, first, from, to, out, step, offset, order);
        return made ? PANEL / BLOCK : Decodable::panel8(first, last, from, to, out, step, offset, order);
    }

private:
    void multiply_few(const float* x, int tokens, float* y, Pool& pool, const Outliers* outliers) const {
        static thread_local Buffer prepared;
        const Inputs inputs = prepare({x, tokens, nullptr, 0, exact}, prepared);
        const int rows = std::lcm(kind_.rows, BLOCK);
        share((view_.N + rows - 1) / rows, pool, [&](int first, int last) {
            const int from = first * rows, to = std::min(view_.N, last * rows);
            kind_.multiply(view_, inputs, from, to, y, view_.N);
            if (outliers) add_outliers(*outliers, x, tokens, from, to, y);
        });
    }

    // Every slice with all rows is a part; with more threads than slices, some of the rows, each part preparing for itself.
    void multiply_slices(const float* x, int tokens, float* y, Pool& pool, const Outliers* outliers) const {
        static thread_local Buffer sums;
        const size_t size = (size_t)tokens * view_.N;
        sums.grow(slices_ * size * sizeof(float));
        float* sum = sums.as<float>();
        const int blocks = (view_.N + kind_.rows - 1) / kind_.rows, shares = std::min(blocks, (pool.threads() + slices_ - 1) / slices_);
        pool.run(slices_ * shares, [&](int part) {
            static thread_local Buffer prepared;
            const int slice = part / shares, share = part % shares;
            const int first = (int)((int64_t)blocks * share / shares) * kind_.rows;
            const int last = std::min(view_.N, (int)((int64_t)blocks * (share + 1) / shares) * kind_.rows);
            if (first < last) kind_.multiply(view_, prepare({x, tokens, nullptr, slice, exact}, prepared), first, last, sum + slice * size, view_.N);
        });
        std::copy(sum, sum + size, y);
        for (int slice = 1; slice < slices_; slice++) isa_.numerics->add_scaled(y, sum + slice * size, 1, (int)size);
        if (outliers) add_outliers(*outliers, x, tokens, 0, view_.N, y);
    }

    void add_outliers(const Outliers& outliers, const float* x, int tokens, int first, int last, float* y) const {
        const auto& view = outliers.view();
        isa_.numerics->add_outliers(view, x, view_.D, tokens, first, std::min(last, view.N), y, view_.N);
    }

    Inputs prepare(Inputs inputs, Buffer& prepared) const {
        const size_t bytes = kind_.prepared ? kind_.prepared(view_, inputs.tokens) : 0;
        if (!bytes) return inputs;
        prepared.grow(bytes);
        kind_.prepare(view_, inputs, prepared.as());
        inputs.prepared = prepared.as();
        return inputs;
    }

    // What is packed says it all: the file's codes and tables would be a second copy.
    void forget() {
        codes_ = {}, tables_ = {};
        view_.codes = nullptr, view_.scale = {};
        fill(view_);
    }

    void fill(GridView& v) {
        v.zero = tables_.zero.empty() ? nullptr : tables_.zero.data();
        v.zero_groups = tables_.zero_groups;
        v.scale_parts = parts(tables_.scale_parts, tables_.scale_groups);
        v.zero_parts = parts(tables_.zero_parts, tables_.zero_groups);
    }
    static Parts parts(const TwoLevel& t, int groups) {
        return {t.codes.empty() ? nullptr : t.codes.data(), t.scale.data(), t.zero.data(), t.rows, groups};
    }
    void fill(LutView& v) { v.levels = tables_.values.data(); }
    void fill(AdditiveView& v) { v.words = tables_.values.data(); }
    void fill(TrellisView& v) { v.lut = tables_.values.data(); }

    View view_;
    const Kind<View>& kind_;
    Buffer codes_, packed_;
    Tables tables_;
    bool few_ = false;  // the kind multiplies this weight with few tokens itself
    int slices_ = 1;
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
    void multiply(const float* x, int tokens, float* y, Pool& pool, const Outliers* outliers) const override {
        if (tokens > FEW || !isa_.matmul->halves || outliers) return multiply_panels(x, tokens, y, pool, outliers);
        share(N_, pool, [&](int first, int last) {
            isa_.matmul->halves(halves_.as<uint16_t>(), bfloat_, x, D_, tokens, first, last, y, N_);
        });
    }

protected:
    void panel(int first, int last, int from, int to, float* out) const override {
        static thread_local Buffer rows;
        const auto convert = bfloat_ ? isa_.numerics->from_bfloat : isa_.numerics->from_half;
        const int depth = to - from;
        rows.grow(BLOCK * DEPTH * sizeof(float));
        for (int n = first; n < last; n += BLOCK, out += (size_t)BLOCK * depth) {
            const int count = std::min(BLOCK, last - n);
            for (int r = 0; r < count; r++)
                convert(halves_.as<uint16_t>() + (size_t)(n + r) * D_ + from, rows.as<float>() + (size_t)r * depth,
                        depth);
            isa_.matmul->block(rows.as<float>(), depth, count, depth, out);
        }
    }

private:
    int N_, D_;
    bool bfloat_;
    Buffer halves_;
};

void check_parts(int N, const TwoLevel& t, size_t count, int groups) {
    if (t.codes.empty()) return;
    expect(t.rows > 0 && t.codes.size() == count, "its second level does not fit its size");
    const size_t second = (size_t)((N - 1) / t.rows + 1) * groups;
    expect(t.scale.size() == second && t.zero.size() == second, "its second level does not fit its size");
}

void check_size(int N, int D) {
    expect(N > 0 && D > 0 && N <= MOST_SIZE && D <= MOST_SIZE, "a weight has outputs and inputs, at most 2^26 of each");
}

void check_tables(int N, int D, const Tables& t, size_t values) {
    expect(t.scale.size() == (size_t)N * t.scale_groups && (t.scale_groups == 0 || D % t.scale_groups == 0),
           "its scales do not fit its size");
    expect(t.zero.size() == (size_t)N * t.zero_groups && (t.zero_groups == 0 || D % t.zero_groups == 0),
           "its zeros do not fit its size");
    expect(t.values.size() == values, "its table does not fit its codes");
    check_parts(N, t.scale_parts, t.scale.size(), t.scale_groups);
    check_parts(N, t.zero_parts, t.zero.size(), t.zero_groups);
}

void check_bits(int bits) { expect(bits >= 1 && bits <= 16, "a code has 1 to 16 bits"); }

}  // namespace

Outliers::Outliers(int inputs, const std::vector<int32_t>& starts, const std::vector<uint16_t>& columns,
                   const std::vector<uint16_t>& values) {
    const char* wrong = "its rows do not count its outliers";
    expect(!starts.empty() && starts[0] == 0 && std::is_sorted(starts.begin(), starts.end()), wrong);
    expect((size_t)starts.back() == values.size() && columns.size() == values.size(), wrong);
    for (uint16_t c : columns) expect(c < inputs, "it has outliers beyond its inputs");
    const int N = (int)starts.size() - 1, blocks = (N + BLOCK - 1) / BLOCK;
    starts_.assign(1, 0);
    for (int n = 0; n < N; n += BLOCK) {
        int32_t most = 0;
        for (int r = n; r < std::min(N, n + BLOCK); r++) most = std::max(most, starts[r + 1] - starts[r]);
        starts_.push_back(starts_.back() + most);
    }
    columns_ = Buffer((size_t)starts_.back() * BLOCK * 2), values_ = Buffer((size_t)starts_.back() * BLOCK * 2);
    std::vector<int32_t> order;
    for (int n = 0; n < N; n++) {
        order.resize(starts[n + 1] - starts[n]);
        std::iota(order.begin(), order.end(), starts[n]);
        std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return columns[a] < columns[b]; });
        const int32_t first = starts_[n / BLOCK], steps = starts_[n / BLOCK + 1] - first;
        for (int32_t i = 0; i < steps && !order.empty(); i++) {
            const size_t at = (size_t)(first + i) * BLOCK + n % BLOCK;
            const bool real = i < (int32_t)order.size();
            columns_.as<uint16_t>()[at] = columns[real ? order[i] : order.back()];
            values_.as<uint16_t>()[at] = real ? values[order[i]] : 0;
        }
    }
    starts_.resize(blocks + 1);
    view_ = {N, starts_.data(), columns_.as<uint16_t>(), values_.as<uint16_t>()};
}

void Outliers::add_to(int first, int from, int to, float* block, const Isa& isa) const {
    if (first >= view_.N) return;
    for (int32_t s = view_.starts[first / BLOCK]; s < view_.starts[first / BLOCK + 1]; s++) {
        float values[BLOCK];
        isa.numerics->from_half(view_.values + (size_t)s * BLOCK, values, BLOCK);
        for (int r = 0; r < BLOCK; r++) {
            const int column = view_.columns[(size_t)s * BLOCK + r];
            if (column >= from && column < to) block[(size_t)(column - from) * BLOCK + r] += values[r];
        }
    }
}

std::unique_ptr<Core> make_grid(int N, int D, int bits, Buffer codes, Tables tables, const Isa& isa) {
    check_size(N, D);
    check_bits(bits);
    check_tables(N, D, tables, 0);
    GridView view{.N = N, .D = D, .bits = bits, .stride = packed_bytes(D, bits)};
    expect(codes.size() == N * view.stride, "its codes do not fit its size");
    return std::make_unique<Coded<GridView>>(view, std::move(codes), std::move(tables), isa, *isa.grid);
}

std::unique_ptr<Core> make_lut(int N, int D, int bits, int rows, Buffer codes, Tables tables, const Isa& isa) {
    check_size(N, D);
    check_bits(bits);
    expect(rows == 1 || rows == N, "a table for all rows or one for each");
    check_tables(N, D, tables, (size_t)rows << bits);
    LutView view{.N = N, .D = D, .bits = bits, .rows = rows, .stride = packed_bytes(D, bits)};
    expect(codes.size() == N * view.stride, "its codes do not fit its size");
    return std::make_unique<Coded<LutView>>(view, std::move(codes), std::move(tables), isa, *isa.lut);
}

std::unique_ptr<Core> make_additive(int N, int D, int books, int bits, int group, Buffer codes, Tables tables,
                                    const Isa& isa) {
    check_size(N, D);
    check_bits(bits);
    expect(group > 0 && D % group == 0, "the group divides the inputs");
    expect(books > 0 && books <= MOST_BOOKS && (size_t)D / group * books <= MOST_CODES, "it has no codes or too many");
    check_tables(N, D, tables, ((size_t)books << bits) * group);
    AdditiveView view{.N = N,
                      .D = D,
                      .books = books,
                      .bits = bits,
                      .group = group,
                      .stride = packed_bytes((size_t)D / group * books, bits)};
    expect(codes.size() == N * view.stride, "its codes do not fit its size");
    return std::make_unique<Coded<AdditiveView>>(view, std::move(codes), std::move(tables), isa, *isa.additive);
}

std::unique_ptr<Core> make_trellis(int N, int D, int step, int window, Buffer codes, Tables tables, const Isa& isa) {
    check_size(N, D);
    check_bits(window);
    expect(step >= 1 && step <= window, "a window holds its new bits");
    expect(N % 16 == 0 && D % 16 == 0, "tiles fill the weight");
    check_tables(N, D, tables, (size_t)1 << window);
    TrellisView view{.N = N,
                     .D = D,
                     .step = step,
                     .window = window,
                     .stride = packed_bytes((size_t)16 * D * step + window - step, 1)};
    expect(codes.size() == N / 16 * view.stride, "its codes do not fit its size");
    return std::make_unique<Coded<TrellisView>>(view, std::move(codes), std::move(tables), isa, *isa.trellis);
}

std::unique_ptr<Core> make_dense(int N, int D, Buffer halves, bool bfloat, const Isa& isa) {
    check_size(N, D);
    expect(halves.size() == (size_t)N * D * 2, "a dense weight has N x D numbers of two bytes");
    return std::make_unique<Dense>(N, D, std::move(halves), bfloat, isa);
}

}  // namespace panza
