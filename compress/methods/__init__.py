"""The quantisers by name. To add one: a file with `Config` and `quantize`, and its line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor

from compress.errors import CompressError
from compress.weight import QuantizedWeight


class Method(NamedTuple):
    """`quantize(weights, hessians, config)` and its frozen dataclass.

    weights: tensors (N_i, D) fp32 that read the same input (q, k, v; gate, up) and may share tables and Hessian work.
    hessians: for each weight (Q, D, D) fp32, mean of x xᵀ over tokens; with Q > 1 output group q of the rows has its own
    (GuidedQuant, arXiv:2505.07004); weights may hold the very same tensor. Not damped. Returns a weight for each.
    """

    Config: type
    quantize: Callable[[Sequence[Tensor], Sequence[Tensor], Any], list[QuantizedWeight]]


METHODS = ("rtn", "gptq", "spqr", "aqlm", "trellis", "lnq")


def method(name: str) -> Method:
    """The method of that name. Raises CompressError for an unknown one."""
    if name not in METHODS:
        raise CompressError(f"unknown method '{name}': choose one of {', '.join(METHODS)}")
    module = import_module(f"compress.methods.{name}")
    return Method(module.Config, module.quantize)
