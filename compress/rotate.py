"""Rotate the hidden space of a model so that its weights have no outliers, without changing what it computes (QuaRot).

With an orthogonal Q (arXiv:2404.00456): the embedding's rows become E Q, layers that read the hidden state through an
RMSNorm W diag(g) Q with the norm's gain g set to 1, layers that write to it Qᵀ W; values and the output projection of
attention are rotated head by head. All is folded into the weights: nothing is left to do at run time. Who reads and
who writes is found by watching a run; every block is tried on a copy first, and a model that would change is refused.
Knows modules; knows no type of model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress import ops
from compress.blocks import find_blocks, plain_linears
from compress.errors import CompressError

TOKENS = 12  # of the sequence that is watched


@dataclass(frozen=True)
class RotateReport:
    """What was rotated. tied: the embedding and the head still share one matrix. change: of logits, relative."""

    residual: bool
    heads: bool
    tied: bool
    change: float


class Rotation:
    """A random orthogonal matrix: signs, then Hadamard on the largest power of two in n, times Hartley on the rest."""

    def __init__(self, n: int, chance: torch.Generator) -> None:
        self.block = ops.power_of_two_in(n, n)
        self.signs = torch.randint(0, 2, (n,), generator=chance).float() * 2 - 1
        step = torch.arange(n // self.block, dtype=torch.float64)
        angle = 2 * torch.pi / len(step) * (step[:, None] * step % len(step))
        self.small = ((angle.cos() + angle.sin()) / len(step) ** 0.5).float()  # symmetric, no entry above √(2 / size)

    def rows(self, x: Tensor) -> Tensor:
        """x Q: each row (…, n) rotated, in fp32."""
        small = self.small.to(x.device)
        parts = ops.hadamard((x.float() * self.signs.to(x.device)).unflatten(-1, (-1, self.block)), self.block)
        return (small @ parts).flatten(-2)

    def columns(self, x: Tensor) -> Tensor:
        """Qᵀ x: each column of (n, m) rotated."""
        return self.rows(x.T).T


@dataclass
class Plan:
    """What to do with a block; names are of its submodules.

    norms: norm -> layers that read the hidden state through it. writers: layers whose outputs are added to the hidden
    state. posts: norms between a writer and the hidden state. values: writer -> (layer, its chunks of rows that hold
    values, head_dim).
    """

    norms: dict[str, list[str]] = field(default_factory=dict)
    writers: list[str] = field(default_factory=list)
    posts: list[str] = field(default_factory=list)
    values: dict[str, tuple[str, list[int], int]] = field(default_factory=dict)


@torch.no_grad()
def rotate_(
    model: nn.Module, seed: int = 0, residual: bool = True, heads: bool = True, untie: bool = True
) -> RotateReport:
    """Rotate a causal language model in place, before it is compressed; best in fp32.

    residual: the hidden state. heads: values and output projections. untie: the final norm's gain has to move into the
    head, so an embedding that the head shares stays shared only if all gains are equal; else it is given a copy, or,
    with untie False, refused. Raises CompressError, the model unchanged, naming the layer that rotation cannot pass.
    """
    prefix, blocks = find_blocks(model)
    if not (residual or heads):
        raise CompressError("nothing to rotate: choose residual, heads or both")
    ids = torch.randint(0, model.get_input_embeddings().weight.shape[0], (2, TOKENS), generator=_chance(seed))
    long, short = (_watch(model, blocks, part.to(next(model.parameters()).device)) for part in (ids, ids[:1, :1]))
    chance = _chance(seed)
    hidden = Rotation(long.calls[0][0].shape[-1], chance) if residual else None
    plans = [_plan(f"{prefix}.{i}.", block, long, short if heads else None) for i, block in enumerate(blocks)]
    spins = {n: Rotation(n, chance) for n in sorted({n for plan in plans for _, _, n in plan.values.values()})}
    for i, (block, plan) in enumerate(zip(blocks, plans, strict=True)):
        if hidden is not None:
            _check_norms(f"{prefix}.{i}.", block, plan, len(hidden.signs))
        _try(f"{prefix}.{i}", block, plan, long.calls[i], hidden, spins)
    ends = _ends(model, blocks, long, untie) if residual else None
    for block, plan in zip(blocks, plans, strict=True):
        _apply_(block, plan, hidden, spins)
    if ends is not None:
        _rotate_ends_(model, *ends, hidden)
    change = _difference(model(ids.to(long.logits.device), use_cache=False).logits, long.logits)
    _refuse_change(type(model).__name__, change, long.logits.dtype)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return RotateReport(residual, heads, tied, change)


def _chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class _Run:
    """What was seen: inputs and outputs of modules, (hidden, args, kwargs, out) of each block."""

    reads: dict[nn.Module, Tensor] = field(default_factory=dict)
    gives: dict[nn.Module, Tensor] = field(default_factory=dict)
    calls: list[tuple[Tensor, tuple, dict[str, Any], Tensor]] = field(default_factory=list)
    logits: Tensor | None = None


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, seen through views; a run keeps all that was seen in memory."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _watch(model: nn.Module, blocks: nn.ModuleList, ids: Tensor) -> _Run:
    run = _Run()
    with _hooks(model, blocks, run):
        run.logits = model(ids, use_cache=False).logits
    return run


@contextmanager
def _hooks(model: nn.Module, blocks: nn.ModuleList, run: _Run) -> Iterator[None]:
    def leaf(module: nn.Module, args: tuple, out: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
            run.reads[module], run.gives[module] = args[0], out

    def whole(block: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        hidden, args, kwargs = _split(args, kwargs)
        run.calls.append((hidden, args, kwargs, out if isinstance(out, Tensor) else out[0]))

    hooks = [m.register_forward_hook(leaf) for m in model.modules() if not list(m.children())]
    hooks += [block.register_forward_hook(whole, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _split(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, tuple, dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {k: v for k, v in kwargs.items() if k != "hidden_states"}


def _plan(prefix: str, block: nn.Module, run: _Run, short: _Run | None) -> Plan:
    """Who reads the hidden state, who writes to it, and where values are, by which tensors are the same."""
    D, plan, linears = run.calls[0][0].shape[-1], Plan(), plain_linears(block)
    normed = {name: m for name, m in block.named_modules() if _is_norm(m, D) and m in run.gives}
    for name, norm in normed.items():
        if readers := [n for n, m in linears.items() if m in run.reads and _same(run.reads[m], run.gives[norm])]:
            plan.norms[name] = readers
    reading = {n for readers in plan.norms.values() for n in readers}
    if not reading:
        raise CompressError(
            f"cannot rotate '{prefix[:-1]}': no linear layer in it reads the hidden state through a norm"
        )
    plan.writers = [n for n, m in linears.items() if n not in reading and m.out_features == D and m in run.gives]
    written = [run.gives[linears[n]] for n in plan.writers]
    plan.posts = [
        name
        for name, norm in normed.items()
        if name not in plan.norms and any(_same(run.reads[norm], out) for out in written)
    ]
    if short is not None:
        plan.values = {n: found for n in plan.writers if (found := _values(block, n, sorted(reading), short))}
        if not plan.values:
            raise CompressError(
                f"cannot rotate the heads of '{prefix[:-1]}': what attention puts out is no mean of values"
            )
    return plan


def _check_norms(prefix: str, block: nn.Module, plan: Plan, D: int) -> None:
    """RMSNorms alone, and those behind a layer with equal gains: x Q / |x Q| is (x / |x|) Q, but gains stay behind."""
    for name in (*plan.norms, *plan.posts):
        gain = _gain(prefix + name, block.get_submodule(name), D)
        if name in plan.posts and not _uniform(gain):
            raise CompressError(
                f"cannot rotate past '{prefix}{name}': behind a layer, it scales channels unevenly (rotate heads only)"
            )


def _is_norm(module: nn.Module, D: int) -> bool:
    weight = getattr(module, "weight", None)
    return not list(module.children()) and isinstance(weight, Tensor) and weight.shape == (D,)


def _values(block: nn.Module, writer: str, readers: list[str], short: _Run) -> tuple[str, list[int], int] | None:
    """With a single token attention hands values on as they are: find the chunks of a layer that a writer reads."""
    head_dim = getattr(block.get_submodule(writer.rpartition(".")[0]), "head_dim", None)
    if not head_dim:
        return None
    read = short.reads[block.get_submodule(writer)].view(-1, head_dim)
    for name in readers:
        given = short.gives[block.get_submodule(name)].flatten()
        if len(given) % head_dim == 0:
            equal = torch.isclose(read[:, None], given.view(1, -1, head_dim), rtol=1e-5, atol=0).all(-1)
            if equal.any(1).all():
                return name, equal.any(0).nonzero().flatten().tolist(), head_dim
    return None


def _gain(name: str, norm: nn.Module, D: int) -> Tensor:
    """(D,) fp32: what an RMSNorm multiplies its channels with, measured. Refuses any other norm."""
    weight = norm.weight
    x = 30 * torch.randn(8, D, generator=_chance(0)).to(weight)  # large: epsilon does not show
    unit = x.float() / x.float().square().mean(-1, keepdim=True).sqrt()
    y = norm(x).float()
    gain = (y * unit).sum(0) / unit.square().sum(0)
    if (y - unit * gain).abs().max() > _tolerance(weight.dtype) * y.abs().max().clamp(min=1e-6) * 4:
        raise CompressError(f"cannot rotate past '{name}' ({type(norm).__name__}): it is no RMSNorm")
    return gain


def _uniform(gain: Tensor) -> bool:
    return bool((gain - gain.mean()).abs().max() <= 1e-5 * gain.abs().max())


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2


def _apply_(block: nn.Module, plan: Plan, hidden: Rotation | None, spins: dict[int, Rotation]) -> None:
    """Fold the rotations into the weights of a block."""
    at = block.get_submodule
    for name, (source, chunks, head_dim) in plan.values.items():
        _spin_heads_(at(source), at(name), chunks, spins[head_dim])
    if hidden is None:
        return
    for name, readers in plan.norms.items():
        gain = _take_gain_(at(name), len(hidden.signs))
        for reader in readers:
            _set_(at(reader).weight, hidden.rows(at(reader).weight.float() * gain))
    for name in plan.writers:
        _set_(at(name).weight, hidden.columns(at(name).weight))
        if at(name).bias is not None:
            _set_(at(name).bias, hidden.rows(at(name).bias))


def _spin_heads_(source: nn.Linear, writer: nn.Linear, chunks: list[int], spin: Rotation) -> None:
    head_dim = len(spin.signs)
    rows = source.weight.view(-1, head_dim, source.in_features)
    rows[chunks] = spin.rows(rows[chunks].transpose(1, 2)).transpose(1, 2).to(rows)
    if source.bias is not None:
        parts = source.bias.view(-1, head_dim)
        parts[chunks] = spin.rows(parts[chunks]).to(parts)
    _set_(writer.weight, spin.rows(writer.weight.unflatten(1, (-1, head_dim))).flatten(1))


def _take_gain_(norm: nn.Module, D: int) -> Tensor:
    """The norm's gain, which becomes 1 (its weight may be the gain, or the gain less 1)."""
    gain = _gain("norm", norm, D)
    offset = (gain - norm.weight.float()).mean().round()
    gain = norm.weight.float() + offset
    _set_(norm.weight, (1 - offset).expand(D))
    return gain


