"""A LoRA adapter as a GGUF file, which llama.cpp adds to a model of any type. Knows llama.cpp's names; no method, no codes.

https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py: the factors of a tensor beside its name, and one
alpha, which llama.cpp divides by each tensor's rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.errors import BROKEN, CompressError
from compress.files import new_file
from compress.formats.gguf import architecture, tensor_names, tensor_value, write
from compress.formats.gguf_types import PLAIN_TYPES
from compress.lora import Factors, read_lora


def export_lora(model: nn.Module, adapter: Path, out: Path, kind: str = "F32") -> dict[str, Any]:
    """Write the adapter, in peft's files, of this model to the new file `out`, whole or not at all.

    kind: of PLAIN_TYPES. Raises CompressError for an adapter that is more than LoRA on linear layers, or not this model's.
    """
    if out.exists():
        raise CompressError(f"'{out}' exists: name a new file")
    if kind not in PLAIN_TYPES:
        raise CompressError(f"adapters are written as {', '.join(PLAIN_TYPES)}, not as {kind}")
    arch = architecture(model)
    names, layers = tensor_names(arch, model.config), read_lora(adapter)
    alpha = float(max(len(f.A) * f.scale for f in layers.values())) or 1.0  # 0 would mean 1 to llama.cpp
    tensors = {}
    for layer, factors in layers.items():
        _check(model, layer, factors, adapter)
        weight, own = f"{layer}.weight", factors.scale * len(factors.A) / alpha  # 1, but for layers scaled otherwise
        tensors[f"{names(weight)}.lora_a"] = torch.tensor(factors.A)
        tensors[f"{names(weight)}.lora_b"] = tensor_value(weight, torch.tensor(own * factors.B), arch, model.config)
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha}
    with new_file(out) as part:
        write(part, arch.name, keys, tensors, kind)
    return {"type": kind, "adapted": len(layers)}


def _check(model: nn.Module, name: str, factors: Factors, adapter: Path) -> None:
    """Raises CompressError unless the model has such a layer, and llama.cpp a tensor for it."""
    if name == "lm_head" and model.config.tie_word_embeddings:
        raise CompressError(f"llama.cpp has no place for what the adapter in '{adapter}' adds to '{name}' alone")
    try:
        layer = model.get_submodule(name)
        fits = factors.A.shape[1] == layer.in_features and factors.B.shape[0] == layer.out_features
    except BROKEN:
        fits = False
    if not fits or factors.B.shape[1] != len(factors.A):
        raise CompressError(f"the adapter in '{adapter}' is of another model: its '{name}' does not fit")
