"""A Llama model with every matrix as int8 rows with one fp16 scale each, and back. Knows tensors; knows no method.

`W[n] ~ scale[n] * code[n]`, code in -127..127, scale[n] = max|W[n]| / 127: half the bytes of bf16, a loss that is hard
to measure. The folder is a plain transformers one (config.json, tokenizer.json, ...) whose weights lie in `FILE`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from compress.errors import BROKEN, CompressError

FILE = "rows8.safetensors"  # not model.safetensors: plain transformers would read the codes as weights
SCALE = ".scale"
TIED = "lm_head.weight"


def is_rows8(folder: Path) -> bool:
    """Whether `folder` holds a model that `load_rows8` reads."""
    return (folder / FILE).is_file()


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> codes (N, D) int8 and scales (N,) fp16, round to nearest."""
    w = weight.detach().float().cpu()
    scale = (w.abs().amax(dim=1) / 127).clamp(min=1e-7).half()
    codes = (w / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return codes, scale


def dequantize_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """codes (N, D), scales (N,) -> fp32 (N, D)."""
    return codes.float() * scale.float()[:, None]


def save_rows8(model: LlamaForCausalLM, folder: Path) -> None:
    """Write weights, config.json and generation_config.json into `folder`. Embeddings must be tied."""
    assert model.config.tie_word_embeddings, "rows8 keeps one matrix for both ends of the vocabulary"
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if name == TIED:
            continue
        if weight.dim() == 2:
            tensors[name], tensors[name + SCALE] = quantize_rows(weight)
        else:
            tensors[name] = weight.detach().float().cpu().contiguous()
    temp = folder / (FILE + ".part")
    save_file(tensors, temp, metadata={"format": "pt"})
    temp.replace(folder / FILE)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def load_rows8(folder: Path) -> LlamaForCausalLM:
    """The model in `folder`, fp32, in eval mode. Raises CompressError for a damaged one."""
    if not is_rows8(folder):
        raise CompressError(
            f"'{folder}' holds no {FILE}: give a folder that has one, or a plain transformers directory"
        )
    try:
        return _loaded(folder)
    except BROKEN as error:
        raise CompressError(f"'{folder}' is damaged: {type(error).__name__}") from error


def _loaded(folder: Path) -> LlamaForCausalLM:
    stored = load_file(folder / FILE)
    state = {
        name: dequantize_rows(t, stored[name + SCALE]) if t.dtype == torch.int8 else t.float()
        for name, t in stored.items()
        if not name.endswith(SCALE)
    }
    config = LlamaConfig.from_pretrained(folder)
    config.dtype = torch.float32
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    # RoPE's tables are no parameters: they are computed, so the meta model is filled by a real one's buffers.
    model = model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model.load_state_dict({**state, TIED: state["model.embed_tokens.weight"]}, strict=True)
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()
