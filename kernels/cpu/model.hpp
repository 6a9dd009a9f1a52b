// A Llama-type decoder over compressed weights: one call reads tokens into the cache and leaves the next one's logits.
//
// Covers Llama, Mistral, Qwen 2 and 3, Phi-3: RMSNorm, rotary positions, grouped-query attention (biases, norms of queries
// and keys, a sliding window), SwiGLU. Activations are fp32; keys and values 32, 16 or 8 bits.
#pragma once

#include <mutex>

#include "linear.hpp"
#include "sample.hpp"

namespace panza {

using LinearPtr = std::shared_ptr<Linear>;

struct Shape {
    int vocab, hidden, layers, heads, kv_heads, head_dim, ffn;
    int context;  // tokens that the cache may hold
    int window;   // tokens back that attention sees, itself included; 0: all
    float eps;
    std::vector<float> frequencies;  // radians a position, of each rotated pair; fewer than head_dim / 2 rotate a part
    float rotary_scale;              // of cosines and sines (YaRN)
};

struct Layer {
    std::vector<LinearPtr> qkv;      // whose outputs, one after the other, are queries, keys, values
    LinearPtr out;
    std::vector<LinearPtr> gate_up;  // likewise gate and up
    LinearPtr down;
    std::vector<float> attention_norm, ffn_norm, q_norm, k_norm;  // the last two may be empty
};

class Model {
public:
    // Throws std::invalid_argument for parts that do not fit together.
    Model(Shape shape, LinearPtr embedding, LinearPtr head, std::vector<float> norm, std::vector<Layer> layers, const Isa& isa);
    const Shape& shape() const { return shape_; }
    const std::vector<Layer>& layers() const { return layers_; }
    const Linear& embedding() const { return *embedding_; }
    const Linear& head() const { return *head_; }
    const std::vector<float>& norm() const { return norm_; }
    const Isa& isa() const { return isa_; }
    size_t bytes() const;  // that one token reads of weights

private:
    Shape shape_;
    LinearPtr embedding_, head_;
    std::vector<float> norm_;
    std::vector<Layer> layers_;
    const Isa& isa_;
};

// One conversation with a model: its cache, its tokens so far, the logits after the last. Calls from several threads wait.
class Session {
public:
    // cache_bits: of a key's or value's number: 32, 16 (fp16) or 8 (with a step for each vector).
    Session(std::shared_ptr<const Model> model, std::shared_ptr<Pool> pool, int cache_bits);

    // Read tokens behind those in the cache. Throws std::invalid_argument for ids outside of the vocabulary and
    // std::length_error for more tokens than the cache holds; nothing has changed then. `stopped` is asked between
    // pieces of CHUNK tokens; true leaves the session with what was read.
    void read(const std::vector<int>& tokens, const std::function<bool()>& stopped = {});
    // Make the tokens in the cache a prefix of `tokens`, then read the rest: all but what is common with before.
    // Returns how many had to be read. What was before leaves no trace in the logits: the last ALIKE are always read, and all
    // behind the first that was read among fewer (a draft's), since products of few tokens are rounded otherwise.
    int prompt(const std::vector<int>& tokens, const std::function<bool()>& stopped = {});
    // The logits of every one of `tokens`, read behind the cache: (tokens, vocab).
    std::vector<float> all_logits(const std::vector<int>& tokens);
    void truncate(int length);  // forget all tokens from `length` on

    int sample(const Sampling& sampling);  // from the logits after the last token; std::logic_error if there are none
    // Read `tokens`, of which all but the first are guesses at what `sample` will say, in one pass. Returns what it says after
    // each, up to the first that is not the next guess; that one and the guesses from there on are not in the cache. The same
    // tokens, of the same chance, as from sample and read in turns.
    std::vector<int> follow(const std::vector<int>& tokens, const Sampling& sampling);
    void seed(uint64_t seed);

    std::vector<int> tokens() const;
    std::vector<float> logits() const;
    size_t cache_bytes() const { return keys_.size() + values_.size() + steps_.size() * sizeof(float); }

    static constexpr int CHUNK = 256;  // tokens that go through the layers together
    static constexpr int ALIKE = 8;    // tokens of a piece from which a token's numbers do not depend on how many they are
    static constexpr int TILE = 64;    // positions of the cache that attention takes together

private:
    void check(const std::vector<int>& tokens) const;
    void pass(const int* tokens, int count, float* logits, bool all);
    void forward(const int* tokens, int count, float* logits, bool all);
    void attend(int layer, int start, int count);
    void attend_head(int layer, int head, int start, int first, int last);
    void unpack(const Buffer& from, size_t place, float* to, size_t count) const;
    void remember(int layer, int start, int count);
    float* keys_step(int layer, int head) { return steps_.data() + ((size_t)(2 * layer) * model_->shape().kv_heads + head) * room_; }
    float* values_step(int layer, int head) { return steps_.data() + ((size_t)(2 * layer + 1) * model_->shape().kv_heads + head) * room_; }
    size_t head_bytes() const { return (size_t)room_ * model_->shape().head_dim * (bits_ / 8); }

    std::shared_ptr<const Model> model_;
    std::shared_ptr<Pool> pool_;
    int bits_;
    int room_;                  // positions, whole tiles
    Buffer keys_, values_;      // [layer][kv head][tile]: keys (head_dim, TILE), values (TILE, head_dim)
    std::vector<float> steps_;  // of 8-bit keys and values: [layer][keys, values][kv head][position]
    std::vector<int> tokens_;
    int alike_ = 0;             // of these, from the first on: read in pieces of ALIKE or more
    std::vector<float> logits_;
    Random random_{0};
    Company company_;  // of passes over one token
    mutable std::recursive_mutex busy_;
    std::vector<float> x_, h_, qkv_, mixed_, gate_up_, piece_, cosines_, sines_;
};

}  // namespace panza
