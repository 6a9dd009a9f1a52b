// Every instruction set of this build against the definition, without Python: random weights of every kind on odd sizes,
// and a small model. For machines that are emulated or have no Python; tests/kernels/ compares with the Python one.
//
//     cmake -S kernels -B build/check -DPANZA_CHECK=ON && cmake --build build/check && ctest --test-dir build/check
//
// Prints the largest relative error of each weight; ends with 1 if one is too large. Names of sets: only those.
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>

#include "cpu/model.hpp"

using namespace panza;

namespace {

constexpr double EXACT = 1e-3, ROUNDED = 0.02;  // inputs and tables have 14 bits or more; or 8
constexpr int TOKENS[] = {1, 2, 3, 4, 5, 13, 29}, MOST = 29;

class Chance {
public:
    explicit Chance(uint64_t seed) : random_(seed) {}
    float number() { return (float)(4 * random_.uniform() - 2); }
    float positive() { return (float)(0.5 + random_.uniform()); }
    int below(int n) { return (int)(random_.uniform() * n); }
    std::vector<float> numbers(size_t n) { return made<float>(n, [&] { return number(); }); }
    std::vector<float> positives(size_t n) { return made<float>(n, [&] { return positive(); }); }
    Buffer bytes(size_t n) {
        const auto all = made<uint8_t>(n, [&] { return (uint8_t)below(256); });
        return Buffer(all.data(), n);
    }

private:
    template <class T, class F>
    static std::vector<T> made(size_t n, F next) {
        std::vector<T> all(n);
        for (auto& one : all) one = next();
        return all;
    }
    Random random_;
};

// A weight, made anew for each instruction set of the same numbers.
struct Case {
    std::string name;
    std::function<std::unique_ptr<Core>(const Isa&)> make;
    double outliers = 0;  // their share
};

size_t row_bytes(size_t codes, int bits) { return (codes * bits + 7) / 8; }

Case grid(int N, int D, int bits, int groups, int zeros) {
    return {"grid of " + std::to_string(bits) + " bits, groups of " + std::to_string(D / groups), [=](const Isa& isa) {
        Chance chance(bits + groups);
        Tables tables{.scale = chance.positives((size_t)N * groups), .scale_groups = groups};
        if (zeros) tables.zero = chance.positives((size_t)N * zeros), tables.zero_groups = zeros;
        return make_grid(N, D, bits, chance.bytes(N * row_bytes(D, bits)), std::move(tables), isa);
    }};
}

// Scales or zeros (N, groups), coded with 3 bits, a scale and a zero for `rows` rows.
TwoLevel two_level(int N, int groups, int rows, Chance& chance, std::vector<float>& values) {
    const size_t second = (size_t)((N + rows - 1) / rows) * groups;
    TwoLevel made{.scale = chance.positives(second), .zero = chance.positives(second), .rows = rows};
    for (auto* numbers : {&made.scale, &made.zero})
        for (float& x : *numbers) x = std::round(x * 64) / 64;  // as fp16 keeps them
    for (int n = 0; n < N; n++)
        for (int g = 0; g < groups; g++) {
            const size_t at = (size_t)(n / rows) * groups + g;
            made.codes.push_back((uint8_t)chance.below(8));
            values.push_back(made.scale[at] * ((float)made.codes.back() - made.zero[at]));
        }
    return made;
}

Case spqr(int N, int D, int bits, int groups, int rows, double outliers) {
    return {"spqr of " + std::to_string(bits) + " bits", [=](const Isa& isa) {
        Chance chance(rows);
        Tables tables{.scale_groups = groups, .zero_groups = groups};
        tables.scale_parts = two_level(N, groups, rows, chance, tables.scale);
        tables.zero_parts = two_level(N, groups, rows, chance, tables.zero);
        return make_grid(N, D, bits, chance.bytes(N * row_bytes(D, bits)), std::move(tables), isa);
    }, outliers};
}

Case lut(int N, int D, int bits, int rows, int groups) {
    return {"levels of " + std::to_string(bits) + " bits" + (rows == 1 ? "" : " of each row"), [=](const Isa& isa) {
        Chance chance(bits);
        Tables tables{.values = chance.numbers((size_t)rows << bits)};
        if (groups) tables.scale = chance.positives((size_t)N * groups), tables.scale_groups = groups;
        return make_lut(N, D, bits, rows, chance.bytes(N * row_bytes(D, bits)), std::move(tables), isa);
    }};
}

Case additive(int N, int D, int books, int bits, int group) {
    return {"additive " + std::to_string(books) + "x" + std::to_string(bits) + " g" + std::to_string(group), [=](const Isa& isa) {
        Chance chance(bits);
        Tables tables{.scale = chance.positives(N), .values = chance.numbers(((size_t)books << bits) * group), .scale_groups = 1};
        return make_additive(N, D, books, bits, group, chance.bytes(N * row_bytes((size_t)D / group * books, bits)), std::move(tables), isa);
    }};
}

Case trellis(int N, int D, int step, int window, int groups) {
    return {"trellis " + std::to_string(step) + " bits, window " + std::to_string(window), [=](const Isa& isa) {
        Chance chance(window);
        Tables tables{.values = chance.numbers((size_t)1 << window)};
        if (groups) tables.scale = chance.positives((size_t)N * groups), tables.scale_groups = groups;
        return make_trellis(N, D, step, window, chance.bytes(N / 16 * row_bytes((size_t)16 * D * step + window - step, 1)), std::move(tables), isa);
    }};
}

Case dense(int N, int D, bool bfloat) {
    return {bfloat ? "bf16" : "fp16", [=](const Isa& isa) {
        Chance chance(N);
        std::vector<uint16_t> bits((size_t)N * D);
        for (auto& x : bits) x = (uint16_t)(chance.below(2) << 15 | (bfloat ? 0x3f00 : 0x3800) | chance.below(128));
        return make_dense(N, D, Buffer(bits.data(), 2 * bits.size()), bfloat, isa);
    }};
}

std::vector<Case> cases() {
    std::vector<Case> all;
    for (int bits : {2, 3, 4, 8})
        for (int width : {16, 32, 128, 272}) all.push_back(grid(43, 816 / width * width, bits, 816 / width, bits % 3 ? 816 / width : 0));
    all.insert(all.end(), {grid(75, 339, 3, 1, 1), grid(75, 339, 5, 3, 0), grid(1, 1, 8, 1, 0), grid(91, 1200, 4, 25, 75), grid(91, 1200, 3, 25, 5)});
    all.insert(all.end(), {spqr(91, 1200, 3, 75, 16, 0.02), spqr(75, 1072, 3, 67, 32, 0.01), spqr(91, 1200, 3, 75, 8, 0.02), spqr(112, 1216, 2, 19, 16, 0)});
    for (int bits : {1, 2, 3, 4, 5}) all.insert(all.end(), {lut(91, 1200, bits, 91, 0), lut(75, 345, bits, 1, 15)});
    all.insert(all.end(), {additive(301, 400, 2, 8, 8), additive(75, 800, 1, 8, 4), additive(301, 400, 4, 4, 8), additive(75, 800, 3, 5, 4),
                           additive(75, 800, 1, 12, 8), additive(75, 96, 1, 16, 8), additive(75, 333, 2, 3, 9)});
    for (int step : {2, 3, 4})
        for (int window : {6, 7, 8}) all.push_back(trellis(176, 352, step, window, step - 2));
    all.insert(all.end(), {trellis(48, 48, 1, 4, 0), trellis(48, 48, 3, 12, 2), trellis(48, 48, 16, 16, 1)});
    all.insert(all.end(), {dense(75, 531, false), dense(75, 531, true)});
    return all;
}

// Of the token that is furthest off: ||y - exact|| / ||exact||. There may be more of the exact ones.
double error(const std::vector<float>& y, const std::vector<double>& exact, int tokens) {
    double worst = 0;
    const size_t N = y.size() / tokens;
    for (int t = 0; t < tokens; t++) {
        double wrong = 0, size = 0;
        for (size_t i = t * N; i < (t + 1) * N; i++) wrong += std::pow(y[i] - exact[i], 2), size += std::pow(exact[i], 2);
        const double here = std::sqrt(wrong / size);
        if (!(here <= worst)) worst = here;  // what is no number, too
    }
    return worst;
}

std::unique_ptr<Outliers> outliers_of(const Case& c, int N, int D, std::vector<float>& dense, const Isa& isa) {
    if (!c.outliers) return nullptr;
    Chance chance(N);
    std::vector<int32_t> starts = {0};
    std::vector<uint16_t> columns, values;
    for (int n = 0; n < N; n++) {
        for (int d = 0; d < D; d++) {
            if (chance.positive() - 0.5 >= c.outliers) continue;
            columns.push_back((uint16_t)d), values.push_back((uint16_t)(0x4000 | chance.below(1024)));  // 2 to 4
            float value;
            isa.numerics->from_half(&values.back(), &value, 1);
            dense[(size_t)n * D + d] += value;
        }
        starts.push_back((int32_t)columns.size());
    }
    return std::make_unique<Outliers>(D, starts, columns, values);
}

// (tokens, N) = x times the transpose.
std::vector<double> product(const std::vector<float>& x, const std::vector<float>& weight, int N, int D) {
    std::vector<double> made;
    for (size_t t = 0; t * D < x.size(); t++)
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int d = 0; d < D; d++) sum += (double)x[t * D + d] * weight[(size_t)n * D + d];
            made.push_back(sum);
        }
    return made;
}

