#include "sample.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace panza {

double Random::uniform() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53;
}

namespace {

std::vector<float> penalised(const std::vector<float>& logits, const std::vector<int>& before, float penalty) {
    auto out = logits;
    for (int token : before) out[token] = logits[token] > 0 ? logits[token] / penalty : logits[token] * penalty;
    return out;
}

int most_likely(const std::vector<float>& logits) {
    int best = 0;
    for (int i = 1; i < (int)logits.size(); i++)
        if (logits[i] > logits[best] || std::isnan(logits[best])) best = i;
    return best;
}

}  // namespace

int sample(const std::vector<float>& given, const std::vector<int>& before, const Sampling& s, Random& random) {
    std::vector<float> changed;
    if (s.repetition_penalty != 1) changed = penalised(given, before, s.repetition_penalty);
    const auto& logits = changed.empty() ? given : changed;
    const int best = most_likely(logits);
    if (s.temperature <= 0) return best;
    double all = 0;
    std::vector<std::pair<float, int>> likely(logits.size());
    for (size_t i = 0; i < logits.size(); i++) {
        const float p = std::exp((logits[i] - logits[best]) / s.temperature);
        likely[i] = {std::isnan(p) ? 0 : p, (int)i};
        all += likely[i].first;
    }
    // Tokens below `least` together weigh less than 1 - top_p: the set never reaches them, and they need no sorting.
    const double least = std::max({(double)s.min_p, s.top_p < 1 ? (1 - (double)s.top_p) * all / logits.size() : 0, 1e-30});
    std::erase_if(likely, [&](const auto& t) { return t.first < least; });
    std::sort(likely.begin(), likely.end(), [](const auto& a, const auto& b) { return a.first > b.first || (a.first == b.first && a.second < b.second); });
    if (s.top_k > 0 && likely.size() > (size_t)s.top_k) likely.resize(s.top_k);
    double kept = 0;
    size_t count = 0;
    while (count < likely.size() && (count == 0 || kept < s.top_p * all)) kept += likely[count++].first;
    double at = random.uniform() * kept;
    for (size_t i = 0; i < count; i++)
        if ((at -= likely[i].first) < 0) return likely[i].second;
    return count ? likely[count - 1].second : best;
}

}  // namespace panza
