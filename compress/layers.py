"""Replace the linear layers of a block by compressed ones. Knows a method's contract; knows no model, no file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress import ops, ranks
from compress.blocks import replace_
from compress.calibrate import Statistics
from compress.checkpoint import unshared
from compress.eora import repair
from compress.errors import CompressError
from compress.linear import QuantizedLinear
from compress.methods import method
from compress.weight import QuantizedWeight

KINDS_OF = {bool: "truth value", int: "whole number", float: "number", str: "word"}


@dataclass(frozen=True)
class LayerReport:
    """name: in the model. error: tr(ΔW H ΔWᵀ) / tr(W H Wᵀ). tokens: that reached the layer; 0: rounded blindly."""

    name: str
    shape: tuple[int, int]
    bits: float
    error: float
    tokens: int


class Recipe(NamedTuple):
    """What to do with each layer. high: the Config of `share` of a block's weights, None if all get `low`.

    eora: rank of a low-rank repair, 0 for none.
    """

    method: str
    low: Any
    high: Any = None
    share: float = 0.0
    eora: int = 0

    def quantize(self, weights: list[Tensor], hessians: list[Tensor], config: Any) -> list[QuantizedWeight]:
        """Weights that read the same input, compressed."""
        made = method(self.method).quantize(weights, hessians, config)
        if not self.eora:
            return made
        return [repair(*each, self.eora) for each in zip(made, weights, hessians, strict=True)]

    def configs(self, sizes: Sequence[int], losses: Sequence[float]) -> list[Any]:
        """A Config for each group of layers: `high` where a weight's rounding costs most, until the share is reached.

        sizes: weights of each group. losses: tr(W H Wᵀ) of each, to which its loss at any number of bits is proportional.
        """
        room, chosen = self.share * sum(sizes), set()
        for i in sorted(range(len(sizes)), key=lambda i: -losses[i] / sizes[i]):
            if sizes[i] <= 2 * room:  # nearer to the share with it than without
                chosen.add(i)
                room -= sizes[i]
        return [self.high if i in chosen else self.low for i in range(len(sizes))]


def recipe_for(
    name: str, bits: float, seed: int = 0, eora: int = 0, settings: Mapping[str, Any] | None = None
) -> Recipe:
    """The method's settings for so many bits a weight; sizes between those that it has are mixed from two of them.

    settings: changes to the method's Config. Raises CompressError for what the method cannot do.
    """
    Config = method(name).Config
    known = {f.name: type(f.default) for f in fields(Config)}
    _check_settings(name, settings or {}, known)
    changes = {"seed": seed} if "seed" in known else {}
    changes |= settings or {}
    try:
        return Recipe(name, replace(Config.for_bits(bits), **changes), eora=eora)
    except CompressError:
        if not bits % 1 or not 1 < bits < 8:
            raise
    low, high = (replace(Config.for_bits(whole), **changes) for whole in (math.floor(bits), math.ceil(bits)))
    return Recipe(name, low, high, bits % 1, eora)


def _check_settings(name: str, settings: Mapping[str, Any], known: Mapping[str, type]) -> None:
    for key, value in settings.items():
        if key not in known:
            raise CompressError(f"{name} has no setting '{key}': it has {', '.join(sorted(known))}")
        fits = (int, float) if known[key] is float else known[key]
        if not isinstance(value, fits) or isinstance(value, bool) is not (known[key] is bool):
            raise CompressError(f"{name} takes a {KINDS_OF[known[key]]} as {key}, not '{value}'")


def compress_layers_(
    block: nn.Module, seen: Statistics, groups: Sequence[list[str]], recipe: Recipe, prefix: str
) -> list[LayerReport]:
    """Replace linear layers of a block by compressed ones. groups: names of layers that read the same input.

    prefix: of the names in the report. Processes share the groups out among them; all get all results.
    """
    hessians, layers = seen.hessians(), seen.layers
    owners = [number % ranks.world() for number in range(len(groups))]
    configs = _configs(recipe, seen, groups, hessians)
    mine = {}
    for number, names in enumerate(groups):
        if owners[number] == ranks.rank():
            with _naming([prefix + name for name in names]):
                weights = [layers[name].weight.detach().float() for name in names]
                mine[number] = recipe.quantize(weights, [hessians[name] for name in names], configs[number])
    rows = []
    for number, names in enumerate(groups):
        made = ranks.send_weights(mine.pop(number, None), owners[number], layers[names[0]].weight.device)
        for name, weight in zip(names, made, strict=True):
            rows.append(_report(prefix + name, layers[name], weight, hessians[name], seen.tokens[name]))
            replace_(block, name, QuantizedLinear(weight, layers[name].bias).to(layers[name].weight.device))
    return rows


def _configs(
    recipe: Recipe, seen: Statistics, groups: Sequence[list[str]], hessians: Mapping[str, Tensor]
) -> list[Any]:
    if recipe.high is None:
        return [recipe.low] * len(groups)
    weights = [{name: seen.layers[name].weight.detach().float() for name in names} for names in groups]
    losses = [sum(ops.weighted_error(w, hessians[n]).item() for n, w in group.items()) for group in weights]
    return recipe.configs([sum(w.numel() for w in group.values()) for group in weights], losses)


@contextlib.contextmanager
def _naming(names: list[str]) -> Iterator[None]:
    """A method does not know whose weights it refuses."""
    try:
        yield
    except CompressError as error:
        raise CompressError(f"{', '.join(names)}: {error}") from error


@torch.no_grad()
def _report(name: str, layer: nn.Linear, weight: QuantizedWeight, hessian: Tensor, tokens: int) -> LayerReport:
    exact = layer.weight.detach().float()
    lost = ops.weighted_error(exact - weight.dense(), hessian) / ops.weighted_error(exact, hessian).clamp(min=1e-30)
    size = sum(t.numel() * t.element_size() for t in unshared(weight.state_dict())[0].values())
    return LayerReport(name, tuple(exact.shape), 8 * size / exact.numel(), lost.item(), tokens)
