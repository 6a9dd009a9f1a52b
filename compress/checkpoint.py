"""Models in and out: our compressed checkpoints (safetensors + JSON), 8-bit rows, plain transformers directories.

A compressed checkpoint is the model's own config.json and tokenizer files, `FILE` with every tensor, and `SPEC` with
what rebuilds each compressed layer. Knows files; knows no method. Never reads a pickle.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.errors import CompressError
from compress.linear import QuantizedEmbedding, QuantizedLinear, quantized_layers
from compress.weight import QuantizedWeight

FILE, SPEC, VERSION = "compressed.safetensors", "compressed.json", 1
ALONG = ("tokenizer", "special_tokens", "vocab", "merges", "chat_template", "generation_config", "added_tokens")


def save_model(model: nn.Module, source: Path, out: Path, settings: dict[str, Any] | None = None) -> None:
    """Write a model with compressed layers to the directory `out`, whole or not at all.

    source: the directory the model came from (tokenizer files are copied). settings: kept in `SPEC` for the reader.
    """
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors, shared = _unshared(model.state_dict())
    layers = {name: _layer_spec(layer) for name, layer in quantized_layers(model).items()}
    save_file(tensors, part / FILE, metadata={"format": "pt"})
    spec = {"version": VERSION, "layers": layers, "shared": shared, "settings": settings or {}}
    (part / SPEC).write_text(json.dumps(spec, indent=1), encoding="utf-8")
    model.config.save_pretrained(part)
    for file in source.iterdir():
        if file.is_file() and file.name.startswith(ALONG):
            shutil.copyfile(file, part / file.name)
    if out.exists():
        shutil.rmtree(out)
    os.replace(part, out)


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """The causal language model in a directory: compressed by us, 8-bit rows, or plain transformers; eval mode.

    dtype: of everything that is not compressed. Raises CompressError for what is none of these, is damaged or altered.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CompressError(f"there is no model directory '{folder}': give one with a config.json")
    if (folder / SPEC).is_file():
        return _load_compressed(folder, dtype).to(device).eval()
    from compress.rows8 import is_rows8, load_rows8

    if is_rows8(folder):
        return load_rows8(folder).to(device, dtype).eval()
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CompressError(f"'{folder}' holds no causal language model that loads ({type(error).__name__})") from error


def bits_per_weight(folder: Path) -> dict[str, float]:
    """Bits a weight from the bytes of the file: of the layers in the blocks (`body`), of the rest, of all.

    Counted for every tensor of `FILE`, norms and tables included, over the weights of the uncompressed model.
    """
    spec = _spec(folder)
    layers, size, weights = spec["layers"], {"body": 0, "rest": 0}, {"body": 0, "rest": 0}
    linear = {name for name, layer in layers.items() if layer["module"] == "linear"}
    with _opened(folder) as file:
        for key in file.keys():
            tensor = file.get_tensor(key)
            owner = next((n for n in layers if key.startswith(n + ".quantized.")), None)
            where = "body" if owner in linear else "rest"
            size[where] += tensor.numel() * tensor.element_size() * 8
            weights[where] += tensor.numel() if owner is None else 0
    tied = {s.split(".quantized.")[0] for s in spec["shared"]}
    for name, layer in layers.items():
        rows, columns = layer["weight"]["shape"]
        weights["body" if name in linear else "rest"] += 0 if name in tied else rows * columns
    parts = {name: size[name] / max(weights[name], 1) for name in size}
    return parts | {"all": sum(size.values()) / max(sum(weights.values()), 1)}


def _unshared(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and for the other names of a shared one: name -> the name that holds it."""
    first: dict[tuple[int, torch.Size, torch.dtype], str] = {}
    tensors, shared = {}, {}
    for name, tensor in state.items():
        owner = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.dtype), name)
        if owner != name and tensor.numel():
            shared[name] = owner
        else:
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors, shared


def _layer_spec(layer: QuantizedLinear | QuantizedEmbedding) -> dict[str, Any]:
    linear = isinstance(layer, QuantizedLinear)
    return {
        "module": "linear" if linear else "embedding",
        "bias": linear and layer.bias is not None,
        "weight": layer.quantized.spec(),
    }


def _spec(folder: Path) -> dict[str, Any]:
    try:
        spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
        if spec["version"] != VERSION:
            raise CompressError(f"'{folder / SPEC}' is of version {spec['version']}; this version reads {VERSION}")
        spec["layers"], spec["shared"]  # noqa: B018  both have to be there
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CompressError(f"'{folder / SPEC}' is damaged: {type(error).__name__}") from error
    return spec


def _opened(folder: Path) -> Any:
    try:
        return safe_open(folder / FILE, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CompressError(f"'{folder / FILE}' is damaged or missing: {type(error).__name__}") from error


def _load_compressed(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = _spec(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        replace_layers_(model, spec["layers"])
    with _opened(folder) as file:
        state = {key: file.get_tensor(key) for key in file.keys()}
    state |= {name: state[owner] for name, owner in spec["shared"].items() if owner in state}
    _check(folder, model.state_dict(), state)
    model.load_state_dict(state, assign=True)
    _share_(model, spec["shared"])
    _fill_computed_(model, config)
    return model


def replace_layers_(model: nn.Module, layers: dict[str, Any]) -> None:
    """Put empty compressed layers, as `save_model` described them, in the place of the plain ones."""
    for name, layer in layers.items():
        try:
            owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            weight = QuantizedWeight.from_spec(layer["weight"])
            expected = tuple(getattr(owner, leaf).weight.shape)
            if weight.shape != expected:
                raise CompressError(f"layer '{name}' is {expected} in config.json, {weight.shape} in {SPEC}")
            linear, bias = layer["module"] == "linear", layer["bias"]
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise CompressError(f"{SPEC} describes no layer '{name}' of this model: {type(error).__name__}") from error
        made = QuantizedLinear(weight, torch.zeros(expected[0]) if bias else None) if linear else None
        setattr(owner, leaf, made or QuantizedEmbedding(weight))


def _check(folder: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Every tensor there, of the right shape and kind, and finite."""
    if lost := expected.keys() - found.keys():
        raise CompressError(f"'{folder / FILE}' lacks {len(lost)} tensors, '{min(lost)}' first")
    if extra := found.keys() - expected.keys():
        raise CompressError(f"'{folder / FILE}' holds {len(extra)} tensors that {SPEC} does not know: '{min(extra)}'")
    for name, tensor in found.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point():
            raise CompressError(
                f"tensor '{name}' is {tuple(tensor.shape)} {tensor.dtype}, not {tuple(wanted.shape)} {wanted.dtype}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CompressError(f"tensor '{name}' holds numbers that are not finite")


def _share_(model: nn.Module, shared: dict[str, str]) -> None:
    """Let shared tensors be one parameter again."""
    for name, owner in shared.items():
        (module, leaf), (source, key) = (n.rpartition(".")[::2] for n in (name, owner))
        setattr(model.get_submodule(module), leaf, getattr(model.get_submodule(source), key))


def _fill_computed_(model: nn.Module, config: Any) -> None:
    """Buffers that no file holds (RoPE's tables) are computed by their module anew."""
    for name, module in list(model.named_modules()):
        if any(b.is_meta for b in module.buffers(recurse=False)):
            owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            setattr(owner, leaf, type(module)(config=config))
