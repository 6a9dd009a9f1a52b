"""The one seam to language models: load base (+ adapter), count tokens, generate text from chat messages.

A backend is a class with `encode` and `generate`, in a file of its own. Knows transformers and peft; knows no mail.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from panza import adapters
from panza.home import shipped
from panza.models.base import Model, Sampling
from panza.models.chat import ChatTokenizer
from panza.models.hugging_face import Completion, TorchModel, choose, complete_batch, generate_batch
from panza.types import UserError

__all__ = [
    "ChatTokenizer", "Completion", "Model", "Sampling", "TorchModel",
    "adapter_beside", "base_id", "check_learns", "choose", "complete_batch", "generate_batch", "folder", "hub_allowed", "is_gguf", "load", "load_base",
    "load_for_drafts", "settle_libraries",
]  # fmt: skip

EMBEDDED = shipped("base")
COMPRESSED = ("rows8.safetensors", "compressed.safetensors")  # files of the models that `compress` writes


BACKENDS = ("auto", "native", "torch", "llama.cpp")


def load_for_drafts(
    base: str = "",
    adapter: Path | None = None,
    fetch: bool = False,
    backend: str = "auto",
    kept: Path | None = None,
) -> tuple[Model, str]:
    """(the model to draft with, why it is not the native one or ""). adapter, fetch: as in `load`.

    base: as in `load`, or a GGUF file, which llama.cpp runs. backend: "native", "torch", "llama.cpp", or "auto": native
    for what it knows, torch for the rest and where there is a GPU. kept: the folder for the files that llama.cpp needs
    of other models. Raises UserError for a backend that cannot run this model.
    """
    if backend not in BACKENDS:
        raise UserError(f"'{backend}' is no backend: choose one of {', '.join(BACKENDS)}.")
    settle_libraries()
    if is_gguf(base) or backend == "llama.cpp":
        return _load_llama_cpp(base, adapter, fetch, backend, kept), ""
    if backend == "torch" or (backend == "auto" and _has_gpu()):
        return load(base, adapter, fetch), ""
    from compress.errors import CompressError
    from compress.runtime import Unsupported
    from panza.models.native import open_native

    place = folder(base)
    try:
        if place is None:
            raise Unsupported(f"'{base}' is no directory")
        if adapter is not None:
            adapters.check(adapter, lambda: adapters.base_hash_of(place))
        return open_native(place, adapter, base_id(base)), ""
    except Unsupported as error:
        if backend == "native":
            raise UserError(f"The native backend cannot run this: {error}.") from error
        return load(base, adapter, fetch), str(error)
    except CompressError as error:
        raise UserError(f"{error}.") from error


def _load_llama_cpp(base: str, adapter: Path | None, fetch: bool, backend: str, kept: Path | None) -> Model:
    from compress.errors import CompressError
    from panza.models.llama_cpp import open_gguf, open_written, package

    if is_gguf(base):
        if backend not in ("auto", "llama.cpp"):
            raise UserError(f"'{base}' is a GGUF file, which llama.cpp runs, not {backend}: leave --backend out.")
        if adapter is not None and adapter.suffix != ".gguf":
            raise UserError(
                f"'{base}' is a GGUF file, and so must its adapter be: python -m compress.export writes such ones."
            )
        return open_gguf(Path(base).expanduser(), base_id(base), adapter)
    package()  # said before anything is fetched
    if (place := folder(base)) is None:
        load_base(base, fetch)
        place = folder(base)
    assert place is not None and kept is not None, "llama.cpp needs files on this computer"
    try:
        return open_written(place, adapter, base_id(base), kept)
    except CompressError as error:
        raise UserError(f"The llama.cpp backend cannot run this: {error}.") from error


def is_gguf(base: str) -> bool:
    """Whether `base` names a GGUF file."""
    return base.lower().endswith(".gguf") and not Path(base).expanduser().is_dir()


def adapter_beside(base: str) -> Path | None:
    """The adapter of a GGUF base: FILE.lora.gguf beside FILE.gguf, if there is one."""
    file = Path(base).expanduser().with_suffix(".lora.gguf") if is_gguf(base) else None
    return file if file and file.is_file() else None


def check_learns(base: str) -> None:
    """Raises UserError for a base that can only draft."""
    if is_gguf(base):
        raise UserError(f"'{base}' is a GGUF file, which only drafts: for this give --base a Hugging Face model or ''.")


def folder(base: str) -> Path | None:
    """The directory of a base, or of a hub model that is on this computer already."""
    where = _place(base)
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(where, local_files_only=True))
    except (OSError, ValueError):
        return None


def _has_gpu() -> bool:
    """Whether torch would use a GPU. Asks torch only where there is a driver."""
    if not any(Path(p).exists() for p in ("/proc/driver/nvidia/version", "/dev/kfd")) and os.name != "nt":
        return False
    return _device() == "cuda"


def load(base: str = "", adapter: Path | None = None, fetch: bool = False) -> TorchModel:
    """The model to draft with. base, fetch: as in `load_base`. adapter: a folder that `panza train` wrote.

    A compressed one is for drafts alone: on a GPU its layers are what the kernels there read, and no more.
    """
    net, tokenizer = _open(base, fetch)
    packs = _packs(net)
    net = net if packs else _held(net)
    if adapter is not None:
        net = adapters.attach_saved(net, adapter)
    if packs:
        net = _packed(net)
    return TorchModel(net.eval(), ChatTokenizer(tokenizer), base_id(base))


def _packs(net: Any) -> bool:
    """Whether a GPU's kernels multiply the codes of this model."""
    from compress.cuda import usable
    from compress.linear import quantized_layers

    return bool(quantized_layers(net)) and usable(net.device, _dtype())


