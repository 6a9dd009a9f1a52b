"""A linear layer and an embedding over a compressed weight. Knows modules; knows no method, no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress import cuda, cuda_rows
from compress.errors import CompressError
from compress.weight import QuantizedWeight


class Decoded(Tensor):
    """A decoded weight as other libraries see it. To write into the copy would be lost, so that is refused."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # what is computed with it is plain again

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        raise CompressError("nothing can be merged into a compressed weight: keep the adapter beside the model")


class _Cached(NamedTuple):
    """A packed weight and what it was made of."""

    versions: list[tuple[int, int]] | None  # of each tensor: its address and how often it was written
    tensors: list[Tensor]  # alive, so that no other tensor gets their addresses
    packed: cuda.Packed | None


NOTHING = _Cached(None, [], None)


class QuantizedLinear(nn.Linear):
    """y = x Wᵀ + bias with W compressed. Any device and float dtype; gradients reach x and the weight's parameters.

    The decoded weight can be held between calls (`hold`), which costs its full size in memory. It is an nn.Linear so
    that adapters (peft) attach to it as to any other; nothing can be merged into it.
    """

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: there is no dense parameter
        self.quantized = weight
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self._held: Tensor | None = None
        self._packed: _Cached = NOTHING

    def hold(self, dtype: torch.dtype | None = None) -> None:
        """Keep the decoded weight as `dtype`, or let it go (None). It does not follow later changes of the codes."""
        self._held = None if dtype is None else self.quantized.dense().detach().to(dtype)

    @property
    def weight(self) -> Decoded:
        """(N, D), decoded: what other libraries expect to find on a linear layer. Not a parameter."""
        return self.decoded().as_subclass(Decoded)

    def decoded(self) -> Tensor:
        """(N, D): the held weight, or one decoded anew."""
        return self.quantized.dense() if self._held is None else self._held

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        packed = self.packed() if self.multiplies_codes(x) else None
        return F.linear(x, self.decoded().to(x), bias) if packed is None else cuda.linear(packed, x, bias)

    def multiplies_codes(self, x: Tensor) -> bool:
        """Whether the GPU's kernels may do it: they give gradients of the inputs, none of the weight's parameters."""
        if not x.is_cuda or self.quantized.decode.codes.device != x.device:
            return False
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.quantized.parameters())
        if learns or self._held is not None or torch.is_autocast_enabled(x.device.type):
            return False
        if torch.compiler.is_compiling():  # what `usable` asks the driver is no part of a graph
            return x.dtype in cuda.HALVES
        return cuda.usable(x.device, x.dtype)

    def packed(self) -> cuda.Packed | None:
        """The weight in the kernels' own layout, made at first use and anew after changes; None for kinds they do not take.

        Writes through a tensor's `.data` are not seen, as nowhere in torch. While a CUDA graph is captured nothing is made: what is
        not packed yet goes into it by the definition.
        """
        cached = self._packed
        if torch.compiler.is_compiling():  # a compiled graph keeps what it was made with
            return cached.packed
        tensors = list(self.quantized.state_dict().values())
        now = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        if cached.versions != now:
            if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
                return None
            cached = _Cached(now, tensors, cuda.pack(self.quantized))
            self._packed = cached
        return cached.packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        self._packed = NOTHING
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": NOTHING}  # a copy's tensors are others

    def extra_repr(self) -> str:
        kind = type(self.quantized.decode).__name__.lower()
        return f"in_features={self.in_features}, out_features={self.out_features}, decode={kind}"


class PackedLinear(cuda.PackedLinear):
    """What `pack_` leaves of a QuantizedLinear: it multiplies in `dtype` on its GPU. Nothing can be merged into it either."""

    def __init__(self, packed: cuda.Packed, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(packed, bias)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.dtype)).to(x.dtype)

    @property
    def weight(self) -> Decoded:
        """(N, D), decoded anew, for adapters that ask for it: a product with every unit vector."""
        one = torch.eye(self.in_features, dtype=self.dtype, device=self.packed.parts[0].device)
        return cuda.linear(self.packed, one).T.as_subclass(Decoded)


class QuantizedEmbedding(nn.Module):
    """Rows of a compressed weight, in `dtype`; may share it with the head (tied)."""

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.quantized = weight
        self.num_embeddings, self.embedding_dim = weight.shape
        self.dtype = torch.float32
        self._held: Tensor | None = None

    def hold(self, dtype: torch.dtype | None = None) -> None:
        """As QuantizedLinear.hold."""
        self._held = None if dtype is None else self.quantized.dense().detach().to(dtype)

    @property
    def weight(self) -> Tensor:
        """(N, D), decoded."""
        return self.quantized.dense() if self._held is None else self._held

    def forward(self, ids: Tensor) -> Tensor:
        """(…) -> (…, D). Decodes these rows alone, on a GPU by a kernel that makes NaN of ids which do not exist."""
        if self._held is not None:
            return F.embedding(ids, self._held).to(self.dtype)
        if cuda_rows.takes(self.quantized, ids, self.dtype):
            return cuda_rows.gathered(self.quantized, ids, self.dtype)
        return self.quantized.rows(ids).to(self.dtype)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear | QuantizedEmbedding]:
    """The compressed layers of a model by their names."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)}


def decode_(model: nn.Module) -> nn.Module:
    """Put plain layers in the place of the compressed ones, embedding and head apart: these take a merged adapter."""
    for name, layer in quantized_layers(model).items():
        if isinstance(layer, QuantizedLinear) and layer is not model.get_output_embeddings():
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            plain.weight, plain.bias = nn.Parameter(layer.decoded(), requires_grad=False), layer.bias
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, plain)
    return model


def pack_(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put a PackedLinear in the place of each QuantizedLinear that the GPU's kernels take, so that codes lie there once.

    For inference in `dtype` where `cuda.usable`: nothing can be tuned, merged or saved afterwards. Adapters beside the
    layers stay and must be attached before, since peft attaches to nn.Linear. An embedding keeps the file's layout, from which rows
    are gathered: codes that it shares with the head lie there twice then (at 8 bits, as much as they take in fp16).
    """
    for name in [n for n, m in quantized_layers(model).items() if isinstance(m, QuantizedLinear)]:
        layer = model.get_submodule(name)  # one at a time: what is replaced is freed
        if (packed := layer.packed()) is not None:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, PackedLinear(packed, layer.bias, dtype))
    return model


def hold_(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Let every compressed layer keep its decoded weight but embeddings whose rows can be decoded as they are asked for."""
    for layer in quantized_layers(model).values():
        if isinstance(layer, QuantizedLinear) or not layer.quantized.apart:
            layer.hold(dtype)
    return model


@contextmanager
def holding(module: nn.Module) -> Iterator[None]:
    """Inside, compressed layers keep their decoded weights."""
    layers, dtype = quantized_layers(module).values(), working_dtype(module)
    for layer in layers:
        layer.hold(dtype)
    try:
        yield
    finally:
        for layer in layers:
            layer.hold(None)


def working_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of what is not compressed."""
    return next((p.dtype for name, p in module.named_parameters() if ".quantized." not in name), torch.float32)
