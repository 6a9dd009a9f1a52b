"""Muon for the hidden matrices, AdamW for embeddings and norms. Knows parameters; knows no data.

Muon: Jordan et al. 2024 (momentum, orthogonalised by five Newton-Schulz steps), with the scale and the weight decay of
Liu et al., arXiv:2502.16982: an update has the root mean square of AdamW's, so both share one learning rate.
"""

from __future__ import annotations

import torch
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
        update = orthogonalize(torch.stack(nesterov))
        scale = ADAM_RMS * max(params[0].shape) ** 0.5
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(
            params, [u.to(p.dtype) for u, p in zip(update, params, strict=True)], alpha=-group["lr"] * scale
        )


def optimizers(model: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for what stands between the embeddings, AdamW for the rest. Each group remembers its `peak`."""
    hidden = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    fused = rest[0].is_cuda
    both = [
        Muon(hidden, lr, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=fused),
    ]
    return both
