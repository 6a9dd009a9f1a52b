// The extension module compress._kernels: numpy arrays in, numpy arrays out. Errors are ValueError; the GIL is released.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "cpu/linear.hpp"

void bind_model(nanobind::module_& m);

namespace nb = nanobind;
using namespace nb::literals;
using namespace panza;

namespace {

template <class T>
using Array = nb::ndarray<const T, nb::numpy, nb::device::cpu, nb::c_contig>;
using Floats = Array<float>;
using Matrix = nb::ndarray<const float, nb::numpy, nb::device::cpu, nb::c_contig, nb::ndim<2>>;

constexpr size_t MOST_TOKENS = 1 << 24;  // of a product

// A copy of an array, which may stand anywhere in a mapped file: not at a multiple of its numbers' size.
template <class T, class... Rest>
std::vector<T> vector_of(const nb::ndarray<const T, Rest...>& a) {
    std::vector<T> made(a.size());
    if (a.size()) std::memcpy(made.data(), a.data(), a.nbytes());
    return made;
}

// Of an array that is read where it stands.
template <class... Rest>
auto* numbers(const nb::ndarray<Rest...>& a) {
    if (reinterpret_cast<uintptr_t>(a.data()) % sizeof(*a.data())) throw std::invalid_argument("an array does not start at a whole number of its type");
    return a.data();
}

template <class A>
void check_size(const A& a, size_t rows, size_t columns, const char* name) {
    if (a.shape(0) == rows && a.shape(1) == columns) return;
    throw std::invalid_argument(std::string(name) + " is (" + std::to_string(a.shape(0)) + ", " + std::to_string(a.shape(1)) + "), not (" + std::to_string(rows) + ", " + std::to_string(columns) + ")");
}

template <class T>
nb::ndarray<nb::numpy, T> result(std::unique_ptr<T[]> data, size_t rows, size_t columns) {
    T* p = data.release();
    nb::capsule owner(p, [](void* q) noexcept { delete[] static_cast<T*>(q); });
    return nb::ndarray<nb::numpy, T>(p, {rows, columns}, owner);
}

// (codes (N, groups), scale and zero (blocks, groups), rows of a block)
using MadeOf = std::optional<std::tuple<Array<uint8_t>, Floats, Floats, int>>;

TwoLevel two_level_of(const MadeOf& parts) {
    if (!parts) return {};
    const auto& [codes, scale, zero, rows] = *parts;
    return {vector_of(codes), vector_of(scale), vector_of(zero), rows};
}

Tables tables_of(const std::optional<Matrix>& scale, const std::optional<Matrix>& zero, const std::optional<Floats>& values,
                 const MadeOf& scale_parts, const MadeOf& zero_parts) {
    Tables t{.scale_parts = two_level_of(scale_parts), .zero_parts = two_level_of(zero_parts)};
    if (scale) t.scale = vector_of(*scale), t.scale_groups = (int)scale->shape(1);
    if (zero) t.zero = vector_of(*zero), t.zero_groups = (int)zero->shape(1);
    if (values) t.values = vector_of(*values);
    return t;
}

const Isa& chosen(const std::string& name) {
    if (name.empty()) return isa();
    if (const Isa* found = isa(name.c_str())) return *found;
    throw std::invalid_argument("this computer does not run '" + name + "'");
}

std::unique_ptr<Core> core_of(const std::string& kind, int N, int D, const std::vector<int>& n, const Array<uint8_t>& codes, Tables tables, const Isa& isa) {
    Buffer data(codes.data(), codes.size());
    if (kind == "grid" && n.size() == 1) return make_grid(N, D, n[0], std::move(data), std::move(tables), isa);
    if (kind == "lut" && n.size() == 2) return make_lut(N, D, n[0], n[1], std::move(data), std::move(tables), isa);
    if (kind == "additive" && n.size() == 3) return make_additive(N, D, n[0], n[1], n[2], std::move(data), std::move(tables), isa);
    if (kind == "trellis" && n.size() == 2) return make_trellis(N, D, n[0], n[1], std::move(data), std::move(tables), isa);
    if (kind == "float16") return make_dense(N, D, std::move(data), false, isa);
    if (kind == "bfloat16") return make_dense(N, D, std::move(data), true, isa);
    throw std::invalid_argument("unknown kind of codes '" + kind + "'");
}

Side side_of(int block, const std::optional<Floats>& signs) { return {block, signs ? vector_of(*signs) : std::vector<float>()}; }

}  // namespace

