"""Other libraries' layouts: what we write, they read; what they write, we read; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from compress import ops
from compress.checkpoint import load_model
from compress.decode import Additive, Grid, Lut
from compress.embeddings import compress_embeddings_
from compress.errors import CompressError
from compress.formats import export_model, format_module
from compress.linear import QuantizedEmbedding, QuantizedLinear
from compress.tables import Real, TwoLevel, Whole
from compress.transform import Transform
from compress.weight import LowRank, QuantizedWeight, Sparse


def codes(N: int, D: int, bits: int) -> torch.Tensor:
    return ops.pack(torch.randint(0, 2**bits, (N, D)), bits)


def grid(N: int, D: int, bits: int, group: int, zero: bool = False, permuted: bool = False) -> QuantizedWeight:
    G = D // group
    made = Grid(N, D, bits, Whole.of(torch.randint(1, 2**bits, (N, G)), bits) if zero else None)
    made.codes = codes(N, D, bits)
    transform = Transform(N, D, permuted=permuted)
    if permuted:
        transform.order = torch.randperm(D).int()
    return QuantizedWeight((N, D), made, Real.of(torch.rand(N, G) * 0.02 + 0.01), transform)


def additive(N: int, D: int, books: int, bits: int, group: int) -> QuantizedWeight:
    made = Additive(N, D, books, bits, group)
    made.codes = codes(N, D // group * books, bits)
    made.codebooks.data = torch.randn(books, 2**bits, group).half()
    return QuantizedWeight((N, D), made, Real.of(torch.rand(N, 1) * 0.02))


def spqr(N: int, D: int, permuted: bool = False) -> QuantizedWeight:
    G = -(-D // 16)

    def table() -> TwoLevel:
        made = TwoLevel(N, G, 3, 16)
        made.codes = codes(N, G, 3)
        made.scale.data, made.zero.data = (torch.rand(-(-N // 16), G).half() for _ in range(2))
        return made

    made = Grid(N, G * 16, 3, table())
    made.codes = codes(N, G * 16, 3)
    transform = Transform(N, G * 16, permuted=permuted)
    if permuted:
        transform.order = torch.randperm(D).int()
    outliers = Sparse.of(torch.randn(N, D) * (torch.rand(N, D) < 0.02))
    return QuantizedWeight((N, D), made, table(), transform, outliers)


CASES = {
    ("aqlm", "2x8"): lambda N, D: additive(N, D, 2, 8, 8),
    ("aqlm", "1x12"): lambda N, D: additive(N, D, 1, 12, 8),
    ("aqlm", "4x4"): lambda N, D: additive(N, D, 4, 4, 8),
    **{
        (name, f"{bits} bits, {group}, zeros {zero}"): lambda N, D, b=bits, g=group, z=zero: grid(N, D, b, g or D, z)
        for name in ("gptq", "gptq_v2", "compressed-tensors")
        for bits, group, zero in [(2, 32, True), (3, 32, False), (3, 32, True), (4, 0, False), (8, 32, True)]
    },
    ("gptq", "act order"): lambda N, D: grid(N, D, 3, 32, True, permuted=True),
    ("spqr", "plain"): spqr,
    ("spqr", "permuted"): lambda N, D: spqr(N, D, permuted=True),
}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("N", "D"), [(32, 64), (96, 32)])
def test_a_weight_comes_back_from_another_layout(case: tuple[str, str], N: int, D: int):
    name, weight = case[0], CASES[case](N, D)
    module = format_module(name)
    layer = QuantizedLinear(weight)
    tensors = module.write(weight, name)
    assert set(tensors) <= set(module.SUFFIXES) and module.MARK in tensors
    again = module.read(tensors, (N, D), json.loads(json.dumps(module.settings(name, {"layer": layer}, []))))
    assert torch.allclose(again.dense(), weight.dense(), rtol=1e-3, atol=1e-6)


def test_sizes_that_fill_no_tile_survive_spqr():
    weight, module = spqr(37, 45), format_module("spqr")
    again = module.read(module.write(weight, "spqr"), (37, 45), {})
    assert torch.allclose(again.dense(), weight.dense(), rtol=1e-3, atol=1e-6)


def test_spqr_reads_rows_padded_in_bands():
    weight, module = spqr(32, 32), format_module("spqr")
    tensors = module.write(weight, "spqr")
    starts, pairs = tensors["row_offsets"].tolist(), tensors["col_vals"].tolist()
    offsets, padded = [0], []
    for band in range(2):
        rows = [pairs[starts[r] : starts[r + 1]] for r in range(16 * band, 16 * band + 16)]
        longest = max(map(len, rows))
        padded += [row[k] if k < len(row) else 0 for k in range(longest) for row in rows]
        offsets.append(len(padded))
    tensors |= {"row_offsets": torch.tensor(offsets).int(), "col_vals": torch.tensor(padded).int()}
    assert torch.allclose(module.read(tensors, (32, 32), {}).dense(), weight.dense(), rtol=1e-3, atol=1e-6)


def stream(words: torch.Tensor) -> int:
    """Words of 32 bits as one number, the first word lowest."""
    return sum((int(word) & 0xFFFFFFFF) << 32 * i for i, word in enumerate(words))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("name", "more"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq_means_what_its_readers_take_it_for(bits: int, name: str, more: int):
    """scale (code - zero - 1), in version 2 without the 1, of bit streams along the inputs and along the outputs."""
    weight = grid(32, 64, bits, 32, zero=True, permuted=True)
    t, mask = format_module(name).write(weight, name), 2**bits - 1
    zeros = [stream(row) for row in t["qzeros"]]
    for n in range(32):
        codes = stream(t["qweight"][:, n])
        for d, g in enumerate(t["g_idx"].tolist()):
            q, zero = codes >> bits * d & mask, (zeros[g] >> bits * n & mask) + more
            assert float(t["scales"][g, n]) * (q - zero) == pytest.approx(
                weight.dense()[n, d].item(), rel=1e-3, abs=1e-6
            )


def test_the_layout_of_spqr_is_that_of_its_definition():
    """One weight picked out by hand."""
    weight = spqr(32, 32)
    t = format_module("spqr").write(weight, "spqr")
    word = int(t["dense_weights"][(1 * 2 + 0) * 16 + 3])  # row tile 1, column tile 0, its fourth row: row 19
    assert word & 7 == int(ops.unpack(weight.scale.codes, 2, 3)[19, 0]) and word >> 62 == 0
    assert word >> 6 + 3 * 5 & 7 == int(ops.unpack(weight.decode.codes, 32, 3)[19, 5])


def filled(make) -> LlamaForCausalLM:
    """A tiny tied Llama with every linear layer of its blocks made by `make`, its embedding compressed."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 96}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    net = LlamaForCausalLM(config).eval()
    for name, layer in list(net.model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            owner = net.model.get_submodule(name.rpartition(".")[0])
            weight = make(layer.out_features, layer.in_features)
            setattr(owner, name.rpartition(".")[2], QuantizedLinear(weight))
    table = grid(96, 64, 8, 64)
    net.model.embed_tokens, net.lm_head = QuantizedEmbedding(table), QuantizedLinear(table)
    return net


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the fp16 of what is not compressed."""
    return bool((a - b).norm() < 0.01 * b.norm())


IN_FULL = {
    "aqlm": lambda N, D: additive(N, D, 2, 8, 8),
    "gptq": lambda N, D: grid(N, D, 4, 32, True),
    "gptq_v2": lambda N, D: grid(N, D, 3, 32, True),
    "compressed-tensors": lambda N, D: grid(N, D, 3, 32),
    "spqr": spqr,
    "plain": lambda N, D: grid(N, D, 2, 32),
}


@pytest.mark.parametrize("name", IN_FULL)
def test_a_whole_model_goes_out_and_comes_back(name: str, tmp_path: Path):
    model, ids = filled(IN_FULL[name]), torch.randint(0, 96, (2, 9))
    export_model(model, tmp_path, tmp_path / "out", name)
    again = load_model(tmp_path / "out")
    assert near(again(ids).logits, model(ids).logits)
    kept = sum(isinstance(m, QuantizedLinear) for m in again.modules())
    assert kept == (0 if name == "plain" else 14), "layers stay compressed"


def test_rows_that_a_model_multiplies_are_written_as_they_were(tmp_path: Path):
    """Gemma's embedding has a factor, which the compressed rows hold and the plain ones do not."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 96, "head_dim": 16}
    net = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)).eval()
    compress_embeddings_(net)
    ids = torch.randint(0, 96, (2, 9))
    export_model(net, tmp_path, tmp_path / "out", "plain")
    assert near(load_model(tmp_path / "out")(ids).logits, net(ids).logits)


