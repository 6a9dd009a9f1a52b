"""The types of GGUF files: 16 bits by ourselves, all others by llama.cpp's own `llama_model_quantize`. Knows no architecture.

https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h, through the package llama-cpp-python. Its importance
matrix is the mean square of what each input of a layer reads: the diagonal of our Hessians.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.blocks import find_blocks
from compress.errors import CompressError
from compress.linear import holding
from compress.llama_cpp import complaints, package
from compress.text import own_samples, token_sequences

PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # these need no llama.cpp
LENGTH = 512  # tokens of a sequence of calibration, if the model reads as many


def file_types() -> dict[str, int]:
    """llama.cpp's names of types, without their prefix, and its numbers for them."""
    known = {t.name.partition("_")[2]: int(t) for t in package("gguf").LlamaFileType if t.name != "GUESSED"}
    return known  # ALL_F32 -> F32, MOSTLY_Q4_K_M -> Q4_K_M


def check_type(kind: str) -> int:
    """The number of a type. Raises CompressError for an unknown one, or one that needs a package that is missing."""
    types = file_types()
    if kind not in types:
        raise CompressError(f"unknown type '{kind}': choose one of {', '.join(types)}")
    if kind not in PLAIN_TYPES:
        package("llama_cpp")
    return types[kind]


def half_for(tensors: Iterable[Tensor]) -> str:
    """The 16-bit type that holds all of these: F16 if it can."""
    return "F16" if all(t.abs().max() < 65504 for t in tensors) else "BF16"


def needs_importance(kind: str) -> bool:
    """Whether llama.cpp refuses to make this type unless it knows how much each input matters."""
    return kind.startswith(("IQ1", "IQ2", "IQ3")) or kind == "Q2_K_S"


def calibration(model: nn.Module, tokenizer: Any, text: Path | None, count: int) -> Tensor:
    """(count, T) token ids of the text, or of the model's own samples."""
    length = min(LENGTH, getattr(model.config, "max_position_embeddings", LENGTH))
    if text is not None:
        return token_sequences(text, tokenizer, count, length, seed=0)
    with holding(model):
        return own_samples(model, count, length, seed=0)


@torch.no_grad()
def importance(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """The mean square of each input of every linear layer in the blocks: layer -> (D,) fp32. ids: (S, T)."""
    prefix, blocks = find_blocks(model)
    layers = {f"{prefix}.{n}": m for n, m in blocks.named_modules() if isinstance(m, nn.Linear)}
    sums = {name: torch.zeros(layer.in_features) for name, layer in layers.items()}

    def add(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums[name] += inputs[0].detach().float().square().flatten(0, -2).sum(0).cpu()

    hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    try:
        with holding(model):
            for row in ids:
                model(row[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / ids.numel() for name, total in sums.items()}


def requantize(source: Path, out: Path, kind: str, read: Mapping[str, Tensor]) -> None:
    """Let llama.cpp write the GGUF file `source` as another type. read: tensor -> (D,), see `importance`; may be empty."""
    llama_cpp = package("llama_cpp")
    said = complaints()
    said.clear()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = check_type(kind), torch.get_num_threads()
    kept = {name.encode(): x.float().contiguous().numpy() for name, x in read.items()}
    pointer = ctypes.POINTER(ctypes.c_float)
    rows = [(name, x.ctypes.data_as(pointer), x.size) for name, x in kept.items()]
    matrix = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows)  # one more, all zero, ends it
    if rows:
        params.imatrix = matrix
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)):
        why = said[-1].strip() if said else "it does not say why"
        raise CompressError(f"llama.cpp makes no {kind} of this model: {why}")
