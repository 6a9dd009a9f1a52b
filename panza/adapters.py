"""LoRA adapters: attach, save, load. Knows peft; knows no mail."""

from __future__ import annotations

import hashlib
import json
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

    if not (folder / "adapter_model.safetensors").exists():
        raise UserError(f"There is no adapter in {folder}: train one with `panza train`, or draft with --no-adapter.")
    report = read_report(folder)
    if report.get("base_hash", "") not in ("", base_hash(net)):
        raise UserError(
            f"The adapter in {folder} was trained on other weights than '{report.get('base')}' has now: train again."
        )
    return PeftModel.from_pretrained(net, str(folder), local_files_only=True)


def base_hash(net: Any) -> str:
    """Names the weights of a base: a hash over the first values of every tensor, so that large models stay quick."""
    digest = hashlib.sha256()
    for name, weight in sorted(net.state_dict().items()):
        head = weight.flatten()[:512].bfloat16().float().cpu().numpy().tobytes()  # the same on a GPU
        digest.update(f"{name} {tuple(weight.shape)}".encode() + head)
    return digest.hexdigest()[:32]


def save(net: Any, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json into `folder`."""
    net.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's template card says nothing true of this adapter


def read_report(folder: Path) -> dict[str, Any]:
    """What `panza train` wrote beside the adapter; {} if it wrote nothing."""
    report = folder / "report.json"
    return json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