struct Errors { double exact, rounded; };

// The largest errors of what `tested` decodes and multiplies, by the definition in `plain`: exact, and rounded to 8 bits.
Errors check(const Case& c, const Isa& tested, const Isa& plain, Pool& pool) {
    const auto core = c.make(tested), definition = c.make(plain);
    const int N = core->N(), D = core->D();
    std::vector<float> weight((size_t)N * D), decoded(weight.size());
    definition->decode(0, N, weight.data());
    core->decode(0, N, decoded.data());
    double worst[] = {0, 100 * error(decoded, {weight.begin(), weight.end()}, 1)};  // to 1e-5
    const auto outliers = outliers_of(c, N, D, weight, plain);
    const auto x = Chance(1).numbers((size_t)MOST * D);
    const auto expected = product(x, weight, N, D);
    for (bool exact : {false, true})
        for (int tokens : TOKENS) {
            std::vector<float> y((size_t)tokens * N);
            core->exact = exact;
            core->multiply(x.data(), tokens, y.data(), pool, outliers.get());
            const double here = error(y, expected, tokens);
            if (!(here <= worst[exact])) worst[exact] = here;
        }
    return {worst[true], worst[false]};
}

LinearPtr linear(int N, int D, const Isa& isa, uint64_t seed) {
    Chance chance(seed);
    Tables tables{.scale = chance.positives(N), .scale_groups = 1};
    for (float& s : tables.scale) s /= 128 * std::sqrt((float)D);
    auto made = std::make_shared<Linear>(N, D, make_grid(N, D, 8, chance.bytes((size_t)N * D), std::move(tables), isa), isa);
    if (D % 16 == 0) made->set_transform({16, chance.positives(D)}, {1, {}}, {});
    return made;
}