NB_MODULE(_kernels, m) {
    m.def("isa", [] { return std::string(isa().name); }, "The instruction set in use.");
    m.def("isas", [] {
        std::vector<std::string> names;
        for (auto n = isas(); *n; n++) names.emplace_back(*n);
        return names;
    }, "Those that this computer runs, the best last.");

    m.def("sum", [](Array<uint64_t> x, Pool& pool) {
        const size_t part = x.size() / 4 / pool.threads();
        const uint64_t* words = numbers(x);
        std::atomic<uint64_t> all = 0;
        nb::gil_scoped_release release;
        pool.run(4 * pool.threads(), [&](int i) { all += isa().numerics->sum(words + i * part, part); });
        return all.load();
    }, "x"_a, "pool"_a, "The sum of an array, the threads reading a quarter of their share at a time: the time that memory takes.");

    m.def("round_group", [](nb::ndarray<float, nb::numpy, nb::device::cpu, nb::c_contig, nb::ndim<2>> now, Matrix gain, Floats scale, Floats finer,
                            Floats zero, float top, Floats reach, const std::string& name) {
        const size_t inputs = now.shape(0), outputs = now.shape(1);
        if (gain.shape(0) != inputs || gain.shape(1) != inputs || reach.size() != inputs || scale.size() != outputs || finer.size() != outputs || zero.size() != outputs)
            throw std::invalid_argument("the sizes of a group of " + std::to_string(inputs) + " inputs do not fit together");
        const Isa& isa = chosen(name);
        float* rounded = numbers(now);
        const float *gains = numbers(gain), *scales = numbers(scale), *inverses = numbers(finer), *zeros = numbers(zero), *reaches = numbers(reach);
        nb::gil_scoped_release release;
        isa.numerics->round_group(rounded, (int)inputs, (int)outputs, gains, scales, inverses, zeros, top, reaches);
    }, "now"_a.noconvert(), "gain"_a, "scale"_a, "finer"_a, "zero"_a, "top"_a, "reach"_a, "isa"_a = "", "Round in place, in order, with feedback: see compress.feedback.round_group.");

    m.def("viterbi", [](Matrix target, Matrix weight, std::optional<Array<int64_t>> start, Floats lut, int step, Pool& pool, const std::string& name) {
        const size_t T = target.shape(0), C = target.shape(1);
        const int states = (int)lut.size(), sets = step >= 1 && step <= 8 ? states >> step : 0;
        if (sets < 1 || sets > MOST_SETS || (states & (states - 1)))
            throw std::invalid_argument("no search for " + std::to_string(states) + " states of " + std::to_string(step) + " new bits");
        check_size(weight, T, C, "weight");
        if (start && start->size() != C) throw std::invalid_argument("start has " + std::to_string(start->size()) + " states for " + std::to_string(C) + " chains");
        const float *targets = numbers(target), *weights = numbers(weight), *values = numbers(lut);
        const int64_t* starts = start ? numbers(*start) : nullptr;
        auto path = std::make_unique<int64_t[]>(T * C);
        const Isa& isa = chosen(name);
        {
            nb::gil_scoped_release release;
            const size_t lanes = isa.search->lanes;
            pool.run((int)((C + lanes - 1) / lanes), [&](int part) {
                const size_t c = lanes * part;
                std::vector<uint8_t> room(lanes * T * sets);
                isa.search->viterbi(states, step, targets + c, weights + c, C, (int)T, (int)std::min(lanes, C - c),
                                    starts ? starts + c : nullptr, values, room.data(), path.get() + c);
            });
        }
        return result(std::move(path), T, C);
    }, "target"_a, "weight"_a, "start"_a.none(), "lut"_a, "step"_a, "pool"_a, "isa"_a = "", "The states (T, C) of the cheapest paths: see compress.viterbi.");

    nb::class_<Pool>(m, "Pool").def(nb::init<int>(), "threads"_a).def_prop_ro("threads", &Pool::threads);

    nb::class_<Linear>(m, "Linear")
        .def("__init__", [](Linear* self, int outputs, int inputs, const std::string& kind, int N, int D, const std::vector<int>& numbers,
                            const Array<uint8_t>& codes, std::optional<Matrix> scale, std::optional<Matrix> zero,
                            std::optional<Floats> values, const std::string& name, MadeOf scale_parts, MadeOf zero_parts, bool exact) {
            const Isa& isa = chosen(name);
            Tables tables = tables_of(scale, zero, values, scale_parts, zero_parts);
            auto core = core_of(kind, N, D, numbers, codes, std::move(tables), isa);
            core->exact = exact;
            new (self) Linear(outputs, inputs, std::move(core), isa);
        }, "outputs"_a, "inputs"_a, "kind"_a, "N"_a, "D"_a, "numbers"_a, "codes"_a.noconvert(), "scale"_a.none() = nb::none(), "zero"_a.none() = nb::none(),
           "values"_a.none() = nb::none(), "isa"_a = "", "scale_parts"_a.noconvert().none() = nb::none(), "zero_parts"_a.noconvert().none() = nb::none(), "exact"_a = true)
        .def("set_transform", [](Linear& self, int in_block, std::optional<Floats> in_signs, int out_block, std::optional<Floats> out_signs,
                                 std::optional<Array<int32_t>> order) {
            self.set_transform(side_of(in_block, in_signs), side_of(out_block, out_signs), order ? vector_of(*order) : std::vector<int32_t>());
        }, "in_block"_a, "in_signs"_a.none(), "out_block"_a, "out_signs"_a.none(), "order"_a.noconvert().none())
        .def("set_sparse", [](Linear& self, Array<int32_t> starts, Array<uint16_t> columns, Array<uint16_t> values) {
            self.set_outliers(std::make_unique<Outliers>(self.inputs(), vector_of(starts), vector_of(columns), vector_of(values)));
        }, "starts"_a.noconvert(), "columns"_a.noconvert(), "values"_a.noconvert(), "CSR; the values' bits are those of fp16.")
        .def("set_bias", [](Linear& self, Floats bias) { self.set_bias(vector_of(bias)); }, "bias"_a)
        .def("add_low_rank", [](Linear& self, Matrix A, Matrix B, float scale) {
            check_size(A, A.shape(0), self.inputs(), "A");
            check_size(B, self.outputs(), A.shape(0), "B");
            self.add_low_rank({(int)A.shape(0), scale, vector_of(A), vector_of(B)});
        }, "A"_a, "B"_a, "scale"_a = 1.f)
        .def_prop_ro("shape", [](const Linear& self) { return std::pair(self.outputs(), self.inputs()); })
        .def_prop_ro("bytes", &Linear::bytes)
        .def("multiply", [](const Linear& self, Matrix x, Pool& pool) {
            if (x.shape(1) != (size_t)self.inputs()) throw std::invalid_argument("x has " + std::to_string(x.shape(1)) + " inputs, the weight " + std::to_string(self.inputs()));
            const size_t tokens = x.shape(0), N = self.outputs();
            if (tokens > MOST_TOKENS) throw std::invalid_argument(std::to_string(tokens) + " tokens are too many for a product");
            const float* from = numbers(x);
            auto y = std::make_unique<float[]>(tokens * N);
            {
                nb::gil_scoped_release release;
                self.multiply(from, (int)tokens, y.get(), pool);
            }
            return result(std::move(y), tokens, N);
        }, "x"_a, "pool"_a, "x (tokens, inputs) times the transpose: (tokens, outputs).")
        .def("decode", [](const Linear& self) {
            const Core& core = self.core();
            auto w = std::make_unique<float[]>((size_t)core.N() * core.D());
            core.decode(0, core.N(), w.get());
            return result(std::move(w), core.N(), core.D());
        }, "The coded core: (N, D) of the padded size.");

    bind_model(m);
}