@pytest.mark.parametrize(("name", "package"), [("aqlm", "aqlm"), ("compressed-tensors", "compressed_tensors")])
def test_the_real_package_reads_what_we_write(name: str, package: str, tmp_path: Path):
    pytest.importorskip(package, reason=f"{package} is not installed: its loader is not tried")
    model, ids = filled(IN_FULL[name]), torch.randint(0, 96, (1, 20))
    export_model(model, tmp_path, tmp_path / "out", name)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert {type(m).__module__.split(".")[0] for m in theirs.modules()} & {package, "compressed_linear"} or any(
        hasattr(m, "quantization_scheme") for m in theirs.modules()
    ), "their layers, not plain ones"
    assert near(theirs(ids).logits, model(ids).logits)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_we_read_what_compressed_tensors_packs(bits: int, symmetric: bool):
    ct = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

    args = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32}
    scheme = ct.quantization.QuantizationScheme(targets=["Linear"], weights=ct.quantization.QuantizationArgs(**args))
    half = 2 ** (bits - 1)
    zero = torch.zeros(48, 2) if symmetric else torch.randint(-half, half, (48, 2)).float()
    state = {"weight": torch.randn(48, 64), "weight_scale": torch.rand(48, 2) / half + 0.1}
    state["weight_zero_point"] = zero.to(torch.int8)
    packed = PackedQuantizationCompressor.compress(state, scheme)
    settings = {"format": "pack-quantized", "config_groups": {"group_0": {"weights": args}}}
    weight = format_module("compressed-tensors").read(packed, (48, 64), settings)
    expected = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    assert torch.allclose(weight.dense(), expected, rtol=2e-3, atol=1e-4)


