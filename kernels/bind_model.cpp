// The decoder in Python: Model from Linears and a dict of sizes, Session over it. The GIL is released while it computes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cpu/model.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace panza;

namespace {


Shape shape_of(const nb::dict& d) {
    const auto whole = [&](const char* key) { return nb::cast<int>(d[key]); };
    return {.vocab = whole("vocab"), .hidden = whole("hidden"), .layers = whole("layers"), .heads = whole("heads"), .kv_heads = whole("kv_heads"),
            .head_dim = whole("head_dim"), .ffn = whole("ffn"), .context = whole("context"), .window = whole("window"), .eps = nb::cast<float>(d["eps"]),
            .frequencies = nb::cast<std::vector<float>>(d["frequencies"]), .rotary_scale = nb::cast<float>(d["rotary_scale"])};
}

Layer layer_of(const nb::dict& d) {
    const auto weights = [&](const char* key) { return nb::cast<std::vector<LinearPtr>>(d[key]); };
    const auto numbers = [&](const char* key) { return nb::cast<std::vector<float>>(d[key]); };
    return {weights("qkv"), nb::cast<LinearPtr>(d["out"]), weights("gate_up"), nb::cast<LinearPtr>(d["down"]),
            numbers("attention_norm"), numbers("ffn_norm"), numbers("q_norm"), numbers("k_norm")};
}

nb::ndarray<nb::numpy, float> array(const std::vector<float>& values, size_t rows, size_t columns) {
    float* p = new float[values.size()];
    std::copy(values.begin(), values.end(), p);
    nb::capsule owner(p, [](void* q) noexcept { delete[] static_cast<float*>(q); });
    return nb::ndarray<nb::numpy, float>(p, {rows, columns}, owner);
}

}  // namespace

void bind_model(nb::module_& m) {
    nb::class_<Sampling>(m, "Sampling")
        .def("__init__", [](Sampling* self, float temperature, int top_k, float top_p, float min_p, float repetition_penalty) {
            new (self) Sampling{temperature, top_k, top_p, min_p, repetition_penalty};
        }, nb::kw_only(), "temperature"_a = 0.f, "top_k"_a = 0, "top_p"_a = 1.f, "min_p"_a = 0.f, "repetition_penalty"_a = 1.f);

    nb::class_<Model>(m, "Model")
        .def("__init__", [](Model* self, const nb::dict& shape, LinearPtr embedding, LinearPtr head, std::vector<float> norm, const nb::list& layers) {
            std::vector<Layer> made;
            for (nb::handle layer : layers) made.push_back(layer_of(nb::cast<nb::dict>(layer)));
            new (self) Model(shape_of(shape), std::move(embedding), std::move(head), std::move(norm), std::move(made), isa());
        }, "shape"_a, "embedding"_a, "head"_a, "norm"_a, "layers"_a)
        .def_prop_ro("bytes", &Model::bytes, "Bytes of weights that one token reads.");

    nb::class_<Company>(m, "Company").def(nb::init<>()).def("alone", &Company::alone).def("took", &Company::took, "seconds"_a);

    nb::class_<Session>(m, "Session")
        .def("__init__", [](Session* self, std::shared_ptr<Model> model, std::shared_ptr<Pool> pool, int cache_bits) {
            new (self) Session(std::move(model), std::move(pool), cache_bits);
        }, "model"_a, "pool"_a, "cache_bits"_a = 16)
        .def("read", &Session::read, "tokens"_a, "stopped"_a.none() = nb::none(), nb::call_guard<nb::gil_scoped_release>())
        .def("prompt", &Session::prompt, "tokens"_a, "stopped"_a.none() = nb::none(), nb::call_guard<nb::gil_scoped_release>())
        .def("truncate", &Session::truncate, "length"_a, nb::call_guard<nb::gil_scoped_release>())
        .def("sample", &Session::sample, "sampling"_a, nb::call_guard<nb::gil_scoped_release>())
        .def("follow", &Session::follow, "tokens"_a, "sampling"_a, nb::call_guard<nb::gil_scoped_release>())
        .def("seed", &Session::seed, "seed"_a, nb::call_guard<nb::gil_scoped_release>())
        .def("all_logits", [](Session& self, const std::vector<int>& tokens) {
            std::vector<float> made;
            {
                nb::gil_scoped_release release;
                made = self.all_logits(tokens);
            }
            return array(made, tokens.size(), tokens.empty() ? 0 : made.size() / tokens.size());
        }, "tokens"_a)
        .def_prop_ro("tokens", &Session::tokens, nb::for_getter(nb::call_guard<nb::gil_scoped_release>()))
        .def_prop_ro("logits", [](const Session& self) {
            std::vector<float> made;
            {
                nb::gil_scoped_release release;
                made = self.logits();
            }
            return array(made, 1, made.size());
        }, nb::rv_policy::move)
        .def_prop_ro("cache_bytes", &Session::cache_bytes);
}
