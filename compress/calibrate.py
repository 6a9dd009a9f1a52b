"""Run a model block by block and collect what its linear layers read. Knows modules; knows no method, no file format.

Letters: S sequences, T tokens of one, D inputs, N outputs, Q output groups of a weight.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress import ranks
from compress.errors import CompressError
from compress.guide import Guide


class Call(NamedTuple):
    """All that a block is called with, but for the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Stream:
    """The hidden states on their way through the blocks, and how each block is called on each batch of them.

    hidden: (S, T, D) in memory or mapped from a file. calls[block][batch].
    """

    hidden: Tensor
    batch: int
    calls: list[list[Call]]

    def batches(self) -> Iterator[tuple[int, slice]]:
        """The number and the rows of each batch."""
        for number, at in enumerate(range(0, len(self.hidden), self.batch)):
            yield number, slice(at, min(at + self.batch, len(self.hidden)))

    def inputs(self, index: int, device: torch.device) -> Iterator[tuple[slice, Tensor, Call]]:
        """For each batch: its rows, its hidden states (B, T, D) on the device, and the call of that block."""
        for number, rows in self.batches():
            yield rows, self.hidden[rows].to(device), _to(self.calls[index][number], device)

    def calls_of(self, index: int) -> Sequence[tuple[tuple[Any, ...], dict[str, Any]]]:
        """(args, kwargs) of that block for each batch, hidden states included; read when asked for."""
        calls = self.calls[index]
        return _Parts(self, lambda number, rows: ((self.hidden[rows], *calls[number].args), calls[number].kwargs))

    def parts(self) -> Sequence[Tensor]:
        """The hidden states (B, T, D) of each batch; read when asked for."""
        return _Parts(self, lambda number, rows: self.hidden[rows])


class _Parts(Sequence[Any]):
    def __init__(self, stream: Stream, read: Callable[[int, slice], Any]) -> None:
        self.rows, self.read = [rows for _, rows in stream.batches()], read

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return self.read(number, self.rows[number])


def room(shape: tuple[int, ...], dtype: torch.dtype, path: Path | None) -> Tensor:
    """An uninitialised tensor: in memory, or in a file at `path`."""
    if path is None:
        return torch.empty(shape, dtype=dtype)
    path.unlink(missing_ok=True)
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).view(shape)


@torch.no_grad()
def capture(model: nn.Module, blocks: nn.ModuleList, ids: Tensor, batch: int, path: Path | None = None) -> Stream:
    """What the blocks are called with: the inputs of the first and the arguments of all, for each batch of sequences.

    ids: (S, T). Costs one run of the first block; the others are passed by. path: file for the hidden states.
    """
    device, stream = next(model.parameters()).device, None
    returns_tuple = None
    for at in range(0, len(ids), batch):
        with _recording(blocks, returns_tuple) as seen:
            model(ids[at : at + batch].to(device), use_cache=False)
        returns_tuple = seen.returns_tuple
        if stream is None:
            shape = (len(ids), *seen.hidden.shape[1:])
            stream = Stream(room(shape, seen.hidden.dtype, path), batch, [[] for _ in blocks])
        stream.hidden[at : at + batch] = seen.hidden
        for calls, call in zip(stream.calls, seen.calls, strict=True):
            calls.append(next((c for c in calls[-1:] if _equal(c, call)), call))  # one copy of what repeats
    return stream


@dataclass
class _Seen:
    returns_tuple: bool | None
    hidden: Tensor | None = None
    calls: list[Call] = field(default_factory=list)


@contextlib.contextmanager
def _recording(blocks: nn.ModuleList, returns_tuple: bool | None) -> Iterator[_Seen]:
    """Inside, every block notes its arguments and hands its hidden states on."""
    seen, forwards = _Seen(returns_tuple), [block.forward for block in blocks]

    def stand_in(forward: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any, **kwargs: Any) -> Any:
            if args:
                hidden, args = args[0], args[1:]
            else:
                hidden = kwargs.pop("hidden_states")
            seen.hidden = hidden if seen.hidden is None else seen.hidden
            seen.calls.append(Call(args, {k: v for k, v in kwargs.items() if not _is_cache(v)}))
            if seen.returns_tuple is None:  # asked once: a block returns a tensor or a tuple
                seen.returns_tuple = isinstance(forward(hidden, *args, **kwargs), tuple)
            return (hidden,) if seen.returns_tuple else hidden

        return note

    for block, forward in zip(blocks, forwards, strict=True):
        block.forward = stand_in(forward)
    try:
        yield seen
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again


def _is_cache(value: Any) -> bool:
    return hasattr(value, "get_seq_length")  # a key-value cache would grow with every run


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return a is b or a == b


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Call):
        return Call(*(_to(part, device) for part in value))
    if type(value) in (list, tuple):
        return type(value)(_to(v, device) for v in value)
    if type(value) is dict:
        return {k: _to(v, device) for k, v in value.items()}
    return value


