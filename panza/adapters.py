"""LoRA adapters: attach, save, load. Knows peft; knows no mail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from panza.types import UserError


def attach_lora(net: Any, rank: int, alpha: int, dropout: float) -> Any:
    """`net` with fresh LoRA factors on every linear layer but the head (Hu et al. 2021; B = 0, so nothing changes yet)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM", bias="none"
    )
    return get_peft_model(net, config)


def attach_saved(net: Any, folder: Path) -> Any:
    """`net` with the adapter in `folder`. Raises UserError if the adapter was trained on other weights."""
    from peft import PeftModel

    check(folder, lambda: base_hash(net))
    return PeftModel.from_pretrained(net, str(folder), local_files_only=True)


def check(folder: Path, hash_of_base: Callable[[], str]) -> None:
    """Raises UserError if there is no adapter in `folder`, or one that was trained on other weights than the base's."""
    if not (folder / "adapter_model.safetensors").exists():
        raise UserError(f"There is no adapter in {folder}: train one with `panza train`, or draft with --no-adapter.")
    report = read_report(folder)
    if report.get("base_hash", "") not in ("", hash_of_base()):
        raise UserError(
            f"The adapter in {folder} was trained on other weights than '{report.get('base')}' has now: train again."
        )


HEAD = 512  # values of each tensor that its base's name depends on: large models stay quick


def base_hash(net: Any) -> str:
    """Names the weights of a base, loaded by torch: a hash over the first values of every tensor."""
    return _named(
        (name, tuple(weight.shape), weight.flatten()[:HEAD].bfloat16().float().cpu().numpy())  # the same on a GPU
        for name, weight in net.state_dict().items()
    )


def base_hash_of(folder: Path) -> str:
    """The same name from the files of a base, without torch."""
    from compress.runtime import Weights, read_config

    heads = Weights(folder, read_config(folder)).heads(HEAD)
    return _named((name, shape, _bfloat16(head)) for name, shape, head in heads)


def _named(heads: Iterable[tuple[str, tuple[int, ...], Any]]) -> str:
    digest = hashlib.sha256()
    for name, shape, head in sorted(heads, key=lambda h: h[0]):
        digest.update(f"{name} {shape}".encode() + head.tobytes())
    return digest.hexdigest()[:32]


def _bfloat16(values: Any) -> Any:
    """fp32 values rounded to the nearest bf16, halves to even, as fp32."""
    import numpy as np

    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def save(net: Any, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json into `folder`."""
    net.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's template card says nothing true of this adapter


def read_report(folder: Path) -> dict[str, Any]:
    """What `panza train` wrote beside the adapter; {} if it wrote nothing."""
    report = folder / "report.json"
    return json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
