"""Layers for inference alone: what lies on a GPU is what its kernels read, once, and adapters stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress import cuda
from compress.checkpoint import load_model
from compress.decode import Grid, Lut
from compress.errors import CompressError
from compress.linear import PackedLinear, QuantizedEmbedding, QuantizedLinear, hold_, pack_, quantized_layers
from compress.model import Options, compress_model
from compress.tables import Real
from compress.weight import QuantizedWeight

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compressed") / "out"
    compress_model(tiny_base, out, "rtn", 4, None, Options(sequences=4, length=16))
    return out


@pytest.fixture
def model(folder: Path) -> nn.Module:
    """Grids of 4 bits, and 8 for the embedding and the head, which are tied."""
    net = load_model(folder).eval()
    assert codes(net.lm_head) is codes(net.model.embed_tokens)
    return net.requires_grad_(False)


def codes(layer: QuantizedLinear) -> Tensor:
    return layer.quantized.decode.codes


def test_a_packed_model_holds_what_the_kernels_read_and_the_rows_of_its_embedding(model: nn.Module):
    linear = {n: m for n, m in quantized_layers(model).items() if isinstance(m, QuantizedLinear)}
    expected = {n: cuda.pack(m.quantized) for n, m in linear.items()}
    before = {id(codes(m)) for m in linear.values()}
    pack_(model, torch.float16)
    assert [*quantized_layers(model)] == ["model.embed_tokens"]
    for name, packed in expected.items():
        layer = model.get_submodule(name)
        assert type(layer) is PackedLinear and layer.packed.how == packed.how and layer.bias is None
        assert all(torch.equal(a, b) for a, b in zip(layer.packed.parts, packed.parts, strict=True))
    assert not any(".quantized." in n and "embed_tokens" not in n for n in model.state_dict())
    kept = before & {id(b) for b in model.buffers()}
    assert kept == {id(codes(model.model.embed_tokens))}, (
        "the embedding gathers rows from the codes that the head had too"
    )
    ids = torch.tensor([[3, 1, 4]])
    assert torch.equal(model.model.embed_tokens(ids), model.model.embed_tokens.quantized.dense()[ids])


def test_what_no_kernel_takes_is_decoded_once():
    layers = nn.Sequential(
        QuantizedLinear(QuantizedWeight((32, 64), Lut(32, 64, 3, rows=32))),
        QuantizedLinear(QuantizedWeight((32, 32), Grid(32, 32, 4), Real(32, 1)), torch.ones(32)),
        QuantizedLinear(QuantizedWeight((64, 32), Grid(64, 32, 6), Real(64, 1))),
        QuantizedEmbedding(QuantizedWeight((64, 32), Grid(64, 32, 6), Real(64, 1))),
    )
    hold_(pack_(layers, torch.float16), torch.float16)
    kinds = [QuantizedLinear, PackedLinear, QuantizedLinear, QuantizedEmbedding]
    assert [type(layer) for layer in layers] == kinds
    assert [layers[i]._held is not None for i in (0, 2, 3)] == [True, True, False]
    assert layers[0].weight.dtype == torch.float16 and torch.equal(layers[1].bias, torch.ones(32))


def test_adapters_stay_beside_packed_layers_and_cannot_be_merged(model: nn.Module):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    net = get_peft_model(model, config)
    adapter = {n: p.clone() for n, p in net.named_parameters() if "lora" in n}
    pack_(net, torch.float16)
    block = net.get_base_model().model.layers[0]
    for layer in (block.self_attn.q_proj, block.mlp.down_proj):
        assert type(layer.base_layer) is PackedLinear and layer.lora_B["default"].weight.abs().sum() > 0
    assert type(block.self_attn.k_proj) is PackedLinear and type(net.get_base_model().lm_head) is PackedLinear
    assert all(torch.equal(p, adapter[n]) for n, p in net.named_parameters() if "lora" in n)
    with pytest.raises(CompressError):
        net.merge_and_unload()


# --- on a GPU ---


def greedy(net: nn.Module, tokens: int = 24) -> list[int]:
    ids, cache, written = torch.arange(20, device="cuda")[None] + 5, None, []
    with torch.inference_mode():
        for _ in range(tokens):
            out = net(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            written.append(ids.item())
    return written


def allocated() -> int:
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@needs_gpu
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_packed_model_drafts_the_same_in_fewer_bytes(folder: Path, dtype: torch.dtype, adapted: bool):
    from peft import LoraConfig, get_peft_model

    start = allocated()
    net = load_model(folder, dtype, "cuda").eval()
    if adapted:
        torch.manual_seed(0)
        net = get_peft_model(net, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    net.requires_grad_(False)
    loaded = allocated() - start
    drafted = greedy(net)
    both = allocated() - start
    pack_(net, dtype)
    once = allocated() - start
    assert not [n for n, m in net.named_modules() if isinstance(m, QuantizedLinear)]
    assert greedy(net) == drafted, "the same kernels"
    assert loaded < both and once < both, (loaded, both, once)
    if not adapted:
        plain = hold_(load_model(folder, dtype, "cuda").eval(), dtype)
        with torch.inference_mode():
            ids = torch.arange(60, device="cuda")[None]
            a, b = net(ids).logits.float(), plain(ids).logits.float()
        assert (a - b).norm() < (0.01 if dtype == torch.float16 else 0.06) * b.norm()


@needs_gpu
def test_a_packed_layer_shows_its_weight_to_who_asks():
    for dtype in (torch.float16, torch.bfloat16):
        weight = QuantizedWeight((75, 200), Grid(75, 200, 4), Real(75, 1))
        weight.decode.codes.random_(0, 256)
        nn.init.uniform_(weight.scale.values, 0.5, 1.5)
        layer = pack_(nn.Sequential(QuantizedLinear(weight)).cuda(), dtype)[0]
        assert layer.weight.dtype == dtype and layer.weight.shape == (75, 200)
        exact = weight.dense()
        for other in (torch.float16, torch.bfloat16, torch.float32):
            x = torch.randn(3, 200, device="cuda").to(other)
            y, wanted = layer(x), x.float() @ exact.T
            assert y.dtype == other and (y.float() - wanted).norm() < 0.01 * wanted.norm()
        assert (layer.weight.float() - exact).norm() <= torch.finfo(dtype).eps * exact.norm()
        with pytest.raises(CompressError, match="merged"):
            layer.weight.data += 1
