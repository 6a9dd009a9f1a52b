"""Models in and out: our compressed checkpoints (safetensors + JSON), 8-bit rows, plain transformers directories.

A compressed checkpoint is the model's own config.json and tokenizer files, `FILE` with every tensor, and `SPEC` with
what rebuilds each compressed layer. Knows files; knows no method. Never reads a pickle.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.blocks import find_blocks
from compress.errors import BROKEN, CompressError
from compress.files import new_folder
from compress.linear import QuantizedEmbedding, QuantizedLinear, quantized_layers
from compress.weight import QuantizedWeight

FILE, SPEC, VERSION = "compressed.safetensors", "compressed.json", 1
MOST_LAYERS = 4096  # a config that asks for more is damaged: building their modules alone would take hours
ALONG = ("tokenizer", "special_tokens", "vocab", "merges", "chat_template", "generation_config", "added_tokens")


def save_model(model: nn.Module, source: Path, out: Path, settings: dict[str, Any] | None = None) -> None:
    """Write a model with compressed layers to the directory `out`, whole or not at all.

    source: the directory the model came from (tokenizer files are copied). settings: kept in `SPEC` for the reader.
    """
    check_replaceable(out)
    tensors, shared = unshared(model.state_dict())
    tensors = {name: _half(tensor) if ".quantized." not in name else tensor for name, tensor in tensors.items()}
    layers = {name: layer_spec(layer) for name, layer in quantized_layers(model).items()}
    spec = {"version": VERSION, "layers": layers, "shared": shared, "parts": _parts(model), "settings": settings or {}}
    with new_folder(out) as part:
        save_file(tensors, part / FILE, metadata={"format": "pt"})
        (part / SPEC).write_text(json.dumps(spec, indent=1), encoding="utf-8")
        model.config.save_pretrained(part)
        copy_tokenizer(source, part)


def check_replaceable(out: Path) -> None:
    """Raises CompressError for an `out` that is there and holds anything but a compressed model."""
    if not out.exists():
        return
    names = {file.name for file in out.iterdir()} if out.is_dir() else {""}
    foreign = sorted(n for n in names - {FILE} if not n.endswith(".json") and not n.startswith(ALONG))
    if names and (foreign or SPEC not in names):
        held = f" (it holds '{foreign[0]}')" if foreign and foreign[0] else ""
        raise CompressError(f"'{out}' exists and is no compressed model alone{held}: name a new directory")


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy what makes text of ids and back, and the generation settings."""
    for file in source.iterdir():
        if file.is_file() and file.name.startswith(ALONG):
            shutil.copyfile(file, out / file.name)


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """The causal language model in a directory: compressed by us or another library, 8-bit rows, or plain; eval mode.

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
    from compress.formats import import_model, is_foreign

    if is_foreign(folder):
        return import_model(folder, dtype).to(device).eval()
    return _load_plain(folder, dtype).to(device).eval()


def _load_plain(folder: Path, dtype: torch.dtype) -> nn.Module:
    """A transformers directory, none of whose tensors may be drawn at random because it lacks or does not fit."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        check_layers(AutoConfig.from_pretrained(folder, local_files_only=True))
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # weights_only refuses a pickle that is more than tensors in a class of its own
        raise CompressError(f"'{folder}' holds no causal language model that loads ({type(error).__name__})") from error
    if lost := sorted(found["missing_keys"]):
        raise CompressError(f"'{folder}' lacks {len(lost)} tensors of its model, '{lost[0]}' first")
    if wrong := sorted(str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"]):
        raise CompressError(f"'{folder}' holds tensors of other shapes than its config.json says, '{wrong[0]}' first")
    return model


def check_layers(config: Any) -> None:
    """Raises ValueError for a config.json that asks for more layers than a model has."""
    if config.get_text_config().num_hidden_layers > MOST_LAYERS:
        raise ValueError("layers")


def _half(tensor: Tensor) -> Tensor:
    """Matrices that nothing compresses lie in 16 bits: fp16 if it can hold them, else bf16."""
    if tensor.dim() < 2 or tensor.dtype != torch.float32:
        return tensor
    return tensor.half() if tensor.abs().max() < 65504 else tensor.bfloat16()


def _parts(model: nn.Module) -> dict[str, str]:
    """Where the tensors of each part of the model are: prefixes of names."""
    modules = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    found = {part: next(n for n, m in model.named_modules() if m is module) for part, module in modules.items()}
    return {part: name + "." for part, name in (("body", find_blocks(model)[0]), *found.items())}


def bits_per_weight(folder: Path) -> dict[str, float]:
    """Bits a weight from the bytes of the file: of the matrices in the blocks (`body`), of `embeddings`, `head`, `all`.

    A part's bytes are those of its matrices with all their tables; `all` counts every tensor of `FILE`, norms too. A
    head that shares the embedding's weight has its bits, once in `all`.
    """
    spec = _spec(folder)
    layers = spec["layers"]
    size: dict[str, int] = {}  # of a compressed layer or a plain tensor: bits
    count: dict[str, int] = {}  # weights
    matrices = set(layers)
    with _opened(folder) as file:
        for key in file.keys():
            tensor, owner = file.get_tensor(key), key.split(".quantized.")[0]
            size[owner] = size.get(owner, 0) + tensor.numel() * tensor.element_size() * 8
            count[owner] = math.prod(layers[owner]["weight"]["shape"]) if owner in layers else tensor.numel()
            matrices |= {owner} if tensor.dim() > 1 else set()
    names = {name.split(".quantized.")[0]: owner.split(".quantized.")[0] for name, owner in spec["shared"].items()}
    names |= {name: name for name in size}  # where each name's bytes are
    bits = {"all": sum(size.values()) / max(sum(count.values()), 1)}
    for part, prefix in spec["parts"].items():
        found = {owner for name, owner in names.items() if (name + ".").startswith(prefix) and owner in matrices}
        bits[part] = sum(size[n] for n in found) / max(sum(count[n] for n in found), 1)
    return bits


def unshared(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
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


def layer_spec(layer: QuantizedLinear | QuantizedEmbedding) -> dict[str, Any]:
    """JSON from which `replace_layers_` builds the empty layer."""
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
            raise CompressError(f"'{folder / SPEC}' is of another version; this one reads version {VERSION}")
        whole = all(isinstance(spec[key], dict) for key in ("layers", "shared", "parts"))
    except BROKEN as error:
        raise CompressError(f"'{folder / SPEC}' is damaged: {type(error).__name__}") from error
    if not whole:
        raise CompressError(f"'{folder / SPEC}' is damaged: it needs layers, shared and parts, each by name")
    return spec


def _opened(folder: Path) -> Any:
    try:
        return safe_open(folder / FILE, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CompressError(f"'{folder / FILE}' is damaged or missing: {type(error).__name__}") from error


def _load_compressed(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = _spec(folder)
    with torch.device("meta"):  # nothing is allocated for sizes that the tensors do not have
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            check_layers(config)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        except BROKEN as error:
            raise CompressError(f"'{folder / 'config.json'}' describes no model: {type(error).__name__}") from error
        replace_layers_(model, spec["layers"])
    try:
        with _opened(folder) as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
    except BROKEN as error:
        raise CompressError(f"'{folder / FILE}' is damaged: {type(error).__name__}") from error
    _check_shared(spec["shared"], model, state)
    state |= {name: state[owner] for name, owner in spec["shared"].items()}
    assign_tensors_(model, config, folder, state, dtype)
    share_(model, spec["shared"])
    return model


def _check_shared(shared: dict[str, Any], model: nn.Module, state: dict[str, Tensor]) -> None:
    """Names of this model's tensors, each of one that the file holds."""
    expected = model.state_dict()
    for name, owner in shared.items():
        if name not in expected or name in state or not isinstance(owner, str) or owner not in state:
            raise CompressError(f"{SPEC} says that '{name}' is another tensor, and there is no such one")


def assign_tensors_(
    model: nn.Module, config: Any, folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Fill a model made on the meta device; what is not compressed becomes `dtype`. Raises CompressError if they differ."""
    plain = {n for n in tensors if ".quantized." not in n and tensors[n].is_floating_point()}
    state = {n: t.to(dtype) if n in plain else t for n, t in tensors.items()}
    expected = model.state_dict()
    if config.tie_word_embeddings:
        for name in set(getattr(model, "_tied_weights_keys", None) or ()) & expected.keys() - state.keys():
            state[name] = state[_input_embedding(model)]
    compressed = {n for n in expected if ".quantized." in n} - state.keys()
    state |= {n: expected[n] for n in compressed if not expected[n].is_meta}  # an imported layer brought its own
    _check(folder, expected, state)
    model.load_state_dict(state, assign=True)
    for name, layer in quantized_layers(model).items():
        try:
            layer.quantized.check()
        except CompressError as error:
            raise CompressError(f"layer '{name}' of '{folder}' is damaged: {error}") from error
    if isinstance(embedding := model.get_input_embeddings(), QuantizedEmbedding):
        embedding.dtype = dtype
    else:
        model.tie_weights()
    fill_computed_(model)


def _input_embedding(model: nn.Module) -> str:
    table = model.get_input_embeddings()
    return next(f"{n}.weight" for n, m in model.named_modules() if m is table)


def replace_layers_(model: nn.Module, layers: dict[str, Any]) -> None:
    """Put empty compressed layers, as `save_model` described them, in the place of the plain ones."""
    for name, layer in layers.items():
        try:
            owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            weight = QuantizedWeight.from_spec(layer["weight"])
            plain, linear, bias = getattr(owner, leaf), layer["module"] == "linear", layer["bias"]
            expected = tuple(plain.weight.shape)
            if weight.shape != expected or not isinstance(plain, nn.Linear if linear else nn.Embedding):
                raise CompressError(f"layer '{name}' is {expected} in config.json, {weight.shape} in {SPEC}")
        except BROKEN as error:
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
        fits = tensor.dtype == wanted.dtype if ".quantized." in name else tensor.is_floating_point()
        if tensor.shape != wanted.shape or not fits:
            raise CompressError(
                f"tensor '{name}' is {tuple(tensor.shape)} {tensor.dtype}, not {tuple(wanted.shape)} {wanted.dtype}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CompressError(f"tensor '{name}' holds numbers that are not finite")


def share_(model: nn.Module, shared: dict[str, str]) -> None:
    """Let shared tensors be one parameter again."""
    for name, owner in shared.items():
        (module, leaf), (source, key) = (n.rpartition(".")[::2] for n in (name, owner))
        setattr(model.get_submodule(module), leaf, getattr(model.get_submodule(source), key))


def fill_computed_(model: nn.Module) -> None:
    """Buffers that no file holds (RoPE's tables, an embedding's factor) are computed anew, as transformers does it."""
    for module in model.modules():
        empty = {name: b for name, b in module.named_buffers(recurse=False) if b.is_meta}
        for name, buffer in empty.items():
            module.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)
        if empty:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = True  # loaded: not to be drawn at random
            model._init_weights(module)
