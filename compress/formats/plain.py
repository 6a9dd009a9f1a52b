"""Plain fp16, bf16 or fp32: every layer decoded. For libraries that read nothing smaller."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compress.weight import QuantizedWeight

MARK, SUFFIXES = "weight", ("weight",)


def write(weight: QuantizedWeight, name: str) -> dict[str, Tensor]:
    return {"weight": weight.dense().detach().cpu().half()}


def settings(name: str, layers: dict[str, nn.Module], plain: list[str]) -> dict[str, Any]:
    """None needed: config.json stays as it was."""
    return {}
