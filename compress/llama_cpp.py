"""The optional packages for GGUF, and what llama.cpp complains of. Loads no torch."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module
from types import ModuleType

from compress.errors import CompressError

PACKAGES = {"gguf": "gguf", "llama_cpp": "llama-cpp-python"}
ERROR = 4  # ggml's log level


def package(name: str) -> ModuleType:
    """The module of an optional package. Raises CompressError, saying what to install."""
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its library does not load
        raise CompressError(f"this needs the package {PACKAGES[name]}: pip install 'panza[llama]'") from error


@cache
def complaints() -> list[str]:
    """llama.cpp's complaints from here on, in a list that grows; the rest of what it tells is dropped."""
    llama_cpp, said = package("llama_cpp"), []

    @llama_cpp.llama_log_callback
    def hear(level: int, text: bytes, _: object) -> None:
        if level == ERROR:
            said.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(hear, ctypes.c_void_p(0))
    complaints.kept = hear  # C holds no reference
    return said
