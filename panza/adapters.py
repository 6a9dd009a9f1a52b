"""LoRA adapters: attach, save, load. Knows peft; knows no mail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from panza.types import UserError


def attach_lora(net: Any, rank: int, alpha: int, dropout: float) -> Any:
    """`net` with fresh LoRA factors on every linear layer but the head (Hu et al. 2021; B = 0, so nothing changes yet)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM", bias="none"
    )
    learner = get_peft_model(net, config)
    return learner if dropout else joined_(learner)  # dropout acts on what the factors see alone


def joined_(net: Any) -> Any:
    """Let each plain fp32 linear layer of `net` add its factors to its weight before it multiplies; the result is the same.

    W + s·B·A costs a sum over the weights; peft's W·x + s·B·(A·x) walks the far larger activations five times more.
    Weights of fewer bits keep peft's way, since a small factor would drown in their rounding; so do layers with a forward
    of their own, and every call that is not a plain one: adapters disabled, merged, none or several.
    """
    import torch
    from peft.tuners.lora import Linear

    for layer in net.modules():
        base = getattr(layer, "base_layer", None)
        if type(layer) is Linear and type(base) is torch.nn.Linear and "forward" not in vars(base):
            if base.weight.dtype == torch.float32:
                layer.__class__ = _joined_layer()
    return net


@cache
def _joined_layer() -> type:
    from peft.tuners.lora import Linear

    class JoinedLora(Linear):
        def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or args or kwargs:
                return super().forward(x, *args, **kwargs)
            (name,), base = self.active_adapters, self.base_layer
            a, b = self.lora_A[name].weight, self.lora_B[name].weight
            return _joined_linear()(x, base.weight, base.bias, a, b, self.scaling[name])

    return JoinedLora


@cache
def _joined_linear() -> Callable[..., Any]:
    """(x, W, bias, A, B, s) -> (W + s·B·A)·x + bias. W (out, in) and the bias are frozen; A (r, in), B (out, r)."""
    import torch
    from torch.autograd import Function

    class JoinedLinear(Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
            ctx.save_for_backward(x, weight, a, b)
            ctx.scale = scale
            return torch.nn.functional.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
            x, weight, a, b = ctx.saved_tensors
            flat, inputs = grad.flatten(0, -2), x.flatten(0, -2)
            for_x = grad @ torch.addmm(weight, b, a, alpha=ctx.scale) if ctx.needs_input_grad[0] else None
            for_a = (flat @ b).T @ inputs * ctx.scale
            for_b = flat.T @ (inputs @ a.T) * ctx.scale
            return for_x, None, None, for_a, for_b, None

    return JoinedLinear.apply


def attach_saved(net: Any, folder: Path) -> Any:
    """`net` with the adapter in `folder`. Raises UserError if the adapter was trained on other weights."""
    from peft import PeftModel

    check(folder, lambda: base_hash(net))
    return PeftModel.from_pretrained(net, str(folder), local_files_only=True)


def merged(net: Any, folder: Path) -> Any:
    """`net` with the adapter in `folder` added to its weights, none of which may be compressed where the adapter is."""
    from peft import PeftModel

    learner = PeftModel.from_pretrained(net, str(folder), local_files_only=True)
    learner.merge_adapter()
    return learner.unload()  # merge_and_unload would untie ends that are compressed


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