def run(block: nn.Module, x: Tensor, call: Call) -> Tensor:
    """The block's hidden states for x: (B, T, D) -> (B, T, D)."""
    out = block(x, *call.args, **call.kwargs)
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def advance_(stream: Stream, index: int, block: nn.Module, device: torch.device) -> None:
    """Replace the hidden states by the block's outputs."""
    for rows, x, call in stream.inputs(index, device):
        stream.hidden[rows] = run(block, x, call).to(stream.hidden)


class Statistics:
    """Hessians of linear layers: mean x xᵀ over all tokens, fp32, one tensor for layers that read the same input.

    guide: with it a layer's Hessian is (Q, D, D), token t of output group q weighted by guide[t, q] (GuidedQuant,
    arXiv:2505.07004); calls that do not fit it (an expert that saw other tokens than it did then) weigh 1 a token.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], guide: Guide | None = None) -> None:
        self.layers, self.guide = dict(layers), dict(guide or {})
        self.leader: dict[str, str] = {}  # layer -> the first layer that read the same tensor
        self.sums: dict[str, Tensor] = {}  # leader, or guided layer -> (Q, D, D)
        self.tokens = dict.fromkeys(layers, 0)
        self._reads: dict[tuple[int, int], tuple[str, Tensor]] = {}
        self._rows = slice(0, 0)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[Statistics]:
        """Inside, every call of a layer counts."""
        hooks = [m.register_forward_pre_hook(self._hook(n), with_kwargs=True) for n, m in self.layers.items()]
        try:
            yield self
        finally:
            self._reads.clear()
            for hook in hooks:
                hook.remove()

    def begin(self, tokens: slice) -> None:
        """A new run of the block, over these tokens of the calibration set."""
        self._reads.clear()
        self._rows = tokens

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._add(name, args[0] if args else kwargs["input"])

        return hook

    def _add(self, name: str, x: Tensor) -> None:
        # The same object, not changed since: q, k and v read it. Held until the run ends, so that no id comes twice.
        leader, _ = self._reads.setdefault((id(x), x._version), (name, x))
        if self.leader.setdefault(name, leader) != leader:
            raise CompressError(f"layer '{name}' shares its input with '{self.leader[name]}' in some calls only")
        flat = x.detach().reshape(-1, x.shape[-1]).float()  # (tokens, D)
        self.tokens[name] += len(flat)
        if name in self.guide:
            for total, weight in zip(self._sum(name), self._weights(name, flat).T, strict=True):
                total.addmm_((flat * weight[:, None]).T, flat)
        elif leader == name:
            self._sum(name)[0].addmm_(flat.T, flat)

    def _weights(self, name: str, flat: Tensor) -> Tensor:
        """(tokens, Q): 1 where the tokens are not those of the guide, as for an expert."""
        weights = self.guide[name][self._rows].to(flat)
        return weights if len(weights) == len(flat) else flat.new_ones(len(flat), weights.shape[1])

    def _sum(self, name: str) -> Tensor:
        if name not in self.sums:
            layer = self.layers[name]
            Q = self.guide[name].shape[1] if name in self.guide else 1
            self.sums[name] = torch.zeros(Q, layer.in_features, layer.in_features, device=layer.weight.device)
        return self.sums[name]

    def hessians(self) -> dict[str, Tensor]:
        """(Q, D, D) of each layer, over all processes; the identity for a layer that no token reached."""
        self._agree()
        made: dict[str, Tensor] = {}
        for name in self.layers:
            source = name if name in self.guide else self.leader.get(name, name)
            if source not in made:
                made[source] = self._mean(source)
            made[name] = made[source]
        return made

    def groups(self) -> list[list[str]]:
        """The layers that read the same input, in the order in which the block calls them."""
        made: dict[str, list[str]] = {}
        for name in sorted(self.layers, key=list(self.leader).index) if self.leader else self.layers:
            made.setdefault(self.leader.get(name, name), []).append(name)
        return list(made.values())

    def _agree(self) -> None:
        seen = [(leader, name) for each in ranks.all_of(list(self.leader.items())) for name, leader in each]
        for leader, name in seen + [(name, name) for name in self.layers]:
            self.leader.setdefault(name, leader)
        counts = torch.tensor(list(self.tokens.values()))
        ranks.add_up_(counts, *(self._sum(n) for n in self.layers if n in self.guide or self.leader[n] == n))
        self.tokens = dict(zip(self.tokens, counts.tolist(), strict=True))

    def _mean(self, name: str) -> Tensor:
        if not self.tokens[name]:
            return torch.eye(self.layers[name].in_features, device=self.layers[name].weight.device)[None]
        mean = self.sums.pop(name) / self.tokens[name]
        if not mean.isfinite().all():
            raise CompressError(f"the inputs of layer '{name}' are not finite: load the model in another dtype")
        return mean


@torch.no_grad()
def statistics(block: nn.Module, layers: Mapping[str, nn.Linear], stream: Stream, index: int, device: torch.device,
               guide: Guide | None = None) -> Statistics:  # fmt: skip
    """Statistics of the block's layers over a stream of inputs."""
    T = stream.hidden.shape[1]
    with Statistics(layers, guide).collecting() as made:
        for rows, x, call in stream.inputs(index, device):
            made.begin(slice(rows.start * T, rows.stop * T))
            run(block, x, call)
    return made
