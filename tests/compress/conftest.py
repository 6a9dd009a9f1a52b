"""Five real layers of the embedded model with the Hessians that real mail gives them, and layers that are hard."""

from __future__ import annotations

import mailbox
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.weight import QuantizedWeight

DATA = Path(__file__).parents[2] / "data"
TOKENS = (4, 1024)  # sequences and their length
FIVE = (
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.gate_proj",
    "model.layers.1.mlp.down_proj",
    "model.layers.9.self_attn.k_proj",
    "model.layers.9.self_attn.o_proj",
)


def mail_text() -> str:
    """The plain text of the sample mailbox."""
    parts = (m.get_payload(decode=True) for m in mailbox.mbox(DATA / "sample/mail.mbox", create=False))
    return "\n\n".join(part.decode("utf-8", "replace") for part in parts if part)


@pytest.fixture(scope="session")
def layers() -> list[tuple[str, Tensor, Tensor]]:
    """`real_layers`."""
    return real_layers()


def real_layers() -> list[tuple[str, Tensor, Tensor]]:
    """(name, weight (N, D), Hessian (1, D, D)) of five layers in two blocks, from 4,096 tokens of mail."""
    from transformers import AutoTokenizer

    from compress.rows8 import load_rows8

    model, tokenizer = load_rows8(DATA / "base"), AutoTokenizer.from_pretrained(DATA / "base")
    ids = tokenizer(mail_text()[:40_000], return_tensors="pt").input_ids[0, : TOKENS[0] * TOKENS[1]].view(TOKENS)
    model.model.layers = model.model.layers[:10]  # the five lie in these
    seen: dict[str, Tensor] = {}

    def keep(name: str, _: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, 1)  # (T, D)
        seen[name] = (x.T @ x / len(x))[None]

    for name in FIVE:
        model.get_submodule(name).register_forward_pre_hook(partial(keep, name))
    with torch.no_grad():
        model.model(ids)
    return [(name, model.get_submodule(name).weight.detach().clone(), seen[name]) for name in FIVE]


@pytest.fixture(scope="session")
def some_rows(layers: list[tuple[str, Tensor, Tensor]]) -> list[tuple[str, Tensor, Tensor]]:
    """The layers with 96 of their outputs: enough where each output is compressed on its own."""
    return [(name, w[:96].contiguous(), h) for name, w, h in layers]


Layer = tuple[Tensor, Tensor]  # weight (N, D), Hessian (Q, D, D)


def correlated(N: int, D: int, tokens: int, chance: torch.Generator, Q: int = 1) -> Layer:
    """A Gaussian weight and inputs with a fast falling spectrum, some of them a hundred times the others."""
    mix = torch.randn(D, D, generator=chance) * torch.logspace(1, -1, D)
    x = torch.randn(Q, tokens, D, generator=chance) @ mix
    return torch.randn(N, D, generator=chance), x.transpose(1, 2) @ x / tokens


def without(layer: Layer, inputs: slice = slice(0), outputs: slice = slice(0)) -> Layer:
    """The layer with inputs that are never active, and with outputs whose weights are all zero."""
    w, h = (t.clone() for t in layer)
    w[outputs] = 0
    h[:, inputs], h[:, :, inputs] = 0, 0
    return w, h


HARD: dict[str, Callable[[torch.Generator], Layer]] = {
    "one weight": lambda c: correlated(1, 1, 5, c),
    "one output": lambda c: correlated(1, 137, 300, c),
    "7 by 137": lambda c: correlated(7, 137, 300, c),
    "137 by 7": lambda c: correlated(137, 7, 30, c),
    "fewer tokens than inputs": lambda c: correlated(24, 96, 20, c),
    "one token": lambda c: correlated(24, 64, 1, c),
    "no calibration at all": lambda c: without(correlated(24, 64, 9, c), slice(None)),
    "dead inputs": lambda c: without(correlated(24, 96, 200, c), slice(10, 50)),
    "dead outputs": lambda c: without(correlated(40, 64, 200, c), outputs=slice(3, 30)),
    "nothing but zeros": lambda c: without(correlated(16, 32, 50, c), slice(None), slice(None)),
    "three output groups": lambda c: correlated(50, 64, 200, c, Q=3),
    "tiny weights": lambda c: (correlated(16, 32, 90, c)[0] * 1e-6, correlated(16, 32, 90, c)[1]),
    "huge inputs": lambda c: (correlated(16, 32, 90, c)[0], correlated(16, 32, 90, c)[1] * 1e12),
}


@pytest.fixture(params=HARD)
def hard(request: pytest.FixtureRequest, chance: torch.Generator) -> Layer:
    """One layer after another that a method has to survive."""
    return HARD[request.param](chance)


REFUSED: dict[str, tuple[Layer, str]] = {
    "NaN": ((torch.tensor([[1.0, torch.nan]]), torch.eye(2)[None]), "weight 1 of 1 holds NaN .*65504"),
    "too large for fp16": ((torch.tensor([[1.0, 7e4]]), torch.eye(2)[None]), "65504"),
    "a Hessian with NaN": ((torch.ones(1, 2), torch.full((1, 2, 2), torch.nan)), "Hessian of weight 1 .* not finite"),
    "a Hessian of another size": ((torch.ones(1, 2), torch.eye(3)[None]), r"\(1, 3, 3\)"),
    "no inputs": ((torch.ones(3, 0), torch.ones(1, 0, 0)), r"\(3, 0\)"),
}


@pytest.fixture(params=REFUSED)
def refused(request: pytest.FixtureRequest) -> tuple[Layer, str]:
    """A layer that no method takes, and the sentence it says why with."""
    return REFUSED[request.param]


def filled(weight: QuantizedWeight) -> QuantizedWeight:
    """Fresh codes and tables; scales around one, zeros within the codes."""
    for name, t in weight.state_dict().items():
        if t.dtype == torch.uint8:
            t.random_(0, 256)
        elif t.dtype == torch.int8:
            t.random_(-127, 128)
        elif name == "transform.order":
            t.copy_(torch.randperm(len(t)))
        elif name.startswith("scale"):
            t.copy_(0.5 + torch.rand(t.shape))
        elif t.is_floating_point() and "sparse" not in name:
            t.copy_(torch.randn(t.shape))
    return weight
