"""Fine-tune what is continuous in compressed layers (scales, codebooks, tables, outliers, norms, biases); codes stay.

One loop for every kind of codes: `tune_block` fits a block to the uncompressed block's outputs, `tune_model` a model to
a teacher's logits. The epoch that does best on held-out sequences wins, with its numbers rounded as the file keeps them.
Knows modules and losses; knows no method, no file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress import ops, ranks
from compress.decode import Additive, Grid, Lut, Trellis, from_chains, int8_grid
from compress.errors import CompressError
from compress.linear import QuantizedEmbedding, QuantizedLinear, quantized_layers
from compress.weight import QuantizedWeight

Call = tuple[tuple, dict[str, Any]]  # what a block was called with: args, kwargs
Loss = Callable[[], Tensor]  # of one sequence or batch of them: a differentiable scalar
Reencode = Callable[[dict[QuantizedWeight, Tensor]], None]  # the epoch's mean gradient of each dense weight (N, D)

BETAS = 0.9, 0.95  # the second moment forgets fast: an epoch has few steps
REACH, LARGEST = 0.3, 1e-2  # by default steps add up to this share of a tensor's RMS, none is larger than that
RUN = 512  # gradients that one thread adds up in order


@dataclass(frozen=True)
class TuneConfig:
    """epochs: at most. batch: calls a step. rates: Adam steps tried, as a share of each tensor's RMS; the one that does
    best on held-out sequences wins; none: one that suits the number of steps. patience: epochs without gain before it
    stops. seed: the order of the calls.
    """

    epochs: int = 8
    batch: int = 4
    rates: tuple[float, ...] = ()
    patience: int = 2
    seed: int = 0


@dataclass(frozen=True)
class TuneReport:
    """Held-out loss before and after (`after` is of what was kept), the rate and epoch kept (0: nothing helped)."""

    before: float
    after: float
    rate: float
    epoch: int
    history: tuple[float, ...]  # held-out loss after each epoch at that rate
    seconds: float


def tune_block(
    block: nn.Module,
    inputs: Sequence[Call],
    targets: Sequence[Tensor],
    validation: tuple[Sequence[Call], Sequence[Tensor]],
    config: TuneConfig = TuneConfig(),  # noqa: B008  frozen
    reencode: Reencode | None = None,
) -> TuneReport:
    """Fit a block with compressed layers, in place, to what the uncompressed one gave; mean squared error.

    inputs: calls as the compressed prefix makes them. targets: outputs of the uncompressed block on the uncompressed
    inputs, one a call. validation: the same of held-out sequences. Tensors may lie on any device.
    """

    def losses(calls: Sequence[Call], wanted: Sequence[Tensor]) -> list[Loss]:
        return [partial(_block_loss, block, call, target) for call, target in zip(calls, wanted, strict=True)]

    return tune(block, losses(inputs, targets), losses(*validation), config, reencode)


def tune_model(
    model: nn.Module,
    teacher: Callable[[Tensor], Tensor],
    sequences: Sequence[Tensor],
    validation: Sequence[Tensor],
    config: TuneConfig = TuneConfig(),  # noqa: B008  frozen
    reencode: Reencode | None = None,
) -> TuneReport:
    """Fit a whole compressed model, in place, to a teacher's predictions: mean KL(teacher ‖ student) over tokens.

    teacher: token ids -> logits of the uncompressed model. sequences, validation: token ids (B, T), the latter held out.
    """

    def losses(batches: Sequence[Tensor]) -> list[Loss]:
        return [partial(_model_loss, model, teacher, ids) for ids in batches]

    return tune(model, losses(sequences), losses(validation), config, reencode)


def tune(
    module: nn.Module,
    train: Sequence[Loss],
    held_out: Sequence[Loss],
    config: TuneConfig,
    reencode: Reencode | None = None,
) -> TuneReport:
    """Minimise the mean of `train` over all that is continuous in the compressed layers of `module`, and its norms.

    With several processes (`compress.ranks`) each has its own `train`, and all the same `held_out`.
    reencode: called after each epoch; it may rewrite codes (a discrete step), and the epoch is judged after it.
    """
    if not train or not held_out:
        raise CompressError(f"tuning needs sequences to learn from ({len(train)}) and held-out ones ({len(held_out)})")
    begun, steps = time.perf_counter(), _steps(train, config)
    with _Masters(module) as masters:
        start, runs = masters.snapshot(), []
        for rate in config.rates or (min(LARGEST, 2 * REACH / steps),):
            masters.load(start)
            runs.append(_descend(masters, train, held_out, config, rate, reencode))
        best, report = min(runs, key=lambda run: run[1].after)
        masters.load(best)
    return replace(report, seconds=time.perf_counter() - begun)


def _descend(
    masters: _Masters,
    train: Sequence[Loss],
    held_out: Sequence[Loss],
    config: TuneConfig,
    rate: float,
    reencode: Reencode | None,
) -> tuple[list[Tensor], TuneReport]:
    """One run of Adam, its rate falling to zero, until held-out loss has not fallen for `patience` epochs."""
    optimizer, steps = torch.optim.Adam(masters.groups(rate), betas=BETAS), _steps(train, config)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order, longest = torch.Generator().manual_seed(config.seed), _longest(train)
    before = lowest = masters.evaluate(held_out)
    best, epoch, history = masters.snapshot(), 0, []
    while len(history) < config.epochs and len(history) - epoch < config.patience:
        gradient: dict[QuantizedWeight, Tensor] | None = None if reencode is None else {}
        for batch in torch.randperm(longest, generator=order).split(config.batch):
            masters.step([train[i % len(train)] for i in batch.tolist()], optimizer, gradient)
            decay.step()
        if reencode is not None:
            ranks.add_up_(*gradient.values())
            reencode(gradient)
            masters.unpack()
        history.append(masters.evaluate(held_out))
        if history[-1] < lowest:
            best, epoch, lowest = masters.snapshot(), len(history), history[-1]
    return best, TuneReport(before, lowest, rate, epoch, tuple(history), 0.0)


def _longest(train: Sequence[Loss]) -> int:
    """Of all processes: one with fewer takes some twice, so that all make as many steps."""
    return max(ranks.all_of(len(train)))


def _steps(train: Sequence[Loss], config: TuneConfig) -> int:
    return config.epochs * -(-_longest(train) // config.batch)


class _Masters:
    """While open: the tuned parameters are fp32 with gradients, codes lie unpacked, each step decodes a weight twice.

    int8 codebooks are real words meanwhile, their step 1.
    """

    def __init__(self, module: nn.Module) -> None:
        self.layers: dict[QuantizedWeight, list[QuantizedLinear | QuantizedEmbedding]] = {}
        for layer in quantized_layers(module).values():
            self.layers.setdefault(layer.quantized, []).append(layer)
        self.steps = {d.codebooks: d.step for d in self._decoders() if isinstance(d, Additive) and d.int8}
        steps = set(self.steps.values())
        coded = dict.fromkeys(p for weight in self.layers for p in weight.parameters() if p not in steps)
        inside = set(coded) | {p for layers in self.layers.values() for layer in layers for p in layer.parameters()}
        self.parameters = [*coded, *(p for p in module.parameters() if p not in coded and p.dim() <= 1)]
        self.frozen = [p for p in module.parameters() if p in steps or p not in inside and p.dim() > 1]
        self.buffers = [b for weight in self.layers for b in weight.buffers()]
        self.device = next(module.parameters()).device
        self.mixed = self.device.type == "cuda" or any(p.element_size() == 2 for p in set(self.frozen) - steps)

    def _decoders(self) -> dict[nn.Module, None]:
        return dict.fromkeys(weight.decode for weight in self.layers)

    def __enter__(self) -> _Masters:
        self.stored = [(p.dtype, p.requires_grad) for p in self.parameters]
        self.learning = [p.requires_grad for p in self.frozen]
        for p in self.parameters:
            p.data = p.data.float()
            p.requires_grad_(True)
        for books, step in self.steps.items():
            books.data, step.data = books.data * step.data.float(), torch.ones_like(step.data)
        for p in self.frozen:
            p.requires_grad_(False)
        self.unpack()
        return self

    def __exit__(self, *_: object) -> None:
        for p, (dtype, learning) in zip(self.parameters, self.stored, strict=True):
            p.grad = None
            p.requires_grad_(learning)
            if p in self.steps:
                p.data, self.steps[p].data = int8_grid(p.data)
            else:
                p.data = p.data.to(dtype)
        for p, learning in zip(self.frozen, self.learning, strict=True):
            p.requires_grad_(learning)
        for decode in self._decoders():
            del decode.forward
        self._hold(None)

    def unpack(self) -> None:
        """Let each decoder read its codes as they are now from integers instead of packed bits."""
        for decode in self._decoders():
            decode.forward = UNPACKED[type(decode)](decode)

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """A step is `rate` of a tensor's RMS: one rate serves scales of 0.01 and codebooks of 1."""
        size = [p.square().mean().sqrt().item() if p.numel() else 0.0 for p in self.parameters]
        return [{"params": [p], "lr": rate * (rms or 0.01)} for p, rms in zip(self.parameters, size, strict=True)]

    def step(
        self,
        batch: Sequence[Loss],
        optimizer: torch.optim.Optimizer,
        gradient: dict[QuantizedWeight, Tensor] | None,
    ) -> None:
        """One step over the mean of `batch`. gradient: where the dense gradients are added up, if wanted."""
        leaves = self._hold(lambda weight: weight.dense().detach().requires_grad_())
        for loss in batch:
            with self._autocast():
                value = loss() / len(batch)
            value.backward()
        for weight, leaf in leaves.items():
            slope = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad  # none: an expert that was not asked
            weight.dense().backward(slope)  # decoded again: the graph of one weight at a time
            if gradient is not None:
                gradient[weight] = gradient.get(weight, 0) + slope
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        ranks.add_up_(*(p.grad for p in self.parameters))
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self, held_out: Sequence[Loss]) -> float:
        """Mean loss with every number as the file will hold it."""
        with self._rounded():
            self._hold(lambda weight: weight.dense())
            with self._autocast():
                return ranks.same((sum(loss() for loss in held_out) / len(held_out)).item())

    def snapshot(self) -> list[Tensor]:
        """Parameters, rounded, and codes: what `load` brings back."""
        with self._rounded():
            return [t.detach().clone() for t in (*self.parameters, *self.buffers)]

    @torch.no_grad()
    def load(self, state: list[Tensor]) -> None:
        """Back to a snapshot."""
        for tensor, value in zip((*self.parameters, *self.buffers), state, strict=True):
            tensor.copy_(value)
        self.unpack()

    @contextmanager
    def _rounded(self) -> Iterator[None]:
        exact = [p.data for p in self.parameters]
        for p, (dtype, _) in zip(self.parameters, self.stored, strict=True):
            p.data = _on_int8_grid(p.data) if p in self.steps else p.data.to(dtype).float()
        yield
        for p, value in zip(self.parameters, exact, strict=True):
            p.data = value

    def _hold(self, make: Callable[[QuantizedWeight], Tensor] | None) -> dict[QuantizedWeight, Tensor]:
        """Give every layer the tensor that `make` makes of its weight; layers that share a weight share it."""
        held = {weight: make(weight) if make else None for weight in self.layers}
        for weight, layers in self.layers.items():
            for layer in layers:
                layer._held = held[weight]
        return held

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed)


