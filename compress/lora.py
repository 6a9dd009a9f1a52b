"""LoRA adapters in peft's files: their factors by layer. Loads no torch; knows no model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress import native, tensors
from compress.errors import CompressError, Unsupported

PREFIX = "base_model.model."  # peft's, before the name of a layer
MORE = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class Factors:
    """What is added to a weight (N, D): scale * B @ A."""

    A: np.ndarray  # (rank, D) fp32
    B: np.ndarray  # (N, rank) fp32
    scale: float


def read_lora(folder: Path) -> dict[str, Factors]:
    """The factors of each layer. Raises Unsupported for what is more than LoRA on linear layers, CompressError for damage."""
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        plain = config.get("peft_type") == "LORA" and not any(config.get(key) for key in MORE)
        alpha, by_root = float(config["lora_alpha"]) if plain else 0.0, config.get("use_rslora")
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError, OverflowError) as error:
        raise CompressError(f"'{file}' is damaged or missing: {type(error).__name__}") from error
    arrays = tensors.read(folder / "adapter_model.safetensors")[0] if plain else {}
    layers = sorted({name.split(".lora_A.")[0] for name in arrays if ".lora_A." in name})
    named = {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"}
    if not layers or named != set(arrays) or any(a.ndim != 2 for a in arrays.values()):
        raise Unsupported(f"the adapter in '{folder}' is more than plain LoRA")
    made = {}
    for layer in layers:
        A, B = (native._floats(arrays[f"{layer}.lora_{part}.weight"]) for part in "AB")
        if not (len(A) and np.isfinite(A).all() and np.isfinite(B).all() and math.isfinite(alpha)):
            raise CompressError(f"the adapter in '{folder}' has no numbers, or some that are not finite, for '{layer}'")
        made[layer.removeprefix(PREFIX)] = Factors(A, B, alpha / (math.sqrt(len(A)) if by_root else len(A)))
    return made
