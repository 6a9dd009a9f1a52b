"""A whole model as one GGUF file for llama.cpp. Knows what llama.cpp calls things; knows no method, no codes.

Every layer is decoded and written at 16 bits; the smaller types llama.cpp itself makes of that (`gguf_types`). A
transformers model becomes one of `ARCHITECTURES`; what such a one cannot say is refused by name. Adapters: `gguf_lora`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from compress.errors import CompressError
from compress.files import new_file
from compress.formats import dense_tensors, tied_names
from compress.formats.gguf_types import (
    PLAIN_TYPES,
    calibration,
    check_type,
    half_for,
    importance,
    needs_importance,
    requantize,
)
from compress.formats.gguf_vocabulary import NEAR, vocabulary
from compress.llama_cpp import package
from compress.text import load_tokenizer

Numbers = dict[str, Any]  # by GGUF's keys without the architecture's name
Scaling = tuple[Numbers, dict[str, Tensor]]  # and tensors by name


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls a kind of model, and how its file differs from what transformers keeps."""

    name: str
    activation: str = "silu"
    paired: bool = False  # its RoPE turns neighbours where transformers turns halves: rows of Q and K change places
    norm: float = 0.0  # what its norms' weights lack of the factor that they are
    windows: bool = False  # knows attention to the last tokens alone; if not, the context ends with the window
    factors: tuple[str, ...] = ()  # the RoPE scalings that it takes as a factor for each frequency
    caps: bool = False  # bounds the attention's logits if asked
    own_head: bool = True  # may have a head apart from the embedding
    wide: int = 0  # so many layers means that the attention's scale comes from the hidden size


ARCHITECTURES = {  # transformers' model_type
    "llama": Architecture("llama", paired=True, factors=("llama3",)),
    "mistral": Architecture("llama", paired=True, factors=("llama3",)),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "phi3": Architecture("phi3", factors=("longrope",)),
    "gemma2": Architecture("gemma2", "gelu_pytorch_tanh", norm=1.0, windows=True, caps=True, own_head=False, wide=46),
    "gemma3_text": Architecture("gemma3", "gelu_pytorch_tanh", norm=1.0, windows=True, wide=62),
}


def export_gguf(
    model: nn.Module,
    source: Path,
    out: Path,
    kind: str = "F16",
    text: Path | None = None,
    sequences: int = 64,
    alike: float = NEAR,
) -> dict[str, Any]:
    """Write the model to the new file `out`, whole or not at all; what its reader should know of it.

    source: the directory with the tokenizer. kind: llama.cpp's name of a type. text: weighs the inputs of each layer by
    what `sequences` of it bring there; for types that need this, the model's own samples serve if there is none. alike:
    the least share of tokens that llama.cpp has to split as the tokenizer does; 0 for a reader that brings its own.
    Raises CompressError, naming what llama.cpp has no place for.
    """
    if out.exists():
        raise CompressError(f"'{out}' exists: name a new file")
    check_type(kind)
    if sequences < 1:
        raise CompressError(f"sequences is {sequences}: give 1 or more")
    arch = architecture(model)
    tokenizer, names = load_tokenizer(source), tensor_names(arch, model.config)
    words, found = vocabulary(tokenizer, len(model.get_input_embeddings().weight), alike)
    numbers, tensors = _numbers(model.config, arch)
    keys = {"general.name": source.resolve().name, **{f"{arch.name}.{k}": v for k, v in numbers.items()}, **words}
    for name, tensor in dense_tensors(model, {}, torch.float32).items():
        if name not in tied_names(model):
            tensors[names(name)] = tensor_value(name, tensor, arch, model.config)
    with new_file(out) as part:
        if kind in PLAIN_TYPES:
            write(part, arch.name, keys, tensors, kind)
        else:
            read = {}
            if text is not None or needs_importance(kind):
                read = importance(model, calibration(model, tokenizer, text, sequences))
            with new_file(out.with_name(out.name + ".16"), keep=False) as whole:
                write(whole, arch.name, keys, tensors, half_for(tensors.values()))
                requantize(whole, part, kind, {names(f"{layer}.weight"): x for layer, x in read.items()})
    return {"type": kind, "pre": words["tokenizer.ggml.pre"], "alike": found}


def architecture(model: nn.Module) -> Architecture:
    """Raises CompressError for a model that llama.cpp has, as far as this file knows, no place for."""
    config = model.config
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise CompressError(f"a '{config.model_type}' has no GGUF here: choose one of {', '.join(ARCHITECTURES)}")
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    scale = getattr(config, "query_pre_attn_scalar", None)
    known_scale = config.hidden_size // heads if found.wide and layers == found.wide else _head(config)
    wrong = {
        f"its activation is {activation}, not {found.activation}": activation != found.activation,
        f"its attention's scale is {scale}, not {known_scale}": scale not in (None, known_scale),
        "its head is not the embedding": not (found.own_head or config.tie_word_embeddings),
        "its attention is capped": bool(getattr(config, "attn_logit_softcapping", None)) and not found.caps,
        "its attention is bidirectional": bool(getattr(config, "use_bidirectional_attention", False)),
    }
    for reason, holds in wrong.items():
        if holds:
            raise CompressError(f"llama.cpp's '{found.name}' cannot say this {config.model_type}: {reason}")
    return found


