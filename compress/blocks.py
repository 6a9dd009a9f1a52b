"""Find the decoder blocks of a model and the linear layers in them, by walking modules. Knows no type of model."""

from __future__ import annotations

from torch import nn

from compress.errors import CompressError
from compress.linear import QuantizedLinear


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name of the list of decoder blocks, and the list: the outermost one that holds most linear weights."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists or not weights_in(max(lists, key=lambda item: weights_in(item[1]))[1]):
        raise CompressError(f"{type(model).__name__} has no list of blocks with linear layers: give a decoder")
    return max(lists, key=lambda item: weights_in(item[1]))  # of equals the first, which is the outermost


def weights_in(module: nn.Module) -> int:
    """Weights of the linear layers in a module, compressed ones too."""
    return sum(m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))


def plain_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a block that are not compressed yet, by name."""
    return {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear) and not isinstance(m, QuantizedLinear)}


def left_out(block: nn.Module) -> dict[str, int]:
    """Matrices in a block that are in no linear layer (a router, experts stacked in one tensor), by name: how many numbers."""
    known = {id(p) for m in block.modules() if isinstance(m, nn.Linear) for p in m.parameters()}
    return {n: p.numel() for n, p in block.named_parameters() if p.dim() > 1 and id(p) not in known}


def replace_(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule of that name."""
    owner, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(owner), leaf, module)
