"""Compressed models of other libraries, in and out. Knows files and layers; each layout has a file of its own.

A format is a module with: MARK (the tensor whose presence says that a layer is of this format), SUFFIXES (all of
them), `read(tensors, shape, settings)` -> QuantizedWeight, `write(weight, name)` -> tensors, and `settings(name, layers,
plain)` -> the `quantization_config` of config.json, plain: the matrices that are not compressed. All raise CompressError
for what they cannot say. To add one: its file, and its line in FORMATS. PLAIN has no codes and so no file. GGUF is a
whole model in one file, written by `gguf.export_gguf` with the help of gguf_vocabulary and gguf_types.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compress.checkpoint import copy_tokenizer, fill_computed_
from compress.errors import BROKEN, CompressError
from compress.files import new_folder
from compress.linear import QuantizedEmbedding, QuantizedLinear, quantized_layers

PLAIN = "plain"  # every layer decoded, for libraries that read nothing smaller
GGUF = "gguf"  # one file for llama.cpp, of any model: `gguf.py`
FORMATS = {
    "aqlm": "compress.formats.aqlm",
    "gptq": "compress.formats.gptq",
    "gptq_v2": "compress.formats.gptq",
    "compressed-tensors": "compress.formats.compressed_tensors",
    "spqr": "compress.formats.spqr",
}


def format_module(name: str) -> ModuleType:
    """The module of a format. Raises CompressError for an unknown one."""
    if name not in FORMATS:
        raise CompressError(f"unknown format '{name}': choose one of {', '.join((PLAIN, *FORMATS, GGUF))}")
    return import_module(FORMATS[name])


def export_model(model: nn.Module, source: Path, out: Path, name: str, dtype: torch.dtype = torch.float16) -> int:
    """Write a compressed model as another library loads it to a new directory, whole or not at all.

    name: PLAIN or of FORMATS. Compressed embeddings, and the head, become plain `dtype`: libraries expect no codes there. Returns
    how many layers stay compressed. Raises CompressError, naming the layer, for a weight that the format cannot hold.
    """
    module = None if name == PLAIN else format_module(name)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CompressError(f"'{out}' exists: name a new directory")
    head = model.get_output_embeddings()
    compressed = quantized_layers(model) if module else {}
    layers = {n: m for n, m in compressed.items() if isinstance(m, QuantizedLinear) and m is not head}
    tensors: dict[str, Tensor] = {}
    for layer_name, layer in layers.items():
        written = _written(module, layer_name, layer, name)
        tensors |= {f"{layer_name}.{suffix}": t.contiguous() for suffix, t in written.items()}
        if layer.bias is not None:
            tensors[f"{layer_name}.bias"] = layer.bias.detach().to(dtype)
    dense = dense_tensors(model, layers, dtype)
    plain = sorted(n for n in dense if n.endswith(".weight"))
    tensors |= {n: t for n, t in dense.items() if n not in tied_names(model)}
    config = json.loads(model.config.to_json_string(use_diff=False)) | {"dtype": str(dtype).removeprefix("torch.")}
    if layers:
        config["quantization_config"] = module.settings(name, layers, plain)
    _write(out, source, tensors, config)
    return len(layers)


def import_model(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model in a directory of one of FORMATS, its layers compressed as they lie there. Raises CompressError."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from compress.checkpoint import assign_tensors_, check_layers

    settings = _settings(folder)
    module = format_module(settings["quant_method"])
    tensors = read_tensors(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        check_layers(config)
        del config.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except BROKEN as error:
        raise CompressError(f"'{folder / 'config.json'}' describes no model: {type(error).__name__}") from error
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]:
        if f"{name}.{module.MARK}" in tensors:
            own = {s: t for s in module.SUFFIXES if (t := tensors.pop(f"{name}.{s}", None)) is not None}
            weight = _read(module, name, own, (layer.out_features, layer.in_features), settings)
            made = QuantizedLinear(weight, tensors.get(f"{name}.bias"))
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], made)
    assign_tensors_(model, config, folder, tensors, dtype)
    return model.eval()


def is_foreign(folder: Path) -> bool:
    """Whether a directory says that it holds a compressed model which `import_model` reads."""
    try:
        return _settings(folder)["quant_method"] in FORMATS
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a transformers directory: safetensors, else .bin read with weights_only."""
    files = sorted(folder.glob("*.safetensors"))
    old = sorted(folder.glob("pytorch_model*.bin")) if not files else []
    tensors: dict[str, Tensor] = {}
    try:
        for file in files:
            tensors |= load_file(file)
        for file in old:
            tensors |= torch.load(file, map_location="cpu", weights_only=True)
    except BROKEN as error:
        raise CompressError(f"'{file}' is damaged: {type(error).__name__}") from error
    except Exception as error:  # weights_only refuses anything but tensors with an UnpicklingError
        raise CompressError(f"'{file}' holds more than tensors and is not read: {type(error).__name__}") from error
    if not tensors:
        raise CompressError(f"'{folder}' holds no .safetensors and no .bin file")
    return tensors


def _settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]


def _written(module: ModuleType, layer_name: str, layer: QuantizedLinear, name: str) -> dict[str, Tensor]:
    try:
        return module.write(layer.quantized, name)
    except CompressError as error:
        raise CompressError(f"layer '{layer_name}' cannot be written as {name}: {error}") from error


def _read(
    module: ModuleType, name: str, tensors: dict[str, Tensor], shape: tuple[int, int], settings: dict[str, Any]
) -> Any:
    try:
        return module.read(tensors, shape, settings)
    except BROKEN as error:
        raise CompressError(f"the tensors of layer '{name}' do not fit together: {type(error).__name__}") from error


def dense_tensors(model: nn.Module, layers: dict[str, nn.Module], dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything outside of `layers`, decoded, by the names of a plain model."""
    inside = tuple(f"{name}." for name in layers)
    tensors = {n: t for n, t in model.state_dict().items() if not n.startswith(inside) and ".quantized." not in n}
    for name, layer in quantized_layers(model).items():
        if name not in layers:
            factor = _factor(model.config) if isinstance(layer, QuantizedEmbedding) else 1.0
            tensors[f"{name}.weight"] = layer.quantized.dense() / factor
    cast = {n: t.detach().to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    return {n: t.cpu().clone().contiguous() for n, t in cast.items()}


def _factor(config: Any) -> float:
    """What a plain model multiplies its embedding's rows with (Gemma: the root of the width): compressed rows hold it."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embedding = model.get_input_embeddings()
    embedding.weight = nn.Parameter(torch.ones(1, 1).expand(embedding.weight.shape))
    fill_computed_(model)
    return embedding(torch.zeros(1, dtype=torch.long))[0, 0].item()


def tied_names(model: nn.Module) -> set[str]:
    """Names of weights that transformers fills from others."""
    return set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()


def _write(out: Path, source: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    with new_folder(out) as part:
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        (part / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        copy_tokenizer(source, part)
