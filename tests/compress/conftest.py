"""Five real layers of the embedded model, with the Hessians that real mail gives them."""

from __future__ import annotations

import mailbox
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

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
    """(name, weight (N, D), Hessian (1, D, D)) of five layers in two blocks, from 4,096 tokens of mail."""
    from transformers import AutoTokenizer

    from compress.rows8 import load_rows8

    model, tokenizer = load_rows8(DATA / "base"), AutoTokenizer.from_pretrained(DATA / "base")
    ids = tokenizer(mail_text(), return_tensors="pt").input_ids[0, : TOKENS[0] * TOKENS[1]].view(TOKENS)
    seen: dict[str, Tensor] = {}

    def keep(name: str, _: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, 1)  # (T, D)
        seen[name] = (x.T @ x / len(x))[None]

    for name in FIVE:
        model.get_submodule(name).register_forward_pre_hook(partial(keep, name))
    with torch.no_grad():
        model.model(ids)
    return [(name, model.get_submodule(name).weight.detach().clone(), seen[name]) for name in FIVE]
