"""The cheapest paths through a bit-shift trellis (QTIP, arXiv:2406.11235), many chains at once. Knows no weight, no layer.

A state is a window of L bits over a stream, `step` = K of them new each time: next = state >> K | new << (L - K).
The 2^K states that differ in their low bits alone have the same successors, so one minimum over them serves all.

Letters: T steps, C chains, P = 2^K, S = 2^L states, J = S / P sets of states with the same successors. Costs lie by
(low bits, set, chain): the state set << K | low is row low * J + set, so that a minimum runs over contiguous blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compress import native, nvrtc

FAR = 1e30  # the cost of a start that is not allowed


class Viterbi:
    """A search over C chains of T steps whose buffers serve every call; one kernel does it all where there is one."""

    def __init__(self, lut: Tensor, step: int, T: int, C: int, plain: bool = False) -> None:
        """lut: (S,) fp32, the value of each state. plain: in torch, the definition, whatever kernels there are."""
        S, P, J = len(lut), 1 << step, len(lut) >> step
        assert J >= 1, "a window holds at least the new bits"
        self.T, self.C, self.step, self.lut, self.search = T, C, step, lut, self._loop
        if not plain and lut.is_cuda and 32 <= S <= 256 and P <= 32 and self.shared_bytes() <= nvrtc.SHARED:
            self.kernel = nvrtc.kernel("viterbi", lut.device.index or 0)
            self.search = self._launch if self.kernel else self._loop
        elif not plain and lut.device.type == "cpu" and native.available() and step <= 8 and J <= native.MOST_SETS:
            self.search = self._native
        if self.search == self._loop:
            self.best = lut.new_zeros(J, C)
            by_row = lut.view(J, P).T.flatten()
            self.terms = torch.stack((by_row.square(), -2 * by_row, torch.ones_like(lut)), 1).expand(T, S, 3)
            self.features, self.cost = lut.new_zeros(T, 3, C), lut.new_zeros(T, S, C)
            self.leaving = list(self.cost.view(T, P, J, C))
            both = min(P, J)  # the set before a state is state % J: its low bits, then low bits of its own set
            self.entering = list(self.cost.view(T, P // both, both, both, J // both, C))
            self.before = self.best.view(J // both, both, C).transpose(0, 1)[:, None]

    def paths(self, target: Tensor, weight: Tensor, start: Tensor | None = None) -> Tensor:
        """The states (T, C) int64 that minimise sum over t of weight (target - lut[state])^2 in each chain.

        target, weight: (T, C) fp32. start: (C,) int64 the state before the first, or None if any may be the first.
        """
        return self.search(target, weight, start)

    def shared_bytes(self) -> int:
        """What a block of the kernel keeps: costs of two steps, a chain's inputs, its low bits and its path."""
        J = len(self.lut) >> self.step
        return 4 * (2 * J + 2 * self.T) + self.T * J + self.T

    def _launch(self, target: Tensor, weight: Tensor, start: Tensor | None) -> Tensor:
        states = torch.empty(self.T, self.C, dtype=torch.int64, device=self.lut.device)
        target, weight = target.float().contiguous(), weight.float().contiguous()
        start = None if start is None else start.long().contiguous()
        sizes = self.T, self.C, self.step
        self.kernel(self.C, len(self.lut), self.shared_bytes(), target, weight, start, self.lut, states, *sizes)
        return states

    def _native(self, target: Tensor, weight: Tensor, start: Tensor | None) -> Tensor:
        return native.viterbi(target, weight, start, self.lut, self.step)

    def _loop(self, target: Tensor, weight: Tensor, start: Tensor | None) -> Tensor:
        torch.stack((weight, weight * target, weight * target * target), 1, out=self.features)
        self.best.fill_(FAR if start is not None else 0)
        if start is not None:
            self.best.scatter_(0, (start >> self.step)[None], 0)
        torch.bmm(self.terms, self.features, out=self.cost)  # weight (target - lut)^2
        for entering, leaving in zip(self.entering, self.leaving, strict=True):
            entering.add_(self.before)
            torch.amin(leaving, 0, out=self.best)
        return trace(self.cost, self.step) if self.cost.is_cuda else trace_small(self.cost, self.step)


def trace(cost: Tensor, step: int) -> Tensor:
    """The states (T, C) int64 of the path that ends cheapest. cost: (T, S, C), of the cheapest path to each state."""
    T, S, C = cost.shape
    P, J = 1 << step, S >> step
    leaving, last = cost.view(T, P, J, C), cost[-1].argmin(0)
    states = [last % J << step | last // J]
    for t in range(T - 2, -1, -1):
        kept = states[-1] & J - 1
        low = leaving[t].gather(1, kept.expand(P, 1, C))[:, 0].argmin(0)
        states.append(torch.add(low, kept, alpha=P))
    return torch.stack(states[::-1])


def trace_small(cost: Tensor, step: int) -> Tensor:
    """`trace` through numpy, whose calls on a few hundred numbers take a third of torch's time."""
    T, S, C = cost.shape
    P, J = 1 << step, S >> step
    leaving, chain, last = cost.view(T, P, J, C).numpy(), np.arange(C), cost[-1].numpy().argmin(0)
    states = np.empty((T, C), np.int64)
    states[-1] = last % J << step | last // J
    for t in range(T - 2, -1, -1):
        kept = states[t + 1] & J - 1
        states[t] = kept << step | leaving[t][:, kept, chain].argmin(0)
    return torch.from_numpy(states)
