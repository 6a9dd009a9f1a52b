"""CUDA C++ compiled at first use for the card at hand, by the NVRTC that comes with torch. Knows sources; knows no weight.

Nothing is needed at install. Where there is no NVRTC (a CPU build, ROCm) `kernel` gives None, and plain torch does the work.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = Path(__file__).resolve().parent
SHARED = 48 * 1024  # bytes of shared memory that a launch may ask for without more ado
PATTERNS = {"win32": ("nvrtc64_*.dll", "nvcuda.dll")}  # of the compiler, and the driver's name
LINUX = ("libnvrtc.so.*", "libcuda.so.1")
Launch = Callable[..., None]


def sources() -> Path:
    """Where the .cu files lie: in an installed package, or in the checkout beside it."""
    packed = PACKAGE / "_data" / "cuda"
    return packed if packed.is_dir() else PACKAGE.parent / "kernels" / "cuda"


@lru_cache
def kernel(name: str, device: int = 0) -> Launch | None:
    """The function `name` of `name`.cu for that GPU, as launch(blocks, threads, shared_bytes, *arguments).

    Arguments are CUDA tensors, None (a null pointer) and ints (C's int); it runs on torch's current stream.
    Raises RuntimeError with the compiler's own words for a source that does not compile.
    """
    found = _libraries()
    if found is None:
        return None
    compiler, driver = found
    image = compiled((sources() / f"{name}.cu").read_bytes(), torch.cuda.get_device_capability(device), compiler)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    with torch.cuda.device(device):
        torch.cuda.current_stream()  # makes torch's context the current one
        _sound(driver.cuModuleLoadData(ctypes.byref(module), image), "loading")
        _sound(driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()), "loading")

    def launch(blocks: int, threads: int, shared: int, *arguments: Tensor | int | None) -> None:
        values = [_c(argument, device) for argument in arguments]
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with torch.cuda.device(device):  # its context is the one to launch in
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            _sound(
                driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared, stream, places, None), "a launch"
            )

    return launch


def compiled(source: bytes, capability: tuple[int, int], compiler: ctypes.CDLL) -> bytes:
    """Machine code for cards of that compute capability."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    _sound(compiler.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None))
    flags = (ctypes.c_char_p * 1)(f"--gpu-architecture=sm_{capability[0]}{capability[1]}".encode())
    if compiler.nvrtcCompileProgram(program, 1, flags):
        _sound(compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        _sound(compiler.nvrtcGetProgramLog(program, log))
        raise RuntimeError(log.value.decode(errors="replace"))
    _sound(compiler.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    image = ctypes.create_string_buffer(size.value)
    _sound(compiler.nvrtcGetCUBIN(program, image))
    _sound(compiler.nvrtcDestroyProgram(ctypes.byref(program)))
    return image.raw


def _c(value: Tensor | int | None, device: int) -> ctypes._SimpleCData:
    if isinstance(value, int):
        return ctypes.c_int(value)
    lies = value is None or (value.is_contiguous() and value.is_cuda and value.device.index == device)
    assert lies, "a kernel reads tensors as they lie on its GPU"
    return ctypes.c_void_p(None if value is None else value.data_ptr())


@lru_cache
def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL] | None:
    """NVRTC and the driver, or None where either lacks."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    pattern, driver = PATTERNS.get(sys.platform, LINUX)
    try:
        return find_compiler(pattern), ctypes.CDLL(driver)
    except OSError:
        return None


def find_compiler(pattern: str = LINUX[0]) -> ctypes.CDLL:
    """NVRTC from torch's folder or the packages beside it, else from the system. Raises OSError where there is none."""
    lib = Path(torch.__file__).parent / "lib"
    places = [lib, *sorted(lib.parents[1].glob("nvidia/*/lib")), *sorted(lib.parents[1].glob("nvidia/*/bin"))]
    files = [f for place in places for f in sorted(place.glob(pattern)) if ".alt." not in f.name]
    major = (torch.version.cuda or "13").split(".")[0]
    return ctypes.CDLL(str(files[0]) if files else pattern.replace("*", major))


def _sound(status: int, what: str = "compiling") -> None:
    """Every call of NVRTC and of the driver returns 0, or what went wrong."""
    if status:
        raise RuntimeError(f"CUDA answered {what} with error {status}")
