// The next token from logits.
#pragma once

#include <cstdint>
#include <vector>

namespace panza {

struct Sampling {
    float temperature = 0;  // 0: the most likely token
    int top_k = 0;          // of the most likely ones only; 0: all
    float top_p = 1;        // the smallest set of the most likely ones whose probability reaches top_p (Holtzman et al. 2020)
    float min_p = 0;        // at least this share of the most likely one's probability
    float repetition_penalty = 1;  // divides positive logits of tokens already there, multiplies negative ones (CTRL)
};

class Random {  // splitmix64
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    double uniform();  // in [0, 1)

private:
    uint64_t state_;
};

// logits: (vocab), left as they are. before: tokens that the penalty concerns. A token whose logit is not a number is never taken.
int sample(const std::vector<float>& logits, const std::vector<int>& before, const Sampling& sampling, Random& random);

}  // namespace panza
