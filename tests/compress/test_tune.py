"""Tuning lowers the held-out error of every kind of codes, keeps the best epoch, and leaves what the file will hold."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from compress import ops
from compress.blocks import find_blocks, plain_linears, replace_
from compress.checkpoint import load_model, save_model
from compress.decode import Additive, Grid, Lut, Trellis, int8_grid, to_chains
from compress.errors import CompressError
from compress.linear import QuantizedEmbedding, QuantizedLinear
from compress.tables import Real, TwoLevel, Whole
from compress.transform import Transform
from compress.tune import UNPACKED, Index, TuneConfig, tune, tune_block, tune_model
from compress.weight import LowRank, QuantizedWeight, Sparse

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SHARED = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
FAST = TuneConfig(epochs=4, batch=1, rates=(1e-2,))


def grid(w: Tensor) -> QuantizedWeight:
    """3 bits from the least to the greatest weight of each 16 inputs, with zeros."""
    groups = w.unflatten(1, (-1, 16))  # (N, G, 16)
    low = groups.amin(2).clamp(max=0)
    scale = ((groups.amax(2).clamp(min=0) - low) / 7).half()
    zero = (-low / scale.float()).round()
    made = QuantizedWeight(tuple(w.shape), Grid(*w.shape, 3, Whole.of(zero.int(), 3)), Real.of(scale))
    codes = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(0, 7).int()
    made.decode.codes = ops.pack(codes.flatten(1), 3)
    return made


def two_level(w: Tensor) -> QuantizedWeight:
    """A symmetric grid whose scales are codes themselves; the greatest weights apart."""
    N, D = w.shape
    loud = w.abs() > w.abs().quantile(0.98)
    rest = w.masked_fill(loud, 0)
    size = rest.unflatten(1, (-1, 16)).abs().amax(2) / 3
    table = TwoLevel(N, D // 16, 4, 8)
    table.scale.data.fill_(size.max() / 15)
    table.codes = ops.pack((size / table.scale[0, 0].float()).round().clamp(1, 15).int(), 4)
    made = QuantizedWeight((N, D), Grid(N, D, 3), table)
    codes = (rest / table().repeat_interleave(16, 1)).round().clamp(-4, 3) + 4
    made.decode.codes = ops.pack(codes.int(), 3)
    made.sparse = Sparse.of((w - made.dense().detach()) * loud)
    return made


def lut(w: Tensor, rows: int | None = None) -> QuantizedWeight:
    """Quantiles of each row, or of the whole tensor."""
    levels = torch.quantile(w if rows is None else w.view(1, -1), (torch.arange(4) + 0.5) / 4, dim=1).T.contiguous()
    made = QuantizedWeight(tuple(w.shape), Lut(*w.shape, 2, len(levels)))
    made.decode.levels.data = levels.half()
    made.decode.codes = ops.pack((w[..., None] - levels[:, None]).abs().argmin(-1), 2)
    return made


def additive(w: Tensor, int8: bool = False) -> QuantizedWeight:
    """Two codebooks of 16 words of four weights, picked at random among the weights."""
    N, D = w.shape
    scale = w.norm(dim=1, keepdim=True).half()
    left, words, codes = (w / scale.float()).view(-1, 4), [], []
    for _ in range(2):
        book = left[torch.randperm(len(left), generator=torch.Generator().manual_seed(0))[:16]]
        nearest = torch.cdist(left, book).argmin(1)
        left = left - book[nearest]
        words.append(book)
        codes.append(nearest)
    made = QuantizedWeight((N, D), Additive(N, D, 2, 4, 4, int8), Real.of(scale))
    if int8:
        made.decode.codebooks.data, made.decode.step.data = int8_grid(torch.stack(words))
    else:
        made.decode.codebooks.data = torch.stack(words).half()
    made.decode.codes = ops.pack(torch.stack(codes, 1).view(N, -1), 4)
    return made


def trellis(w: Tensor) -> QuantizedWeight:
    """Signs and Hadamard; windows of 4 bits, 2 new, each picked greedily."""
    N, D = w.shape
    made = QuantizedWeight((N, D), Trellis(N, D, 2, 4), Real(N, 1), Transform.random(N, D, 16, 16, seed=0))
    coded = made.transform.weight(w)
    made.scale.values.data = coded.square().mean(1, keepdim=True).sqrt().half()
    made.decode.lut.data = torch.linspace(-2, 2, 16)[torch.arange(16) * 7 % 16].half()
    chains, state, bits = to_chains(coded / made.scale()), torch.zeros(N // 16, dtype=torch.long), []
    for t in range(chains.shape[1]):
        nexts = (state >> 2)[:, None] | torch.arange(4) << 2  # a window: two bits kept, two new on top
        best = (made.decode.lut.float()[nexts] - chains[:, t, None]).abs().argmin(1)
        state = nexts.gather(1, best[:, None])[:, 0]
        bits.append(best)
    first = torch.zeros(N // 16, 1, dtype=torch.long)
    made.decode.codes = ops.pack(torch.cat((first, torch.stack(bits, 1)), 1), 2)
    return made


def repaired(w: Tensor) -> QuantizedWeight:
    """Row levels and a random low-rank term."""
    made = lut(w)
    made.low_rank = LowRank(*w.shape, 2)
    made.low_rank.A.data = torch.randn(2, w.shape[1], generator=torch.Generator().manual_seed(0)).half() / 10
    return made


KINDS = {
    "grid": grid,
    "two-level grid with outliers": two_level,
    "row levels": lut,
    "tensor levels": lambda w: lut(w, rows=1),
    "additive": additive,
    "additive int8": lambda w: additive(w, int8=True),
    "trellis": trellis,
    "low rank": repaired,
}


def llama(bias: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHARED, attention_bias=bias, mlp_bias=bias)).eval()
    for parameter in model.parameters():
        parameter.data *= 5 if parameter.dim() > 1 else 1
    return model


def compress_(root: nn.Module, kind) -> nn.Module:
    for name, layer in plain_linears(root).items():
        replace_(root, name, QuantizedLinear(kind(layer.weight.data), layer.bias))
    return root


def calls(model: nn.Module, sequences: int = 12) -> tuple[list, list]:
    """(args, kwargs) and outputs of block 0, two sequences a call."""
    inputs, outputs = [], []

    def note(block: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
        inputs.append((args, {k: v for k, v in kwargs.items() if k != "past_key_values"}))
        outputs.append(out if isinstance(out, Tensor) else out[0])

    hook = find_blocks(model)[1][0].register_forward_hook(note, with_kwargs=True)
    ids = torch.randint(0, 64, (sequences, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for part in ids.split(2):
            model(part, use_cache=False)
    hook.remove()
    return inputs, outputs


def tuned(model: nn.Module, block: nn.Module, config: TuneConfig = FAST, **options):
    inputs, outputs = calls(model)
    return tune_block(block, inputs[:4], outputs[:4], (inputs[4:], outputs[4:]), config, **options)


def error(model: nn.Module, block: nn.Module) -> float:
    """Mean squared error on the held-out calls."""
    inputs, outputs = (part[4:] for part in calls(model))
    with torch.no_grad():
        found = [block(*args, **kwargs) for args, kwargs in inputs]
    return torch.stack([(f - o).square().mean() for f, o in zip(found, outputs, strict=True)]).mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_codes_unpacked_once_decode_and_differentiate_as_the_definition(kind: str):
    weight = KINDS[kind](torch.randn(32, 48, generator=torch.Generator().manual_seed(0)))
    decode = weight.decode
    plain = decode()
    gradient = torch.randn_like(plain)
    parameters = [p for p in decode.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(plain, parameters, gradient) if parameters else ()
    fast = UNPACKED[type(decode)](decode)()
    found = torch.autograd.grad(fast, parameters, gradient) if parameters else ()
    assert torch.equal(fast, plain)
    assert all(torch.allclose(f, w, rtol=2e-3, atol=1e-2) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("weights", "rows", "width"), [(1, 3, 1), (7, 1, 2), (5000, 3, 1), (2000, 137, 8)])
def test_sums_over_sorted_runs_are_the_sums_over_rows(weights: int, rows: int, width: int):
    index = Index(torch.randint(0, rows, (weights,)), rows)
    gradient = torch.randn(weights, width)
    plain = index.sums(gradient)
    index.sort()
    assert torch.allclose(index.sums(gradient), plain, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_lowers_the_held_out_error(kind: str):
    model = llama()
    block = compress_(copy.deepcopy(model.model.layers[0]), KINDS[kind])
    codes = {n: b.clone() for n, b in block.named_buffers()}
    before = error(model, block)
    report = tuned(model, block)
    assert report.before == pytest.approx(before, rel=1e-4)
    assert report.after == pytest.approx(error(model, block), rel=1e-4), "what is kept is what was measured"
    assert report.after < 0.95 * report.before and report.epoch > 0
    assert all(torch.equal(b, codes[n]) for n, b in block.named_buffers()), "codes stay"
    quantized = [m.quantized for m in block.modules() if isinstance(m, QuantizedLinear)]
    assert {p.dtype for w in quantized for p in w.parameters() if p.requires_grad} == {torch.float16}
    assert "forward" not in vars(quantized[0].decode) and block.mlp.up_proj._held is None


def test_int8_codebooks_learn_and_stay_int8():
    model = llama()
    block = compress_(copy.deepcopy(model.model.layers[0]), KINDS["additive int8"])
    decode = block.mlp.up_proj.quantized.decode
    before = decode.codebooks.clone(), decode.step.clone()
    tuned(model, block)
    assert not torch.equal(decode.codebooks, before[0]) and not torch.equal(decode.step, before[1])
    assert decode.codebooks.dtype == torch.int8 and decode.step.dtype == torch.float16
    assert (decode.codebooks.abs().amax((1, 2)) == 127).all() and not decode.codebooks.requires_grad
    assert decode.step.requires_grad and decode.step.grad is None


@pytest.mark.parametrize("size", [1e-9, 1e-6, 0.01, 3.0, 60000.0])
def test_the_int8_grid_is_near_and_rounding_twice_changes_nothing(size: float):
    words = torch.randn(3, 16, 4).clamp(-1, 1) * size
    words[1] = 0
    whole, step = int8_grid(words)
    near = whole.float() * step.float()
    assert ((near - words).abs() <= 0.51 * step.float() + 127 * 2**-11 * step.float()).all()
    again, same = int8_grid(near)
    assert size < 1e-3 or torch.equal(again, whole) and torch.equal(same, step)


def test_norms_and_biases_learn_and_dense_matrices_do_not():
    model = llama(bias=True)
    block = copy.deepcopy(model.model.layers[0])
    replace_(block, "mlp.up_proj", QuantizedLinear(lut(block.mlp.up_proj.weight.data), block.mlp.up_proj.bias))
    before = copy.deepcopy(block.state_dict())
    block.mlp.down_proj.weight.requires_grad_(False)
    tuned(model, block)
    moved = {name for name, t in block.state_dict().items() if not torch.equal(t, before[name])}
    assert {"input_layernorm.weight", "mlp.up_proj.bias", "self_attn.o_proj.bias", "mlp.down_proj.bias"} <= moved
    assert "mlp.down_proj.weight" not in moved and "self_attn.q_proj.weight" not in moved
    assert not block.mlp.down_proj.weight.requires_grad and block.self_attn.q_proj.weight.requires_grad, "as it was"
    assert all(p.grad is None for p in block.parameters())


def test_a_block_in_bf16_is_tuned_in_fp32_and_given_back_in_bf16():
    model = llama().bfloat16()
    block = copy.deepcopy(model.model.layers[0])
    replace_(block, "mlp.up_proj", QuantizedLinear(lut(block.mlp.up_proj.weight.data.float())))
    report = tuned(model, block)
    assert report.after < 0.95 * report.before
    assert block.input_layernorm.weight.dtype == block.mlp.down_proj.weight.dtype == torch.bfloat16
    assert error(model, block) == pytest.approx(report.after, rel=0.05)


def test_the_best_epoch_is_kept_and_patience_ends_the_run():
    model = llama()
    block = compress_(copy.deepcopy(model.model.layers[0]), lut)
    report = tuned(model, block, TuneConfig(epochs=12, batch=1, rates=(0.15,), patience=2))
    assert len(report.history) == min(12, report.epoch + 2) and len(set(report.history)) > 1
    assert report.after == min(report.before, *report.history)
    assert report.after == pytest.approx(error(model, block), rel=1e-4)


def test_a_rate_that_only_harms_leaves_the_block_as_it_was():
    model = llama()
    block = compress_(copy.deepcopy(model.model.layers[0]), lut)
    before = copy.deepcopy(block.state_dict())
    report = tuned(model, block, TuneConfig(epochs=4, rates=(30.0,), patience=2))
    assert report.epoch == 0 and report.after == report.before and len(report.history) == 2
    assert all(torch.equal(t, before[name]) for name, t in block.state_dict().items())


def test_of_several_rates_the_best_on_held_out_sequences_wins():
    model = llama()
    made = {}
    for rates in ((1e-5,), (1e-2,), (1e-5, 1e-2), (1e-2, 30.0)):
        block = compress_(copy.deepcopy(model.model.layers[0]), lut)
        made[rates] = tuned(model, block, TuneConfig(epochs=2, rates=rates))
    assert made[(1e-2,)].after < made[(1e-5,)].after
    for rates in ((1e-5, 1e-2), (1e-2, 30.0)):
        assert made[rates].rate == 1e-2 and made[rates].after == made[(1e-2,)].after


def test_tuning_twice_gives_the_same_numbers():
    model = llama()
    first, second = (compress_(copy.deepcopy(model.model.layers[0]), additive) for _ in range(2))
    assert tuned(model, first).history == tuned(model, second).history
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_discrete_step_may_rewrite_codes_after_each_epoch():
    """The seam of PV-Tuning: groups whose loss falls most by another code get it; wrong codes are mended."""
    model = llama()
    block = compress_(copy.deepcopy(model.model.layers[0]), lut)
    up = block.mlp.up_proj.quantized
    right, wrong = up.decode.codes.clone(), torch.zeros_like(up.decode.codes)
    up.decode.codes.copy_(wrong)
    seen = []

    def mend(gradient: dict[QuantizedWeight, Tensor]) -> None:
        seen.append(gradient[up].norm().item())
        assert gradient[up].shape == up.shape and len(gradient) == 7
        up.decode.codes.copy_(right)

    report = tuned(model, block, reencode=mend)
    assert len(seen) == len(report.history) == 4 and seen[0] > seen[1] > 0
    assert torch.equal(up.decode.codes, right), "the best epoch's codes"
    assert report.after < 0.7 * report.before


def test_a_step_that_makes_things_worse_is_undone():
    model = llama()
    block = compress_(copy.deepcopy(model.model.layers[0]), lut)
    codes = block.mlp.up_proj.quantized.decode.codes
    before = codes.clone()

    def spoil(gradient: dict[QuantizedWeight, Tensor]) -> None:
        codes.copy_(torch.randint(0, 256, codes.shape, dtype=torch.uint8))

    report = tuned(model, block, reencode=spoil)
    assert report.epoch == 0 and torch.equal(codes, before)


def test_a_whole_model_learns_its_teachers_predictions(tmp_path):
    teacher = Gemma3ForCausalLM(Gemma3TextConfig(**SHARED, pad_token_id=0, query_pre_attn_scalar=16)).eval()
    student = copy.deepcopy(teacher)
    compress_(student.model.layers, lut)
    shared = lut(student.lm_head.weight.data)
    scaled = copy.deepcopy(shared)
    scaled.decode.levels.data *= 32**0.5
    student.model.embed_tokens, student.lm_head = QuantizedEmbedding(scaled), QuantizedLinear(shared)
    ids = torch.randint(0, 64, (8, 12))
    report = tune_model(
        student, teacher, ids[:6].split(2), ids[6:].split(1), TuneConfig(epochs=4, batch=1, rates=(1e-2,))
    )
    assert report.after < 0.95 * report.before
    with torch.no_grad():
        log = [m(ids[6:]).logits.log_softmax(-1) for m in (teacher, student)]
    assert report.after == pytest.approx((log[0].exp() * (log[0] - log[1])).sum(-1).mean().item(), rel=1e-3)
    (tmp_path / "source").mkdir()
    save_model(student, tmp_path / "source", tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "out")(ids).logits, student(ids).logits), (
            "the file holds what was tuned"
        )


def test_weights_shared_by_embedding_and_head_stay_one():
    torch.manual_seed(0)
    teacher = LlamaForCausalLM(LlamaConfig(**SHARED, tie_word_embeddings=True)).eval()
    student = compress_(copy.deepcopy(teacher), lut)
    student.model.embed_tokens = QuantizedEmbedding(lut(teacher.lm_head.weight.data))
    student.lm_head = QuantizedLinear(student.model.embed_tokens.quantized)
    ids = torch.randint(0, 64, (6, 12))
    assert tune_model(student, teacher, [ids[:4]], [ids[4:]], FAST).epoch > 0
    assert student.lm_head.quantized is student.model.embed_tokens.quantized


@pytest.mark.parametrize(("train", "held_out"), [([], [torch.zeros]), ([torch.zeros], [])])
def test_nothing_to_learn_from_or_to_judge_by_is_refused(train: list, held_out: list):
    with pytest.raises(CompressError, match="held-out"):
        tune(compress_(llama().model.layers[0], lut), train, held_out, FAST)
