"""Muon for the hidden matrices, AdamW for embeddings and norms. Knows parameters; knows no data.

Muon: Jordan et al. 2024 (momentum, orthogonalised by five Newton-Schulz steps), with the scale and the weight decay of
Liu et al., arXiv:2502.16982: an update has the root mean square of AdamW's, so both share one learning rate.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

ADAM_RMS = 0.2


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """(K, N, D) -> nearly (K, N, D) with singular values near 1, each matrix by itself."""
    x = g.bfloat16() if g.is_cuda else g.float()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if wide else x.mT


def _shared(stack: Tensor) -> Tensor:
    """`orthogonalize` of a stack (K, N, D), each process of a group doing its part."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return orthogonalize(stack)
    world, rank = dist.get_world_size(), dist.get_rank()
    padded = torch.cat((stack, stack.new_zeros(-len(stack) % world, *stack.shape[1:])))  # (world * part, N, D)
    mine = orthogonalize(padded.chunk(world)[rank])
    out = mine.new_empty(padded.shape)
    dist.all_gather_into_tensor(out, mine.contiguous())
    return out[: len(stack)]


class Muon(torch.optim.Optimizer):
    """Matrices of one shape are stacked, so that a step is a few large products."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for same in by_shape.values():
                self._step(same, group)

    def _step(self, params: list[nn.Parameter], group: dict) -> None:
        grads = [p.grad for p in params]
        moments = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
        torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, moments, group["momentum"])
        update = _shared(torch.stack(nesterov))
        scale = ADAM_RMS * max(params[0].shape) ** 0.5
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(
            params, [u.to(p.dtype) for u, p in zip(update, params, strict=True)], alpha=-group["lr"] * scale
        )


def optimizers(
    model: nn.Module, lr: float, weight_decay: float, embed_decay: float = 0.0
) -> list[torch.optim.Optimizer]:
    """Muon for what stands between the embeddings, AdamW for the rest (norms are never decayed)."""
    hidden = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    embed = [p for n, p in model.named_parameters() if "embed" in n]
    norms = [p for n, p in model.named_parameters() if p.dim() != 2 and "embed" not in n]
    groups = [{"params": embed, "weight_decay": embed_decay}, {"params": norms, "weight_decay": 0.0}]
    return [
        Muon(hidden, lr, weight_decay=weight_decay),
        torch.optim.AdamW(groups, lr, betas=(0.9, 0.95), eps=1e-10, fused=embed[0].is_cuda),
    ]