REFUSED = {
    "a table": ("aqlm", lambda: QuantizedWeight((32, 32), Lut(32, 32, 2, 32)), "lut"),
    "a permutation": ("compressed-tensors", lambda: grid(32, 32, 3, 32, permuted=True), "permuted"),
    "a low-rank part": ("gptq", lambda: with_low_rank(grid(32, 32, 3, 32)), "low-rank"),
    "odd sizes": ("gptq", lambda: grid(33, 32, 3, 32), "divide by 32"),
    "a zero of 0": ("gptq", lambda: with_zero(grid(32, 32, 3, 32, True)), "use gptq_v2"),
    "other tiles": ("spqr", lambda: grid(32, 32, 3, 16), "another kind"),
    "an unknown format": ("onnx", lambda: grid(32, 32, 3, 32), "choose one of plain, aqlm"),
}


class Headless(torch.nn.Module):
    def get_output_embeddings(self) -> None:
        return None


def with_zero(weight: QuantizedWeight) -> QuantizedWeight:
    weight.decode.zero = Whole.of(torch.zeros(32, 1).int(), 3)
    return weight


def with_low_rank(weight: QuantizedWeight) -> QuantizedWeight:
    weight.low_rank = LowRank(*weight.shape, 4)
    return weight


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_cannot_say_is_refused_and_nothing_is_written(case: str, tmp_path: Path):
    name, make, reason = REFUSED[case]
    net = Headless()
    net.layer = QuantizedLinear(make())
    with pytest.raises(CompressError, match=reason):
        export_model(net, tmp_path, tmp_path / "out", name)
    assert list(tmp_path.iterdir()) == []


def test_mixed_settings_are_refused_where_the_format_has_one(tmp_path: Path):
    bits = iter([2, 3] * 7)
    with pytest.raises(CompressError, match="one bits for all layers, not both 2 and 3"):
        export_model(filled(lambda N, D: grid(N, D, next(bits), 32)), tmp_path, tmp_path / "out", "compressed-tensors")


DAMAGE = {
    "codes beyond the books": ("aqlm", "codes", lambda t: t.short().index_fill(0, torch.tensor([3]), 5000)),
    "zeros of one group": ("gptq", "qzeros", lambda t: t[:1].clone()),
    "twice the codes": ("gptq", "qweight", lambda t: torch.cat((t, t))),
    "an input of no group": ("gptq", "g_idx", lambda t: t.index_fill(0, torch.tensor([3]), 2**31 - 1)),
    "scales of fewer outputs": ("gptq", "scales", lambda t: t[:, 1:].clone()),
    "outliers of no row": ("spqr", "row_offsets", lambda t: t[:-1].clone()),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_another_layout_cannot_mean_is_refused(case: str, tmp_path: Path):
    name, tensor, damage = DAMAGE[case]
    export_model(filled(IN_FULL[name]), tmp_path, tmp_path / "out", name)
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    key = f"model.layers.1.mlp.up_proj.{tensor}"
    tensors[key] = damage(tensors[key])
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CompressError):
        load_model(tmp_path / "out")


@pytest.mark.parametrize("damage", ["codes", "codebooks", "scales"])
def test_tensors_that_do_not_fit_are_named(damage: str, tmp_path: Path):
    export_model(filled(IN_FULL["aqlm"]), tmp_path, tmp_path / "out", "aqlm")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    name = f"model.layers.1.mlp.up_proj.{damage}"
    tensors[name] = tensors[name][:1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CompressError, match="up_proj|weight"):
        load_model(tmp_path / "out")


def test_a_pickle_that_is_more_than_tensors_is_not_read(tmp_path: Path):
    export_model(filled(IN_FULL["aqlm"]), tmp_path, tmp_path / "out", "aqlm")
    (tmp_path / "out" / "model.safetensors").unlink()
    torch.save({"x": Path("evil")}, tmp_path / "out" / "pytorch_model.bin")
    with pytest.raises(CompressError, match="more than tensors|damaged"):
        load_model(tmp_path / "out")
