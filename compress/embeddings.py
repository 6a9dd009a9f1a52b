"""The input embedding and the output head at 4 to 8 bits: grids of rows in groups, one weight for both if they are tied.

Half of a small model's bytes lie here. Rounding needs no calibration; with token counts the numbers whose rounding costs
most, squared error times count, are kept exactly. Knows a model's two ends; knows no block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.blocks import replace_
from compress.errors import CompressError
from compress.linear import QuantizedEmbedding, QuantizedLinear
from compress.methods import rtn
from compress.tables import Real
from compress.weight import QuantizedWeight, Sparse

BITS = range(4, 9)
FINE = 7  # bits from which no search for a better grid pays


@dataclass(frozen=True)
class EmbeddingConfig:
    """embedding, head: bits, 4 to 8, or 0 for leaving it as it is; tied, both get the larger (0 is the largest).

    group: inputs that share a scale, 0 for a row. exact: share of the numbers kept in fp16, 32 bits each, if counts
    are given.
    """

    embedding: int = 8
    head: int = 8
    group: int = 64
    exact: float = 0.0

    def __post_init__(self) -> None:
        for name, bits in {"embedding": self.embedding, "head": self.head}.items():
            if bits and bits not in BITS:
                raise CompressError(f"the {name} takes {BITS[0]} to {BITS[-1]} bits, or 0 to stay as it is, not {bits}")
        if self.group < 0 or not 0 <= self.exact < 1:
            raise CompressError(
                f"embeddings take groups of 0 or more and a share below 1, not {self.group}, {self.exact}"
            )


def token_counts(ids: Tensor, vocabulary: int) -> Tensor:
    """(V,) fp32: how often each token stands in a calibration text, plus one for what it lacks."""
    return torch.bincount(ids.flatten().cpu(), minlength=vocabulary).float() + 1


@torch.no_grad()
def compress_embeddings_(
    model: nn.Module,
    config: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008  frozen
    counts: Tensor | None = None,
) -> dict[str, QuantizedWeight]:
    """Replace the input embedding and the output head in place; the compressed weights by layer name.

    counts: (V,), see `token_counts`. Tied ends stay tied: they share codes.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    if not isinstance(embedding, nn.Embedding) or type(head) is not nn.Linear:
        raise CompressError(f"{type(model).__name__} has no plain embedding and head, or they are compressed already")
    factor, made = _factor(embedding), {}
    if head.weight is embedding.weight:
        if config.embedding and config.head:
            weight = quantized(head.weight, max(config.embedding, config.head), config, counts)
            made = {names[embedding]: scaled(weight, factor), names[head]: weight}
    else:
        if config.embedding:
            made[names[embedding]] = quantized(embedding.weight * factor, config.embedding, config, counts)
        if config.head:
            made[names[head]] = quantized(head.weight, config.head, config, counts)
    for name, weight in made.items():
        plain = model.get_submodule(name)
        new = QuantizedEmbedding(weight) if plain is embedding else QuantizedLinear(weight, plain.bias)
        replace_(model, name, new.to(plain.weight.device))
    return made


def quantized(w: Tensor, bits: int, config: EmbeddingConfig, counts: Tensor | None) -> QuantizedWeight:
    """(V, D) at `bits` bits, with the costliest errors kept exactly if there are counts."""
    D = w.shape[1]
    grid = rtn.Config(bits=bits, group=config.group, symmetric=bits >= FINE, search=0 if bits >= FINE else 32)
    (made,) = rtn.quantize([w.float()], [torch.eye(D, device=w.device)[None]], grid)
    if counts is not None and config.exact:
        error = w.float() - made.dense()
        cost = error.square() * counts.to(w.device)[:, None]
        least = cost.flatten().topk(max(1, int(config.exact * cost.numel()))).values[-1]
        made.sparse = Sparse.of(error.where((cost >= least) & (cost > 0), 0)).to(w.device)
    return made


def _factor(embedding: nn.Embedding) -> float:
    """What the module multiplies its rows with (Gemma: the root of the width), measured on the 256 largest."""
    ids = embedding.weight.float().norm(dim=1).topk(min(256, embedding.num_embeddings)).indices
    rows, out = embedding.weight[ids].float(), embedding(ids).float()
    factor = ((out * rows).sum() / rows.square().sum()).nan_to_num(1).item()
    if not torch.allclose(out, factor * rows, rtol=1e-2, atol=1e-6):
        raise CompressError(
            f"cannot compress {type(embedding).__name__}: it does more than look rows up and scale them"
        )
    return factor


def scaled(weight: QuantizedWeight, factor: float) -> QuantizedWeight:
    """`factor` times a weight, with the same codes and scales of its own; the weight itself for 1."""
    if abs(factor - 1) < 1e-6:
        return weight
    sparse = None
    if weight.sparse is not None:
        sparse = Sparse.of(weight.sparse() * factor)
    return QuantizedWeight(weight.shape, weight.decode, Real.of(weight.scale() * factor), weight.transform, sparse)
