"""How much each token matters to the loss at each layer (GuidedQuant, arXiv:2505.07004): squared gradients, one pass.

Knows modules; knows no Hessian, no method. Letters: S sequences, T tokens of one, Q output groups of a weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compress import ranks
from compress.blocks import plain_linears
from compress.errors import CompressError

Guide = dict[str, Tensor]  # of a block: layer -> (S · T, Q), how much each output group of each token matters


def guides(model: nn.Module, blocks: nn.ModuleList, ids: Tensor, groups: int, batch: int) -> list[Guide]:
    """GuidedQuant's weights of every layer of every block, from one backward pass of the next-token loss over `ids`.

    Of a token and an output group: the mean square of the loss's gradient with respect to the group's outputs, over
    its mean in the layer. bf16, on the CPU. A layer that not every token reaches gets none.
    """
    if ids.shape[1] < 2:
        raise CompressError("guided Hessians need sequences of at least 2 tokens")
    squares = _Squares(blocks, ids.numel(), groups)
    model.requires_grad_(False)
    device = next(model.parameters()).device
    with squares.collecting(), torch.enable_grad(), _differentiable(model.get_input_embeddings()):
        for at in range(0, len(ids), batch):
            part = ids[at : at + batch].to(device)
            squares.begin(slice(at * ids.shape[1], at * ids.shape[1] + part.numel()))
            logits = model(part, use_cache=False).logits[:, :-1]
            nn.functional.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum").backward()
    return squares.finished()


@contextlib.contextmanager
def _differentiable(embedding: nn.Module) -> Iterator[None]:
    hook = embedding.register_forward_hook(lambda module, args, out: out.requires_grad_(True))
    try:
        yield
    finally:
        hook.remove()


class _Squares:
    """Collects mean squares of gradients with respect to layers' outputs."""

    def __init__(self, blocks: nn.ModuleList, tokens: int, groups: int) -> None:
        self.blocks, self.groups, self.tokens, self.rows = blocks, groups, tokens, slice(0, 0)
        self.found: list[dict[str, Tensor]] = [{} for _ in blocks]
        self.calls: dict[tuple[int, str], int] = {}  # tokens seen

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        hooks = [
            layer.register_forward_hook(self._hook(index, name))
            for index, block in enumerate(self.blocks)
            for name, layer in plain_linears(block).items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin(self, tokens: slice) -> None:
        self.rows = tokens

    def _hook(self, index: int, name: str) -> Callable[..., None]:
        def forward(layer: nn.Module, args: Any, out: Tensor) -> None:
            if out.requires_grad:
                out.register_hook(lambda gradient: self._add(index, name, gradient))

        return forward

    def _add(self, index: int, name: str, gradient: Tensor) -> None:
        flat = gradient.detach().flatten(0, -2).float().square()
        if len(flat) != self.rows.stop - self.rows.start:
            return  # an expert: its tokens differ from run to run
        parts = flat.tensor_split(min(self.groups, flat.shape[1]), 1)
        room = self.found[index].setdefault(name, torch.empty(self.tokens, len(parts), dtype=torch.bfloat16))
        room[self.rows] = torch.stack([p.mean(1) for p in parts], 1).to(room)
        self.calls[index, name] = self.calls.get((index, name), 0) + len(flat)

    def finished(self) -> list[Guide]:
        """Each layer's weights over their mean in all processes."""
        whole = [(i, name) for (i, name), tokens in self.calls.items() if tokens == self.tokens]
        everywhere = set.intersection(*({(i, name) for i, name in each} for each in ranks.all_of(whole)))
        made: list[Guide] = [{} for _ in self.blocks]
        for index, name in sorted(everywhere):
            made[index][name] = self._normal(self.found[index][name])
        return made

    @staticmethod
    def _normal(weights: Tensor) -> Tensor:
        total = torch.tensor([weights.float().sum(), weights.numel()])
        ranks.add_up_(total)
        return (weights.float() / (total[0] / total[1]).clamp(min=1e-38)).bfloat16()
