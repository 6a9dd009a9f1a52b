#include "linear.hpp"

#include <algorithm>
#include <stdexcept>

namespace panza {

namespace {

void expect(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

bool fits(const Side& side, int n) {
    return side.block >= 1 && (side.block & (side.block - 1)) == 0 && n % side.block == 0 &&
           (side.signs.empty() || side.signs.size() == (size_t)n);
}

// to = from with the signs of a side; they may be the same.
void flip(const Side& side, const float* from, float* to, int n) {
    if (!side.signs.empty())
        for (int i = 0; i < n; i++) to[i] = from[i] * side.signs[i];
    else if (to != from)
        std::copy(from, from + n, to);
}

}  // namespace

Linear::Linear(int outputs, int inputs, std::unique_ptr<Core> core, const Isa& isa)
    : N_(outputs), D_(inputs), core_(std::move(core)), isa_(isa) {
    expect(N_ > 0 && D_ > 0 && core_->N() >= N_ && core_->D() >= D_, "codes cover the weight");
}

void Linear::set_transform(Side in, Side out, std::vector<int32_t> order) {
    const int D = core_->D();
    expect(fits(in, D) && fits(out, core_->N()), "a block divides its side");
    expect(order.empty() || order.size() == (size_t)D, "an order has one place for each input");
    std::vector<bool> seen(order.size());
    for (int32_t i : order) {
        expect(i >= 0 && i < D && !seen[i], "its order of inputs is no permutation");
        seen[i] = true;
    }
    in_ = std::move(in), out_ = std::move(out), order_ = std::move(order);
}

void Linear::set_outliers(std::unique_ptr<Outliers> outliers) {
    expect(outliers->view().N == N_, "its rows do not count its outliers");
    outliers_ = std::move(outliers);
}

bool Linear::plain() const {
    return order_.empty() && in_.block == 1 && in_.signs.empty() && out_.block == 1 && out_.signs.empty();
}

void Linear::set_bias(std::vector<float> bias) {
    expect(bias.size() == (size_t)N_, "a bias has one number for each output");
    bias_ = std::move(bias);
}

void Linear::add_low_rank(LowRank part) {
    expect(part.rank > 0 && part.A.size() == (size_t)part.rank * D_ && part.B.size() == (size_t)part.rank * N_,
           "a low-rank part has A (rank, inputs) and B (outputs, rank)");
    std::vector<float> columns(part.B.size());  // a product adds a column of B to all outputs at once
    for (int n = 0; n < N_; n++)
        for (int r = 0; r < part.rank; r++) columns[(size_t)r * N_ + n] = part.B[(size_t)n * part.rank + r];
    part.B = std::move(columns);
    low_rank_.push_back(std::move(part));
}

size_t Linear::bytes() const {
    size_t sum = core_->bytes() + 4 * bias_.size();
    if (outliers_) sum += outliers_->bytes();
    for (const auto& part : low_rank_) sum += 4 * (part.A.size() + part.B.size());
    return sum;
}

void Linear::multiply(const float* x, int tokens, float* y, Pool& pool) const {
    static thread_local Buffer inputs, outputs;
    const int N = core_->N(), D = core_->D();
    const float* into = x;
    if (D != D_ || !order_.empty() || in_.block > 1 || !in_.signs.empty()) {
        inputs.grow((size_t)tokens * D * sizeof(float));
        float* all = inputs.as<float>();
        into = all;
        each(tokens, pool, [&](int t) {
            const float* from = x + (size_t)t * D_;
            float* p = all + (size_t)t * D;
            if (order_.empty()) {
                flip(in_, from, p, D_);
                std::fill(p + D_, p + D, 0.f);
            } else {
                for (int d = 0; d < D; d++) p[d] = order_[d] < D_ ? from[order_[d]] : 0.f;
                flip(in_, p, p, D);
            }
            isa_.numerics->hadamard(p, D, in_.block);
        });
    }
    float* out = y;
    if (N != N_) {
        outputs.grow((size_t)tokens * N * sizeof(float));
        out = outputs.as<float>();
    }
    core_->multiply(into, tokens, out, pool, plain() ? outliers_.get() : nullptr);
    if (N != N_ || out_.block > 1 || !out_.signs.empty() || !low_rank_.empty() || !bias_.empty())
        each(tokens, pool, [&](int t) {
            float *made = out + (size_t)t * N, *to = y + (size_t)t * N_;
            isa_.numerics->hadamard(made, N, out_.block);
            flip(out_, made, to, N_);
            low_rank(x + (size_t)t * D_, to);
            for (size_t n = 0; n < bias_.size(); n++) to[n] += bias_[n];
        });
    if (outliers_ && !plain())
        share((N_ + 15) / 16, pool, [&](int first, int last) {
            isa_.numerics->add_outliers(outliers_->view(), x, D_, tokens, 16 * first, std::min(N_, 16 * last), y, N_);
        });
}

void Linear::low_rank(const float* x, float* y) const {
    for (const auto& part : low_rank_)
        for (int r = 0; r < part.rank; r++) {
            const float middle = part.scale * isa_.numerics->dot(part.A.data() + (size_t)r * D_, x, D_);
            isa_.numerics->add_scaled(y, part.B.data() + (size_t)r * N_, middle, N_);
        }
}

void Linear::row(int row, float* out) const {
    static thread_local Buffer padded;
    const int D = core_->D();
    padded.grow((size_t)D * sizeof(float));
    float* p = padded.as<float>();
    core_->decode(row, row + 1, p);
    isa_.numerics->hadamard(p, D, in_.block);
    flip(in_, p, p, D);
    if (order_.empty()) std::copy(p, p + D_, out);
    else
        for (int d = 0; d < D; d++)
            if (order_[d] < D_) out[order_[d]] = p[d];
    if (outliers_) {
        const OutlierView& o = outliers_->view();
        for (int32_t s = o.starts[row / 16]; s < o.starts[row / 16 + 1]; s++) {
            const size_t at = (size_t)s * 16 + row % 16;
            float value;
            isa_.numerics->from_half(o.values + at, &value, 1);
            out[o.columns[at]] += value;
        }
    }
    for (const auto& part : low_rank_)
        for (int r = 0; r < part.rank; r++)
            isa_.numerics->add_scaled(out, part.A.data() + (size_t)r * D_,
                                      part.scale * part.B[(size_t)r * N_ + row], D_);
}

}  // namespace panza
