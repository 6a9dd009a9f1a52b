"""Adapters: factors added to the weights do what factors at their side do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import Linear

from panza import adapters, models


def shaken(base: Path, chance: torch.Generator, join: bool) -> torch.nn.Module:
    """The base with random factors, B not zero."""
    net = adapters.attach_lora(models.load_base(str(base))[0], 3, 6, 0.0)
    if not join:
        for layer in net.modules():
            layer.__dict__.pop("forward", None)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=chance.manual_seed(len(name))) * 0.1)
    return net


def test_joined_factors_give_the_same_logits_and_gradients(tiny_base: Path, chance: torch.Generator) -> None:
    joined, beside = (shaken(tiny_base, torch.Generator(), join) for join in (True, False))
    assert sum("forward" in layer.__dict__ for layer in joined.modules() if isinstance(layer, Linear)) == sum(
        isinstance(layer, Linear) for layer in beside.modules()
    )
    ids = torch.randint(5, 200, (3, 17), generator=chance)
    for net in (joined, beside):
        net.train()(ids, labels=ids).loss.backward()
    assert torch.allclose(joined(ids).logits, beside(ids).logits, atol=1e-4)
    for (name, p), (_, q) in zip(joined.named_parameters(), beside.named_parameters(), strict=True):
        if p.requires_grad:
            assert (p.grad - q.grad).norm() <= 1e-4 * q.grad.norm(), name
        else:
            assert p.grad is None, name
    with joined.disable_adapter(), beside.disable_adapter():
        assert torch.allclose(joined(ids).logits, beside(ids).logits, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_keep_their_factors_beside_them(tiny_base: Path, dtype: torch.dtype) -> None:
    net = adapters.attach_lora(models.load_base(str(tiny_base))[0].to(dtype), 3, 6, 0.0)
    assert not any("forward" in layer.__dict__ for layer in net.modules() if isinstance(layer, Linear))