def _head(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _numbers(config: Any, arch: Architecture) -> Scaling:
    """What llama.cpp has to know of the model, and the tensors of its RoPE's scaling."""
    rope, factors = _rope(config, arch)
    window = _window(config)
    made = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": _head(config),
        "attention.value_length": _head(config),
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        **rope,
    }
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        made |= {cap: value} if (value := getattr(config, cap, None)) else {}
    if window and arch.windows:
        made["attention.sliding_window"] = window
        made["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config.layer_types]
    elif window:
        made["context_length"] = min(window, config.max_position_embeddings)
    return made, factors


def _window(config: Any) -> int | None:
    """To how many tokens some layer attends at most; None: all to all."""
    kinds = getattr(config, "layer_types", None)
    return getattr(config, "sliding_window", None) if kinds is None or "sliding_attention" in kinds else None


def _rope(config: Any, arch: Architecture) -> Scaling:
    settings = config.rope_parameters
    rope = settings.get("full_attention", settings)  # Gemma 3 has another for its windows
    kind, turned = rope.get("rope_type", "default"), int(_head(config) * rope.get("partial_rotary_factor", 1.0))
    if kind not in ("default", "linear", "yarn", *arch.factors):
        raise CompressError(f"llama.cpp's '{arch.name}' has no RoPE scaling '{kind}'")
    made = {"rope.freq_base": float(rope["rope_theta"]), "rope.dimension_count": turned}
    if "sliding_attention" in settings:
        made["rope.freq_base_swa"] = float(settings["sliding_attention"]["rope_theta"])
    if kind == "default":
        return made, {}
    numbers, factors = SCALINGS[kind](config, rope, turned)
    return made | numbers, factors


def _linear(config: Any, rope: dict[str, Any], turned: int) -> Scaling:
    return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}, {}


def _llama3(config: Any, rope: dict[str, Any], turned: int) -> Scaling:
    """By how much each frequency is lower than it would be."""
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = rope["rope_theta"] ** -(torch.arange(0, turned, 2).float() / turned)
    return {}, {"rope_freqs.weight": plain / frequencies}


def _yarn(config: Any, rope: dict[str, Any], turned: int) -> Scaling:
    before = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    factor = rope.get("factor") or config.max_position_embeddings / before
    attention = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))[1]
    made = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(factor),
        "rope.scaling.original_context_length": before,
        "rope.scaling.attn_factor": attention / (1 + 0.1 * math.log(factor)),  # by which it multiplies itself
    }
    return made | {f"rope.scaling.yarn_{b}": float(rope[b]) for b in ("beta_fast", "beta_slow") if rope.get(b)}, {}


def _longrope(config: Any, rope: dict[str, Any], turned: int) -> Scaling:
    """llama.cpp takes the long factors for a context beyond the original one, whatever the text's length."""
    made = {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "rope.scaling.attn_factor": float(ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))[1]),
    }
    return made, {f"rope_factors_{n}.weight": torch.tensor(rope[f"{n}_factor"]).float() for n in ("long", "short")}


SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}


def tensor_names(arch: Architecture, config: Any) -> Callable[[str], str]:
    """llama.cpp's name of a tensor, from transformers'. Raises CompressError for one that it does not have."""
    gguf = package("gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.name.upper()], config.num_hidden_layers)

    def named(name: str) -> str:
        if (found := names.get_name(name, (".weight", ".bias"))) is None:
            raise CompressError(f"llama.cpp's '{arch.name}' has no place for the tensor '{name}'")
        return found

    return named


def tensor_value(name: str, tensor: Tensor, arch: Architecture, config: Any) -> Tensor:
    """The tensor as llama.cpp computes with it."""
    layer, _, leaf = name.rpartition(".")
    if arch.paired and layer.endswith(("q_proj", "k_proj")):
        pairs = tensor.unflatten(0, (-1, 2, _head(config) // 2))  # (heads, halves, frequencies, ...)
        return pairs.transpose(1, 2).flatten(0, 2).contiguous()
    return tensor + arch.norm if layer.endswith("norm") and leaf == "weight" else tensor


def write(path: Path, arch: str, keys: dict[str, Any], tensors: dict[str, Tensor], kind: str) -> None:
    """A file of one of PLAIN_TYPES: matrices of that type, vectors fp32."""
    gguf = package("gguf")
    writer = gguf.GGUFWriter(path, arch)
    writer.add_file_type(check_type(kind))
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in keys.items():
        add.get(type(value), writer.add_array)(key, value)
    for name, tensor in tensors.items():
        made = tensor.to(PLAIN_TYPES[kind] if tensor.dim() > 1 else torch.float32)
        if not made.isfinite().all():
            raise CompressError(f"tensor '{name}' is beyond what {kind} holds: choose BF16 or F32")
        if made.dtype == torch.bfloat16:
            raw = made.view(torch.int16).numpy()  # numpy has no bfloat16
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, made.numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