def _set_(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(value.to(parameter))


def _try(
    name: str,
    block: nn.Module,
    plan: Plan,
    call: tuple[Tensor, tuple, dict[str, Any], Tensor],
    hidden: Rotation | None,
    spins: dict[int, Rotation],
) -> None:
    """Whether a rotated copy of the block gives rotated outputs for rotated inputs."""
    x, args, kwargs, out = call
    twin, turn = copy.deepcopy(block), _turn(hidden)
    _apply_(twin, plan, hidden, spins)
    found = twin(turn(x).to(x), *args, **kwargs)
    found = found if isinstance(found, Tensor) else found[0]
    _refuse_change(name, _difference(found, turn(out)), x.dtype)


def _turn(hidden: Rotation | None) -> Callable[[Tensor], Tensor]:
    return (lambda x: x) if hidden is None else hidden.rows


def _difference(found: Tensor, wanted: Tensor) -> float:
    return ((found.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp(min=1e-30)).item()


def _refuse_change(name: str, change: float, dtype: torch.dtype) -> None:
    if not change <= _tolerance(dtype):
        raise CompressError(
            f"rotation changes what '{name}' computes (by {change:.1e}): it holds more than norms and linears"
        )


def _ends(model: nn.Module, blocks: nn.ModuleList, run: _Run, untie: bool) -> tuple[nn.Module, bool]:
    """The final norm, and whether its gain has to move into the head; checks both ends of the blocks."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    D = run.calls[0][0].shape[-1]
    names = {m: n for n, m in model.named_modules()}
    norm = next((m for m in names if _is_norm(m, D) and m in run.gives and _same(run.gives[m], run.reads[head])), None)
    if norm is None or not torch.equal(run.reads[norm], run.calls[-1][3]):
        raise CompressError(f"cannot rotate '{names[head]}': no norm alone stands between the last block and it")
    first, given = run.calls[0][0].float(), run.gives[embedding].float()
    if _difference(first * given.norm() / first.norm().clamp(min=1e-30), given) > _tolerance(run.logits.dtype):
        raise CompressError(f"cannot rotate '{names[embedding]}': something is added before the first block reads it")
    tied, gain = head.weight is embedding.weight, _gain(names[norm], norm, D)
    if tied and not untie and not _uniform(gain):
        raise CompressError(f"cannot rotate with embedding and head tied: '{names[norm]}' scales channels unevenly")
    return norm, not (tied and _uniform(gain))


def _rotate_ends_(model: nn.Module, norm: nn.Module, fold: bool, hidden: Rotation) -> None:
    """E Q at both ends; `fold`: with the norm's gain in the head, which then is a matrix of its own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if fold:
        gain = _take_gain_(norm, len(hidden.signs))
        folded = hidden.rows(head.weight.float() * gain).to(head.weight)
        if head.weight is embedding.weight:
            head.weight = nn.Parameter(folded, requires_grad=head.weight.requires_grad)
            for config in (model.config, model.config.get_text_config()):
                config.tie_word_embeddings = False
        else:
            _set_(head.weight, folded)
    _set_(embedding.weight, hidden.rows(embedding.weight))
