// A whole compressed weight: y = D_out H_out C H_in D_in P x + sparse x + B A x + bias, with C the coded core.
#pragma once

#include "core.hpp"

namespace panza {

struct Side {              // of a transform: signs, then (inputs) or before (outputs) a block Hadamard
    int block = 1;
    std::vector<float> signs;  // empty: none
};

struct LowRank {           // B (N, rank) A (rank, D), added with `scale`; a Linear keeps B as (rank, N)
    int rank;
    float scale;
    std::vector<float> A, B;
};

class Linear {
public:
    // outputs, inputs: the true size; the core's may be padded. Throws std::invalid_argument for parts that do not fit.
    Linear(int outputs, int inputs, std::unique_ptr<Core> core, const Isa& isa);
    void set_transform(Side in, Side out, std::vector<int32_t> order);  // order: empty, or a permutation of the padded inputs
    void set_outliers(std::unique_ptr<Outliers> outliers);  // of the true size
    void set_bias(std::vector<float> bias);
    void add_low_rank(LowRank part);

    int outputs() const { return N_; }
    int inputs() const { return D_; }
    size_t bytes() const;
    const Core& core() const { return *core_; }

    // y (tokens, outputs) from x (tokens, inputs).
    void multiply(const float* x, int tokens, float* y, Pool& pool) const;
    // Row `row` of the weight, without the bias, as an embedding reads it: transforms on the inputs' side only.
    void row(int row, float* out) const;
    bool has_rows() const { return out_.block == 1 && out_.signs.empty(); }

private:
    void low_rank(const float* x, float* y) const;  // y += the low-rank parts times x, of one token
    bool plain() const;  // the core's inputs and outputs are the weight's, but for padding

    int N_, D_;
    std::unique_ptr<Core> core_;
    const Isa& isa_;
    Side in_, out_;
    std::vector<int32_t> order_;
    std::unique_ptr<Outliers> outliers_;
    std::vector<LowRank> low_rank_;
    std::vector<float> bias_;
};

}  // namespace panza
