"""Compressed checkpoints: what is saved comes back; what is damaged is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from compress import ops
from compress.checkpoint import FILE, SPEC, bits_per_weight, load_model, save_model
from compress.decode import Grid
from compress.errors import CompressError
from compress.linear import QuantizedEmbedding, QuantizedLinear
from compress.tables import Real
from compress.weight import QuantizedWeight


def rounded(w: torch.Tensor, bits: int = 8) -> QuantizedWeight:
    """Rows rounded to a symmetric grid."""
    scale = (w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)).half()
    made = QuantizedWeight(tuple(w.shape), Grid(*w.shape, bits), Real.of(scale))
    made.decode.codes = ops.pack((w / scale.float()).round().int() + 2 ** (bits - 1), bits)
    return made


@pytest.fixture
def model() -> LlamaForCausalLM:
    """A tiny tied Llama whose layers are rounded to 8 bits; the head shares the embedding's weight."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    net = LlamaForCausalLM(config).eval()
    for name, layer in list(net.model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            owner = net.model.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], QuantizedLinear(rounded(layer.weight.data)))
    net.model.embed_tokens = QuantizedEmbedding(rounded(net.model.embed_tokens.weight.data))
    net.lm_head = QuantizedLinear(net.model.embed_tokens.quantized)
    return net


@pytest.fixture
def saved(model: LlamaForCausalLM, tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    save_model(model, tmp_path / "source", tmp_path / "out", {"method": "rtn"})
    return tmp_path / "out"


def test_a_saved_model_comes_back_the_same(model: LlamaForCausalLM, saved: Path):
    again, ids = load_model(saved), torch.randint(0, 96, (2, 7))
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.lm_head.quantized.decode.codes is again.model.embed_tokens.quantized.decode.codes, "tied is one tensor"
    assert (saved / "tokenizer.json").exists() and not saved.with_name("out.part").exists()


def test_bits_per_weight_are_those_of_the_file(saved: Path):
    bits, tensors = bits_per_weight(saved), load_file(saved / FILE)
    size = sum(t.numel() * t.element_size() for t in tensors.values()) * 8
    weights = 96 * 32 + 2 * (32 * 32 * 2 + 2 * 16 * 32 + 3 * 32 * 48) + 5 * 32
    assert bits["all"] == pytest.approx(size / weights)
    assert 8 < bits["body"] < 8.6 and bits["embeddings"] > 8 and bits["head"] == bits["embeddings"]


def damage_bytes(folder: Path) -> None:
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[: len(data) // 2])


def damage_tensor(folder: Path, change) -> None:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


def damage_spec(folder: Path, change) -> None:
    spec = json.loads((folder / SPEC).read_text())
    change(spec)
    (folder / SPEC).write_text(json.dumps(spec))


LAYER = "model.layers.0.mlp.up_proj"
DAMAGES = {
    "cut short": damage_bytes,
    "no file": lambda f: (f / FILE).unlink(),
    "a tensor lost": lambda f: damage_tensor(f, lambda t: t.pop(f"{LAYER}.quantized.decode.codes")),
    "a tensor more": lambda f: damage_tensor(f, lambda t: t.update(foreign=torch.zeros(1))),
    "wrong shape": lambda f: damage_tensor(
        f, lambda t: t.update({f"{LAYER}.quantized.scale.values": torch.ones(2, 1)})
    ),
    "not a number": lambda f: damage_tensor(f, lambda t: t[f"{LAYER}.quantized.scale.values"].fill_(float("nan"))),
    "no JSON": lambda f: (f / SPEC).write_text("{"),
    "a list": lambda f: (f / SPEC).write_text("[]"),
    "another version": lambda f: damage_spec(f, lambda s: s.update(version=99)),
    "an unknown kind": lambda f: damage_spec(f, lambda s: s["layers"][LAYER]["weight"]["decode"].update(kind="magic")),
    "an absurd size": lambda f: damage_spec(f, lambda s: s["layers"][LAYER]["weight"].update(shape=[1 << 40, 2])),
    "an unknown layer": lambda f: damage_spec(f, lambda s: s["layers"].update({"model.nowhere": s["layers"][LAYER]})),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused(name: str, saved: Path):
    DAMAGES[name](saved)
    with pytest.raises(CompressError) as error:
        load_model(saved)
    assert len(str(error.value)) < 250 and "\n" not in str(error.value)


def test_what_is_no_model_is_named(tmp_path: Path):
    with pytest.raises(CompressError, match="no model directory"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CompressError, match="no causal language model"):
        load_model(tmp_path)


def test_a_save_that_fails_leaves_the_old_one(model: LlamaForCausalLM, saved: Path, tmp_path: Path):
    model.config = None
    with pytest.raises(AttributeError):
        save_model(model, tmp_path / "source", saved)
    assert load_model(saved) is not None