// The logits of all tokens of a text.
std::vector<float> logits(const Isa& isa, int cache_bits) {
    Shape shape{.vocab = 91, .hidden = 48, .layers = 2, .heads = 6, .kv_heads = 2, .head_dim = 8, .ffn = 80, .context = 300, .window = 70, .eps = 1e-5f,
                .frequencies = {1, 0.3f, 0.1f}, .rotary_scale = 1};
    Chance chance(1);
    std::vector<Layer> layers;
    for (int i = 0; i < shape.layers; i++)
        layers.push_back({{linear(80, 48, isa, i)}, linear(48, 48, isa, i + 10), {linear(160, 48, isa, i + 20)}, linear(48, 80, isa, i + 30),
                          chance.positives(48), chance.positives(48), chance.positives(8), chance.positives(8)});
    const auto model = std::make_shared<Model>(shape, linear(91, 48, isa, 40), linear(91, 48, isa, 50), chance.positives(48), std::move(layers), isa);
    Session session(model, std::make_shared<Pool>(2), cache_bits);
    std::vector<int> tokens(290);
    for (int& token : tokens) token = chance.below(shape.vocab);
    return session.all_logits(tokens);
}

}  // namespace

int main(int count, char** arguments) {
    std::vector<std::string> all, wanted(arguments + 1, arguments + count);
    for (auto name = isas(); *name; name++) all.emplace_back(*name);
    for (const auto& name : wanted)
        if (!isa(name.c_str())) {
            std::printf("there is no '%s': this computer runs", name.c_str());
            for (const auto& one : all) std::printf("%s %s", &one == &all[0] ? "" : ",", one.c_str());
            std::printf("\n");
            return 1;
        }
    const Isa& plain = *isa("plain");
    Pool pool(2);
    int failed = 0;
    const auto report = [&](const std::string& set, const std::string& what, double error, double most) {
        const bool good = error <= most;
        std::printf("%-7s %-44s %.0e%s\n", set.c_str(), what.c_str(), error, good ? "" : "  TOO LARGE");
        failed += !good;
    };
    for (const auto& name : wanted.empty() ? all : wanted) {
        const Isa& tested = *isa(name.c_str());
        for (const auto& c : cases()) {
            const auto [exact, rounded] = check(c, tested, plain, pool);
            report(name, c.name, exact, EXACT);
            report(name, c.name + ", 8 bits", rounded, ROUNDED);
        }
        for (int bits : {32, 16, 8}) {
            const auto expected = logits(plain, bits), got = logits(tested, bits);
            report(name, "a model, cache of " + std::to_string(bits) + " bits", error(got, {expected.begin(), expected.end()}, 290), bits == 8 ? 0.05 : 0.01);
        }
    }
    std::printf("%d are wrong\n", failed);
    return failed ? 1 : 0;
}