def _on_int8_grid(words: Tensor) -> Tensor:
    whole, step = int8_grid(words)
    return whole.float() * step.float()


def _block_loss(block: nn.Module, call: Call, target: Tensor) -> Tensor:
    device = next(block.parameters()).device
    args, kwargs = _moved(call, device)
    out = block(*args, **kwargs)
    out = out if isinstance(out, Tensor) else out[0]
    return F.mse_loss(out.float(), _moved(target, device).float())


def _model_loss(model: nn.Module, teacher: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    ids = _moved(ids, next(model.parameters()).device)
    with torch.no_grad():
        wanted = _logits(teacher(ids)).float().log_softmax(-1).flatten(0, -2)
    found = _logits(model(ids)).float().log_softmax(-1).flatten(0, -2)
    return F.kl_div(found, wanted.to(found.device), log_target=True, reduction="batchmean")


def _logits(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors in nested tuples, lists and dicts, on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if type(value) in (tuple, list):
        return type(value)(_moved(v, device) for v in value)
    return {k: _moved(v, device) for k, v in value.items()} if type(value) is dict else value


class Index:
    """Which row of a table each weight reads; sums gradients by row in a fixed order, on the GPU without atomics."""

    def __init__(self, rows: Tensor, count: int) -> None:
        self.rows, self.count = rows.flatten().int(), count
        if rows.is_cuda:
            self.sort()

    def sort(self) -> None:
        """The order that brings equal rows together, in runs that are added up apart and then joined."""
        counts = torch.bincount(self.rows, minlength=self.count)
        self.order = self.rows.argsort(stable=True).int()
        self.runs = (counts + RUN - 1) // RUN
        self.lengths = torch.full((int(self.runs.sum()),), RUN, device=counts.device)
        used = self.runs > 0
        self.lengths[self.runs.cumsum(0)[used] - 1] = (counts - (self.runs - 1) * RUN)[used]

    def sums(self, gradient: Tensor) -> Tensor:
        """gradient: (weights, width) -> (count, width)."""
        if not hasattr(self, "order"):
            return gradient.new_zeros(self.count, gradient.shape[1]).index_add_(0, self.rows, gradient)
        for lengths in (self.lengths, self.runs):
            gradient = gradient[self.order] if lengths is self.lengths else gradient
            gradient = torch.segment_reduce(gradient, "sum", lengths=lengths, axis=0, unsafe=True)
        return gradient


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Index) -> Tensor:
        """table: (count, width) -> (weights, width)."""
        ctx.index = index
        return table.index_select(0, index.rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.index.sums(gradient.contiguous()), None


def _grid(decode: Grid) -> Callable[[], Tensor]:
    codes = ops.unpack(decode.codes, decode.D, decode.bits)
    codes = codes.to(torch.uint8) if decode.bits <= 8 else codes

    def forward() -> Tensor:
        if decode.zero is None:
            return codes.float() - 2 ** (decode.bits - 1)
        zero = decode.zero()
        return (codes.float().unflatten(1, (zero.shape[1], -1)) - zero[..., None]).flatten(1)

    return forward


def _lut(decode: Lut) -> Callable[[], Tensor]:
    codes, entries = ops.unpack(decode.codes, decode.D, decode.bits), 2**decode.bits
    if decode.rows > 1:  # row n reads entries n·2^bits onwards
        codes = codes + entries * torch.arange(decode.rows, device=codes.device, dtype=torch.int32)[:, None]
    index = Index(codes, decode.rows * entries)
    return lambda: _Lookup.apply(decode.levels.float().view(-1, 1), index).view(decode.N, decode.D)


def _additive(decode: Additive) -> Callable[[], Tensor]:
    index = [Index(codes, 2**decode.bits) for codes in decode.indices().unbind(-1)]

    def forward() -> Tensor:
        words = map(_Lookup.apply, decode.words(), index)
        return sum(words).view(decode.N, decode.D)

    return forward


def _trellis(decode: Trellis) -> Callable[[], Tensor]:
    index = Index(decode.states(), len(decode.lut))
    return lambda: from_chains(
        _Lookup.apply(decode.lut.float()[:, None], index).view(decode.codes.shape[0], -1), decode.D
    )


UNPACKED: dict[type[nn.Module], Callable[[Any], Callable[[], Tensor]]] = {
    Grid: _grid,
    Lut: _lut,
    Additive: _additive,
    Trellis: _trellis,
}