def _packed(net: Any) -> Any:
    """`net` with the codes of each compressed layer as the kernels read them; those that they do not take are decoded once."""
    from compress.linear import pack_

    return _held(pack_(net, _dtype()))


def _held(net: Any) -> Any:
    """`net` with each compressed layer decoded once."""
    from compress.linear import hold_

    return hold_(net, _dtype())


def base_id(base: str) -> str:
    """The name that reports and adapters carry for a base."""
    return base or "panza-base"


def weights_id(base: str) -> str:
    """Names the weights that a base has now, whatever it is called; "" if they cannot be read without torch."""
    from compress.errors import CompressError

    try:
        place = folder(base)
        return adapters.base_hash_of(place) if place else ""
    except (CompressError, UserError, OSError):
        return ""


def load_base(base: str = "", fetch: bool = False) -> tuple[Any, Any]:
    """(transformers causal LM, fast tokenizer) on the GPU if there is one. Raises UserError if there is none.

    base: "" for the embedded model, a directory, or a hub name.
    fetch: a hub name that is not in the local cache may be downloaded; nothing else ever touches the network.
    """
    net, tokenizer = _open(base, fetch)
    return _held(net), tokenizer


def _open(base: str, fetch: bool) -> tuple[Any, Any]:
    """`load_base` before its compressed weights, if it has any, are decoded."""
    settle_libraries()
    where = _place(base)
    try:
        net, tokenizer = _load(where, local=True)
    except _LOAD_ERRORS as error:
        if Path(where).is_dir() or not fetch:
            raise _no_model(where, base, error) from error
        try:
            with hub_allowed():
                net, tokenizer = _load(where, local=False)
        except _LOAD_ERRORS as error:
            raise _no_model(where, base, error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"The model '{base}' has no fast tokenizer (tokenizer.json), which Panza needs to mask prompts."
        )
    return net.to(_device()), tokenizer


_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError)


def _place(base: str) -> str:
    """The directory or hub name that `base` means. Raises UserError if it can be neither."""
    check_learns(base)
    path = Path(base).expanduser() if base else EMBEDDED
    if path.is_dir():
        return str(path)
    typed_path = base.startswith((".", "/", "~")) or base.count("/") != 1 or Path(base.split("/")[0]).is_dir()
    if not base or typed_path:
        raise UserError(
            f"There is no model at '{base or path}': give a directory with a Hugging Face model, a hub name such as "
            "Qwen/Qwen3-0.6B, or '' for the embedded model."
        )
    return base


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype() -> Any:
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def _load(where: str, local: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar() if local else transformers_logging.enable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local)
    dtype = _dtype()
    if any((Path(where) / name).exists() for name in COMPRESSED):  # asked before compress, which loads torch at import
        return _load_compressed(Path(where), dtype), tokenizer
    return AutoModelForCausalLM.from_pretrained(where, dtype=dtype, local_files_only=local), tokenizer


def _load_compressed(folder: Path, dtype: Any) -> Any:
    """A model that `compress` wrote."""
    from compress.checkpoint import load_model
    from compress.errors import CompressError

    try:
        return load_model(folder, dtype, _device())
    except CompressError as error:
        raise UserError(f"{error}.") from error


def _no_model(where: str, base: str, error: Exception) -> UserError:
    cached = (
        ""
        if Path(where).is_dir()
        else " is not on this computer (`--base` with its name fetches it; a gated one needs `hf auth login`), or"
    )
    return UserError(
        f"The model '{base or where}'{cached} could not be loaded ({type(error).__name__}): give a directory with a "
        "Hugging Face causal language model, a hub name, or '' for the embedded model."
    )


def settle_libraries() -> None:
    """Keep the libraries off the network and off the terminal, and their threads polite. Called before torch is imported.

    Threads that spin while they wait make a model ten times slower as soon as another program wants the cores.
    """
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", TOKENIZERS_PARALLELISM="false")
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_WAIT_POLICY": "passive",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextmanager
def hub_allowed() -> Iterator[None]:
    """Let the hub library use the network inside the block."""
    import huggingface_hub.constants as constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
