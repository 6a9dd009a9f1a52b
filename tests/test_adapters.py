"""Adapters: factors added to the weights do what factors at their side do."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import Linear
from transformers import GPT2Config, GPT2LMHeadModel

from panza import adapters, models


def shaken(base: Path, join: bool) -> torch.nn.Module:
    """The base with random factors, B not zero."""
    net = adapters.attach_lora(models.load_base(str(base))[0], 3, 6, 0.0)
    for layer in net.modules() if not join else ():
        if isinstance(layer, Linear):
            layer.__class__ = Linear
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return net


def joined_layers(net: torch.nn.Module) -> int:
    return sum(isinstance(layer, Linear) and type(layer) is not Linear for layer in net.modules())


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).norm() <= 1e-4 * wanted.norm())


def test_joined_factors_give_the_same_logits_and_gradients(tiny_base: Path, chance: torch.Generator) -> None:
    joined, beside = (shaken(tiny_base, join) for join in (True, False))
    assert joined_layers(joined) == sum(isinstance(layer, Linear) for layer in beside.modules()) > 0
    assert joined_layers(beside) == 0
    ids = torch.randint(5, 200, (3, 17), generator=chance)
    for net in (joined, beside):
        net.train()(ids, labels=ids).loss.backward()
    assert close(joined(ids).logits, beside(ids).logits)
    for (name, p), (_, q) in zip(joined.named_parameters(), beside.named_parameters(), strict=True):
        assert close(p.grad, q.grad) if p.requires_grad else p.grad is None, name
    with joined.disable_adapter(), beside.disable_adapter():
        plain = joined(ids).logits
        assert close(plain, beside(ids).logits)
    joined.merge_adapter()
    assert close(joined(ids).logits, beside(ids).logits)
    with joined.disable_adapter():
        assert close(joined(ids).logits, plain)


def test_a_trained_net_is_freed_at_once(tiny_base: Path) -> None:
    net = shaken(tiny_base, True)
    layer = weakref.ref(next(m for m in net.modules() if isinstance(m, Linear)))
    gc.collect()
    gc.disable()
    try:
        del net
        assert layer() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_keep_their_factors_beside_them(tiny_base: Path, dtype: torch.dtype) -> None:
    net = adapters.attach_lora(models.load_base(str(tiny_base))[0].to(dtype), 3, 6, 0.0)
    assert joined_layers(net) == 0


def test_layers_that_are_no_plain_linear_ones_keep_peft_s_way(chance: torch.Generator) -> None:
    """GPT-2's weights lie transposed."""
    net = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=12, n_layer=1, n_head=2))
    learner = adapters.attach_lora(net, 2, 4, 0.0)
    ids = torch.randint(0, 50, (2, 9), generator=chance)
    learner(ids, labels=ids).loss.backward()
    assert joined_layers(learner) == 0 and any(p.grad is not None for p in learner.parameters())
