"""The one representation of a compressed weight.

    W ≈ D_out H_out (scale ⊙ decode(codes)) H_in D_in P + sparse + B A

Every method writes it, every kernel reads it, one checkpoint holds it. Knows tensors; knows no layer, no calibration.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress import ops
from compress.decode import KINDS
from compress.errors import CompressError
from compress.tables import TABLES
from compress.transform import Transform


class Sparse(nn.Module):
    """Outliers in CSR form, added to the rest: fp16 values, 16-bit columns (D ≤ 65,536)."""

    def __init__(self, N: int, D: int, count: int) -> None:
        super().__init__()
        if D > 65536:
            raise CompressError(f"outliers need at most 65536 inputs (16-bit columns), not {D}")
        self.N, self.D = N, D
        self.register_buffer("starts", torch.zeros(N + 1, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(count, dtype=torch.uint16))
        self.values = nn.Parameter(torch.zeros(count, dtype=torch.float16))

    @classmethod
    def of(cls, dense: Tensor) -> Sparse:
        """The non-zeros of a (N, D) tensor."""
        row, column = dense.nonzero(as_tuple=True)
        made = cls(*dense.shape, len(row))
        counts = torch.bincount(row, minlength=len(dense))
        made.starts = torch.cat((counts.new_zeros(1), counts.cumsum(0))).int()
        made.columns, made.values.data = column.to(torch.uint16), dense[row, column].half()
        return made

    def spec(self) -> dict[str, Any]:
        return {"count": len(self.values)}

    def check(self) -> None:
        """Raises CompressError for outliers that lie outside of the weight."""
        starts = self.starts
        if starts[0] != 0 or starts[-1] != len(self.values) or (starts.diff() < 0).any():
            raise CompressError("its rows do not count its outliers")
        if (self.columns.long() >= self.D).any():
            raise CompressError(f"it has outliers beyond its {self.D} inputs")

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """(N, D) fp32, dense; of `rows` (R,) alone: (R, D)."""
        starts, counts = self.starts[:-1], self.starts.diff()
        columns, values = self.columns.long(), self.values
        if rows is not None:
            starts, counts = starts[rows], counts[rows]
            before = counts.cumsum(0) - counts  # outliers of the rows above
            at = (starts - before).repeat_interleave(counts)
            at = at + torch.arange(len(at), device=at.device)
            columns, values = columns[at], values[at]
        row = torch.arange(len(counts), device=starts.device).repeat_interleave(counts)
        dense = self.values.new_zeros(len(counts), self.D, dtype=torch.float32)
        return dense.index_put((row, columns), values.float())


class LowRank(nn.Module):
    """B A, fp16: an error repair (EoRA) or an adapter. A: (R, D), B: (N, R)."""

    def __init__(self, N: int, D: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(rank, D, dtype=torch.float16))
        self.B = nn.Parameter(torch.zeros(N, rank, dtype=torch.float16))

    def spec(self) -> dict[str, Any]:
        return {"rank": len(self.A)}

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """(N, D) fp32; of `rows` (R,) alone: (R, D)."""
        return ops.taken(self.B, rows).float() @ self.A.float()


class QuantizedWeight(nn.Module):
    """A compressed (N, D) weight. Its parameters are what tuning may move; its buffers are codes.

    decode: a module of `compress.decode.KINDS` of the padded size; scale: a table of (N', G), or None for 1.
    sparse, low_rank: of the true size, outside of the transform.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        decode: nn.Module,
        scale: nn.Module | None = None,
        transform: Transform | None = None,
        sparse: Sparse | None = None,
        low_rank: LowRank | None = None,
    ) -> None:
        super().__init__()
        assert all(type(n) is int and n > 0 for n in shape), "sizes are whole numbers"
        assert decode.N >= shape[0] and decode.D >= shape[1], "codes cover the weight"
        self.shape, self.decode, self.scale = tuple(shape), decode, scale
        self.transform = transform or Transform(decode.N, decode.D)
        self.sparse, self.low_rank = sparse, low_rank

    def coded(self, rows: Tensor | None = None) -> Tensor:
        """scale ⊙ decode(codes): (N', D') fp32, in the space of the codes; of `rows` (R,) alone where they are `apart`."""
        w = self.decode() if rows is None else self.decode(rows)
        if self.scale is None:
            return w
        scale = self.scale(rows)  # (N', G)
        return (w.unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1)

    def dense(self) -> Tensor:
        """The weight: (N, D) fp32, differentiable with respect to every parameter. The definition of this class."""
        N, D = self.shape
        w = self.transform.back(self.coded())[:N, :D]
        for part in (self.sparse, self.low_rank):
            w = w if part is None else w + part()
        return w

    @property
    def apart(self) -> bool:
        """Whether a row can be decoded alone: not from a trellis' chain of rows, nor through a transform that mixes rows."""
        return self.decode.apart and self.transform.out_block == 1

    def rows(self, ids: Tensor) -> Tensor:
        """(…) integers in [0, N) -> (…, D) fp32: dense()[ids], differentiable as it. Costs these rows alone if `apart`.

        Raises IndexError for ids on the CPU that lie outside; on a GPU torch aborts the program's kernels, as its own embedding.
        """
        N, D = self.shape
        at = ids.long().flatten()
        seen = at.device.type == "cpu" and not torch.compiler.is_compiling()
        if seen and at.numel() and not (0 <= at.min() and at.max() < N):
            raise IndexError(f"rows of this weight are 0 to {N - 1}, not {at.min()} to {at.max()}")
        if not self.apart:
            return self.dense()[at].view(*ids.shape, D)
        w = self.transform.back(self.coded(at))[:, :D]
        for part in (self.sparse, self.low_rank):
            w = w if part is None else w + part(at)
        return w.view(*ids.shape, D)

    def check(self) -> None:
        """Raises CompressError for loaded numbers that point outside; codes cannot, they have just the bits they need."""
        for part in (self.transform, self.sparse):
            if part is not None:
                part.check()

    def spec(self) -> dict[str, Any]:
        """JSON that, with the tensors of `state_dict`, is the weight: see `from_spec`."""
        made = {"shape": list(self.shape), "decode": _named(KINDS, self.decode), "transform": self.transform.spec()}
        made["decode"]["padded"] = [self.decode.N, self.decode.D]
        if getattr(self.decode, "zero", None) is not None:
            made["decode"]["zero"] = _named(TABLES, self.decode.zero)
        if self.scale is not None:
            made["scale"] = _named(TABLES, self.scale)
        return made | {n: part.spec() for n in ("sparse", "low_rank") if (part := getattr(self, n)) is not None}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> QuantizedWeight:
        """An empty weight whose buffers and parameters have the shapes that `spec` says; load_state_dict fills it."""
        shape, kind = tuple(spec["shape"]), dict(spec["decode"])
        N, D = kind.pop("padded")
        tables = [kind["zero"]] if "zero" in kind else []
        tables += [spec["scale"]] if "scale" in spec else []
        assert all(D % table["groups"] == 0 for table in tables), "groups are of one size"
        if "zero" in kind:
            kind["zero"] = _built(TABLES, kind["zero"], N)
        return cls(
            shape,
            _built(KINDS, kind, N, D),
            _built(TABLES, spec["scale"], N) if "scale" in spec else None,
            Transform(N, D, **spec["transform"]),
            Sparse(*shape, **spec["sparse"]) if "sparse" in spec else None,
            LowRank(*shape, **spec["low_rank"]) if "low_rank" in spec else None,
        )


def _named(table: dict[str, type[nn.Module]], module: nn.Module) -> dict[str, Any]:
    name = next(name for name, kind in table.items() if type(module) is kind)
    return {"kind": name, **module.spec()}


def _built(table: dict[str, type[nn.Module]], spec: dict[str, Any], *sizes: int) -> nn.Module:
    spec = {{"groups": "G"}.get(key, key): value for key, value in spec.items()}
    kind = spec.pop("kind")
    if kind not in table:
        raise CompressError(f"unknown kind '{kind}': this version reads {', '.join(table)}")
    return table[kind](*sizes, **spec)
