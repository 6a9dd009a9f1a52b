#include "model.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <string>

namespace panza {

namespace {

void expect(bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument(what);
}

constexpr int MOST_WIDTH = 1 << 22, MOST_CONTEXT = 1 << 30;  // a chunk's numbers, and a cache's positions, are counted in 32 bits

int64_t outputs(const std::vector<LinearPtr>& parts) {
    int64_t sum = 0;
    for (const auto& part : parts) sum += part->outputs();
    return sum;
}

bool read_from(const std::vector<LinearPtr>& parts, int64_t inputs) {
    return !parts.empty() && std::all_of(parts.begin(), parts.end(), [&](const LinearPtr& p) { return p && p->inputs() == inputs; });
}

}  // namespace

Model::Model(Shape shape, LinearPtr embedding, LinearPtr head, std::vector<float> norm, std::vector<Layer> layers, const Isa& isa)
    : shape_(std::move(shape)), embedding_(std::move(embedding)), head_(std::move(head)), norm_(std::move(norm)), layers_(std::move(layers)), isa_(isa) {
    const auto& s = shape_;
    expect(s.vocab > 0 && s.hidden > 0 && s.heads > 0 && s.kv_heads > 0 && s.head_dim > 0 && s.ffn > 0 && s.context > 0 && s.window >= 0, "sizes are positive");
    const int64_t queries = (int64_t)s.heads * s.head_dim, all = queries + 2 * (int64_t)s.kv_heads * s.head_dim;
    expect(std::max({(int64_t)s.hidden, 2 * (int64_t)s.ffn, all}) <= MOST_WIDTH && s.context <= MOST_CONTEXT, "its sizes are those of no model");
    expect(s.heads % s.kv_heads == 0, "key heads divide the query heads");
    expect(s.frequencies.size() * 2 <= (size_t)s.head_dim, "a head rotates at most its size");
    expect(embedding_ && embedding_->outputs() == s.vocab && embedding_->inputs() == s.hidden && embedding_->has_rows(), "the embedding does not fit");
    expect(head_ && head_->outputs() == s.vocab && head_->inputs() == s.hidden, "the head does not fit");
    expect(norm_.size() == (size_t)s.hidden && layers_.size() == (size_t)s.layers, "the model's layers do not fit its shape");
    for (int i = 0; i < s.layers; i++) {
        const auto& layer = layers_[i];
        const bool fits = read_from(layer.qkv, s.hidden) && outputs(layer.qkv) == all &&
                          read_from({layer.out}, queries) && layer.out->outputs() == s.hidden &&
                          read_from(layer.gate_up, s.hidden) && outputs(layer.gate_up) == 2 * s.ffn &&
                          read_from({layer.down}, s.ffn) && layer.down->outputs() == s.hidden &&
                          layer.attention_norm.size() == (size_t)s.hidden && layer.ffn_norm.size() == (size_t)s.hidden &&
                          (layer.q_norm.empty() || layer.q_norm.size() == (size_t)s.head_dim) && layer.q_norm.size() == layer.k_norm.size();
        expect(fits, "the parts of layer " + std::to_string(i) + " do not fit the model");
    }
}

size_t Model::bytes() const {
    size_t sum = head_->bytes();
    for (const auto& layer : layers_) {
        for (const auto* parts : {&layer.qkv, &layer.gate_up})
            for (const auto& part : *parts) sum += part->bytes();
        sum += layer.out->bytes() + layer.down->bytes();
    }
    return sum;
}

Session::Session(std::shared_ptr<const Model> model, std::shared_ptr<Pool> pool, int cache_bits)
    : model_(std::move(model)), pool_(std::move(pool)), bits_(cache_bits) {
    expect(bits_ == 32 || bits_ == 16 || bits_ == 8, "the cache keeps numbers of 32, 16 or 8 bits, not " + std::to_string(bits_));
    const auto& s = model_->shape();
    room_ = (s.context + TILE - 1) / TILE * TILE;
    keys_ = Buffer((size_t)s.layers * s.kv_heads * head_bytes());
    values_ = Buffer(keys_.size());
    if (bits_ == 8) steps_.resize((size_t)2 * s.layers * s.kv_heads * room_);
}

void Session::check(const std::vector<int>& tokens) const {
    const auto& s = model_->shape();
    for (int token : tokens)
        expect(token >= 0 && token < s.vocab, "token " + std::to_string(token) + " is outside of the vocabulary of " + std::to_string(s.vocab));
    if (tokens_.size() + tokens.size() > (size_t)s.context)
        throw std::length_error(std::to_string(tokens_.size() + tokens.size()) + " tokens do not fit the context of " + std::to_string(s.context));
}

void Session::read(const std::vector<int>& tokens, const std::function<bool()>& stopped) {
    std::lock_guard lock(busy_);
    check(tokens);
    logits_.clear();
    for (size_t at = 0; at < tokens.size();) {
        if (stopped && stopped()) return;
        const int left = (int)(tokens.size() - at);
        const int count = left > CHUNK && left < CHUNK + ALIKE ? CHUNK - ALIKE : std::min(CHUNK, left);
        const bool last = count == left;
        if (last) logits_.resize(model_->shape().vocab);
        pass(tokens.data() + at, count, last ? logits_.data() : nullptr, false);
        at += count;
    }
}

int Session::prompt(const std::vector<int>& tokens, const std::function<bool()>& stopped) {
    std::lock_guard lock(busy_);
    expect(!tokens.empty(), "a prompt has at least one token");
    size_t common = 0;
    while (common < std::min(tokens_.size(), tokens.size()) && tokens_[common] == tokens[common]) common++;
    common = std::min({common, (size_t)alike_, tokens.size() - std::min<size_t>(tokens.size(), ALIKE)});
    const auto before = tokens_;
    const int alike_before = alike_;
    const std::vector<int> rest(tokens.begin() + common, tokens.end());
    truncate((int)common);
    try {
        check(rest);
    } catch (...) {
        tokens_ = before, alike_ = alike_before;  // the cache still holds them: nothing was read
        throw;
    }
    read(rest, stopped);
    return (int)rest.size();
}

std::vector<float> Session::all_logits(const std::vector<int>& tokens) {
    std::lock_guard lock(busy_);
    check(tokens);
    const size_t vocab = model_->shape().vocab;
    std::vector<float> made(tokens.size() * vocab);
    for (size_t at = 0; at < tokens.size(); at += CHUNK)
        pass(tokens.data() + at, (int)std::min<size_t>(CHUNK, tokens.size() - at), made.data() + at * vocab, true);
    if (!tokens.empty()) logits_.assign(made.end() - vocab, made.end());
    return made;
}

void Session::truncate(int length) {
    std::lock_guard lock(busy_);
    if (length < 0 || (size_t)length >= tokens_.size()) return;
    tokens_.resize(length);
    alike_ = std::min(alike_, length);
    logits_.clear();
}

std::vector<int> Session::tokens() const {
    std::lock_guard lock(busy_);
    return tokens_;
}

std::vector<float> Session::logits() const {
    std::lock_guard lock(busy_);
    return logits_;
}

void Session::seed(uint64_t seed) {
    std::lock_guard lock(busy_);
    random_ = Random(seed);
}

int Session::sample(const Sampling& sampling) {
    std::lock_guard lock(busy_);
    if (logits_.empty()) throw std::logic_error("there is nothing to continue: read a prompt first");
    return panza::sample(logits_, tokens_, sampling, random_);
}

std::vector<int> Session::follow(const std::vector<int>& tokens, const Sampling& sampling) {
    std::lock_guard lock(busy_);
    expect(!tokens.empty(), "there is nothing to follow");
    const size_t vocab = model_->shape().vocab;
    const auto logits = all_logits(tokens);
    tokens_.resize(tokens_.size() - tokens.size());
    std::vector<int> sampled;
    for (size_t i = 0; i < tokens.size() && (i == 0 || sampled.back() == tokens[i]); i++) {
        tokens_.push_back(tokens[i]);
        logits_.assign(logits.begin() + i * vocab, logits.begin() + (i + 1) * vocab);
        sampled.push_back(sample(sampling));
    }
    return sampled;
}

// The outputs of several weights, one after the other, for each token.
static void products(const std::vector<LinearPtr>& parts, const float* x, int tokens, std::vector<float>& y, std::vector<float>& piece, Pool& pool) {
    const int total = (int)outputs(parts);
    y.resize((size_t)tokens * total);
    if (tokens == 1 || parts.size() == 1) {
        float* to = y.data();
        for (const auto& part : parts) part->multiply(x, tokens, to, pool), to += part->outputs();
        return;
    }
    int at = 0;
    for (const auto& part : parts) {
        const int n = part->outputs();
        piece.resize((size_t)tokens * n);
        part->multiply(x, tokens, piece.data(), pool);
        for (int t = 0; t < tokens; t++) std::copy_n(piece.data() + (size_t)t * n, n, y.data() + (size_t)t * total + at);
        at += n;
    }
}

// `forward`, on as many threads as pay: the products of few tokens are so short that waiting for a thread may cost more.
void Session::pass(const int* tokens, int count, float* logits, bool all) {
    struct Alone {
        Pool& pool;
        ~Alone() { pool.alone = false; }  // whatever forward throws
    } guard{*pool_};
    pool_->alone = count <= FEW && company_.alone();
    const auto begun = std::chrono::steady_clock::now();
    forward(tokens, count, logits, all);
    if (count == 1) company_.took(std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
}

// Runs `count` tokens through all layers. logits: of the last (all: of each), or null.
void Session::forward(const int* tokens, int count, float* logits, bool all) {
    const auto& s = model_->shape();
    const auto& isa = model_->isa();
    const int start = (int)tokens_.size(), rotated = (int)s.frequencies.size(), q_size = s.heads * s.head_dim;
    if (start + count > s.context) throw std::length_error("the context of " + std::to_string(s.context) + " is full");  // `stopped` may have read, too
    x_.resize((size_t)count * s.hidden), h_.resize((size_t)count * std::max(s.hidden, q_size));
    cosines_.resize((size_t)count * rotated), sines_.resize((size_t)count * rotated);
    for (int t = 0; t < count; t++) {
        model_->embedding().row(tokens[t], x_.data() + (size_t)t * s.hidden);
        for (int i = 0; i < rotated; i++) {
            const double angle = (double)(start + t) * s.frequencies[i];
            cosines_[(size_t)t * rotated + i] = (float)std::cos(angle) * s.rotary_scale;
            sines_[(size_t)t * rotated + i] = (float)std::sin(angle) * s.rotary_scale;
        }
    }
    const auto norm = [&](const std::vector<float>& weight, int first, int n) {
        each(n, *pool_, [&](int t) {
            isa.steps->rms_norm(x_.data() + (size_t)(first + t) * s.hidden, weight.data(), s.eps, h_.data() + (size_t)t * s.hidden, s.hidden);
        });
    };
    const auto add = [&](const Linear& weight, const float* from, int lda) {
        piece_.resize((size_t)count * s.hidden);
        if (lda != weight.inputs())
            for (int t = 1; t < count; t++) std::copy_n(from + (size_t)t * lda, weight.inputs(), const_cast<float*>(from) + (size_t)t * weight.inputs());
        weight.multiply(from, count, piece_.data(), *pool_);
        isa.numerics->add_scaled(x_.data(), piece_.data(), 1, count * s.hidden);
    };
    for (int i = 0; i < s.layers; i++) {
        const auto& layer = model_->layers()[i];
        norm(layer.attention_norm, 0, count);
        products(layer.qkv, h_.data(), count, qkv_, piece_, *pool_);
        remember(i, start, count);
        attend(i, start, count);
        add(*layer.out, mixed_.data(), q_size);
        norm(layer.ffn_norm, 0, count);
        products(layer.gate_up, h_.data(), count, gate_up_, piece_, *pool_);
        each(count, *pool_, [&](int t) {
            float* gate = gate_up_.data() + (size_t)t * 2 * s.ffn;
            isa.steps->swiglu(gate, gate + s.ffn, s.ffn);
        });
        add(*layer.down, gate_up_.data(), 2 * s.ffn);
    }
    tokens_.insert(tokens_.end(), tokens, tokens + count);
    if (count >= ALIKE && alike_ == start) alike_ += count;
    if (!logits) return;
    const int first = all ? 0 : count - 1;
    norm(model_->norm(), first, count - first);
    model_->head().multiply(h_.data(), count - first, logits, *pool_);
}

// Norms and rotates queries and keys in qkv_, and writes keys and values into the cache.
void Session::remember(int layer, int start, int count) {
    const auto& s = model_->shape();
    const auto& steps = *model_->isa().steps;
    const auto& parts = model_->layers()[layer];
    const int d = s.head_dim, row = (s.heads + 2 * s.kv_heads) * d, rotated = (int)s.frequencies.size();
    each(count, *pool_, [&](int t) {
        float* token = qkv_.data() + (size_t)t * row;
        for (int h = 0; h < s.heads + s.kv_heads; h++) {
            float* x = token + h * d;
            const auto& weight = h < s.heads ? parts.q_norm : parts.k_norm;
            if (!weight.empty()) steps.rms_norm(x, weight.data(), s.eps, x, d);
            steps.rotate(x, cosines_.data() + (size_t)t * rotated, sines_.data() + (size_t)t * rotated, rotated);
        }
        const int at = start + t, tile = at / TILE, within = at % TILE;
        for (int h = 0; h < s.kv_heads; h++) {
            const float *key = token + (s.heads + h) * d, *value = key + s.kv_heads * d;
            const size_t head = ((size_t)layer * s.kv_heads + h) * room_ * d + (size_t)tile * TILE * d;
            if (bits_ == 8) {
                keys_step(layer, h)[at] = steps.to_int8(key, keys_.as<int8_t>() + head + within, d, TILE);
                values_step(layer, h)[at] = steps.to_int8(value, values_.as<int8_t>() + head + (size_t)within * d, d, 1);
            } else if (bits_ == 16) {
                steps.to_half(key, keys_.as<uint16_t>() + head + within, d, TILE);
                steps.to_half(value, values_.as<uint16_t>() + head + (size_t)within * d, d, 1);
            } else {
                for (int i = 0; i < d; i++) keys_.as<float>()[head + within + (size_t)i * TILE] = key[i];
                std::copy_n(value, d, values_.as<float>() + head + (size_t)within * d);
            }
        }
    });
}

void Session::attend(int layer, int start, int count) {
    const auto& s = model_->shape();
    mixed_.assign((size_t)count * s.heads * s.head_dim, 0);
    constexpr int TOGETHER = 16;  // tokens
    const int blocks = (count + TOGETHER - 1) / TOGETHER;
    pool_->run(s.kv_heads * blocks, [&](int part) {
        const int first = part / s.kv_heads * TOGETHER;
        attend_head(layer, part % s.kv_heads, start, first, std::min(count, first + TOGETHER));
    });
}

// Numbers of the cache as floats; 8-bit ones without their steps.
void Session::unpack(const Buffer& from, size_t place, float* to, size_t count) const {
    if (bits_ == 8) model_->isa().steps->from_int8(from.as<int8_t>() + place, to, count);
    else model_->isa().numerics->from_half(from.as<uint16_t>() + place, to, count);
}

// Attention of the tokens [first, last) for the queries that share one key head: softmax tile by tile (online), into mixed_.
void Session::attend_head(int layer, int head, int start, int first, int last) {
    const auto& s = model_->shape();
    const auto& steps = *model_->isa().steps;
    const int d = s.head_dim, share = s.heads / s.kv_heads, rows = (last - first) * share, row = (s.heads + 2 * s.kv_heads) * d;
    static thread_local Buffer memory;
    memory.grow(sizeof(float) * ((size_t)rows * (2 * d + TILE + 2) + 2 * (size_t)TILE * d));
    float *q = memory.as<float>(), *out = q + (size_t)rows * d, *scores = out + (size_t)rows * d, *some_keys = scores + (size_t)rows * TILE,
          *some_values = some_keys + (size_t)TILE * d, *most = some_values + (size_t)TILE * d, *sum = most + rows;
    const float scale = 1 / std::sqrt((float)d);
    const bool halves = bits_ == 16 && steps.mix_halves && rows <= 8;  // as they lie, where they are read about once
    for (int r = 0; r < rows; r++) {
        const float* from = qkv_.data() + (size_t)(first + r / share) * row + (size_t)(head * share + r % share) * d;
        for (int i = 0; i < d; i++) q[(size_t)r * d + i] = from[i] * scale, out[(size_t)r * d + i] = 0;
        most[r] = -INFINITY, sum[r] = 0;
    }
    const int end = start + last, begin = s.window ? std::max(0, start + first - s.window + 1) / TILE * TILE : 0;
    for (int at = begin; at < end; at += TILE) {
        const size_t place = ((size_t)layer * s.kv_heads + head) * room_ * d + (size_t)at * d;
        const float *keys = keys_.as<float>() + place, *values = values_.as<float>() + place;
        if (bits_ < 32 && !halves) {
            unpack(keys_, place, some_keys, (size_t)TILE * d);
            unpack(values_, place, some_values, (size_t)TILE * d);
            keys = some_keys, values = some_values;
        }
        std::fill(scores, scores + (size_t)rows * TILE, 0.f);
        if (halves) steps.mix_halves(q, d, keys_.as<uint16_t>() + place, TILE, scores, TILE, rows, TILE, d);
        else steps.mix(q, d, keys, TILE, scores, TILE, rows, TILE, d);
        for (int r = 0; r < rows; r++) {
            const int now = start + first + r / share;  // sees positions [now - window + 1, now]
            const int low = s.window ? std::max(0, now - s.window + 1 - at) : 0, high = std::min(TILE, now + 1 - at);
            float* line = scores + (size_t)r * TILE;
            if (low >= high) {
                std::fill(line, line + TILE, 0.f);
                continue;
            }
            if (bits_ == 8)
                for (int j = low; j < high; j++) line[j] *= keys_step(layer, head)[at + j];
            const float top = std::max(most[r], steps.most(line + low, high - low));
            const float fade = std::exp(most[r] - top);  // 0 for the first tile
            sum[r] = sum[r] * fade + steps.exp_sum(line + low, high - low, top);
            most[r] = top;
            std::fill(line, line + low, 0.f);
            std::fill(line + high, line + TILE, 0.f);
            if (bits_ == 8)
                for (int j = low; j < high; j++) line[j] *= values_step(layer, head)[at + j];
            if (fade != 1)
                for (int i = 0; i < d; i++) out[(size_t)r * d + i] *= fade;
        }
        if (halves) steps.mix_halves(scores, TILE, values_.as<uint16_t>() + place, d, out, d, rows, d, TILE);
        else steps.mix(scores, TILE, values, d, out, d, rows, d, TILE);
    }
    for (int r = 0; r < rows; r++) {
        float* to = mixed_.data() + (size_t)(first + r / share) * s.heads * d + (size_t)(head * share + r % share) * d;
        for (int i = 0; i < d; i++) to[i] = out[(size_t)r * d + i] / sum[r];
    }
}

}  // namespace panza
