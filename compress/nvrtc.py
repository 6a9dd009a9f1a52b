"""CUDA C++ compiled at first use for the card at hand, by the NVRTC that comes with torch. Knows sources; knows no weight.

Nothing is needed at install. Where there is no NVRTC (a CPU build, ROCm) `kernel` gives None, and plain torch does the work.
Machine code is kept in the folder `kernels` of PANZA_HOME, so that a second process compiles nothing.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = Path(__file__).resolve().parent
SHARED = 47 * 1024  # bytes that a launch may ask for without more ado: of 48 KB, 1 for what the kernel itself declares
MAX_SHARED, CARVEOUT = (
    8,
    9,
)  # the driver's numbers of the attributes that allow more, and that divide it from the L1 cache
PATTERNS = {"win32": ("nvrtc64_*.dll", "nvcuda.dll")}  # of the compiler, and the driver's name
LINUX = ("libnvrtc.so.*", "libcuda.so.1")
Launch = Callable[..., None]
OVERLAP = 6  # the driver's number for programmatic dependent launch
_allowed: dict[int, int] = {}  # bytes of shared memory that a loaded function may have
_asking = threading.Lock()


class Attribute(ctypes.Structure):
    """The driver's CUlaunchAttribute, of those whose value is an int."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))

    def __init__(self, id: int, value: int) -> None:
        super().__init__(id, 0, value)


class Config(ctypes.Structure):
    """The driver's CUlaunchConfig."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("x", "y", "z", "threads_x", "threads_y", "threads_z", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    )


def sources() -> Path:
    """Where the .cu files lie: in an installed package, or in the checkout beside it."""
    packed = PACKAGE / "_data" / "cuda"
    return packed if packed.is_dir() else PACKAGE.parent / "kernels" / "cuda"


@functools.cache
def kernel(
    name: str,
    device: int = 0,
    function: str | None = None,
    flags: tuple[str, ...] = (),
    smallest: tuple[int, int] = (0, 0),
    overlap: bool = False,
    l1: bool = False,
) -> Launch | None:
    """A function of `name`.cu for that GPU, as launch(blocks, threads, shared_bytes, *arguments); its name is `name` too.

    flags: for NVRTC, "-DR=2". Arguments are CUDA tensors, None (a null pointer), ints (C's int) and bytes (a struct); it
    runs on torch's current stream. overlap: it may begin while the kernel before it ends, from Hopper on (programmatic
    dependent launch), so it waits by griddepcontrol before it touches what others write. l1: the L1 cache speeds it up, so its
    memory is not all made shared memory. None without NVRTC, and on a card
    below the compute capability `smallest`. Raises RuntimeError with the compiler's own words for a source that does not compile.
    """
    found = _libraries()
    if found is None or torch.cuda.get_device_capability(device) < smallest:
        return None
    _, driver = found
    module, context = _module(name, device, flags)
    loaded = ctypes.c_void_p()
    start = driver.cuLaunchKernelEx  # a driver that is too old lacks it
    _sound(driver.cuModuleGetFunction(ctypes.byref(loaded), module, (function or name).encode()), "loading")
    if overlap and not l1:  # as much as there is, else the next kernel's blocks may find none left beside this one's
        _sound(driver.cuFuncSetAttribute(loaded, CARVEOUT, 100), "asking for shared memory")
    early = Attribute(OVERLAP, 1)
    attributes = int(overlap and torch.cuda.get_device_capability(device) >= (9, 0))

    def launch(blocks: int, threads: int, shared: int, *arguments: Tensor | int | bytes | None) -> None:
        values = [_c(argument, device) for argument in arguments]
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with torch.cuda.device(device):
            _sound(driver.cuCtxSetCurrent(context), "for its context")  # a thread of autograd may have none yet
            if shared > _allowed.get(loaded.value, SHARED):
                with _asking:  # another thread's smaller launch must not take back what this one is given
                    if shared > _allowed.get(loaded.value, SHARED):
                        _sound(driver.cuFuncSetAttribute(loaded, MAX_SHARED, shared), "asking for shared memory")
                        _allowed[loaded.value] = shared
            stream = torch.cuda.current_stream().cuda_stream
            how = Config(blocks, 1, 1, threads, 1, 1, shared, stream, ctypes.pointer(early), attributes)
            _sound(start(ctypes.byref(how), loaded, places, None), "a launch")

    return launch


@functools.cache
def _module(name: str, device: int, flags: tuple[str, ...]) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """A compiled source on the GPU, and torch's context there."""
    compiler, driver = _libraries()
    image = cached((sources() / f"{name}.cu").read_bytes(), torch.cuda.get_device_capability(device), compiler, flags)
    module, context = ctypes.c_void_p(), ctypes.c_void_p()
    with torch.cuda.device(device):
        torch.cuda.current_stream()  # torch is there first
        _sound(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "for its context")
        _sound(driver.cuCtxSetCurrent(context), "for its context")
        _sound(driver.cuModuleLoadData(ctypes.byref(module), image), "loading")
    return module, context


def cache() -> Path | None:
    """Where machine code is kept, or None: beside all else that Panza keeps, if its place is known."""
    home = os.environ.get("PANZA_HOME")
    if not home:
        try:
            import platformdirs
        except ImportError:
            return None
        home = platformdirs.user_data_dir("panza", appauthor=False)
    return Path(home) / "kernels"


def cached(
    source: bytes,
    capability: tuple[int, int],
    compiler: ctypes.CDLL,
    flags: tuple[str, ...] = (),
    folder: Path | None = None,
) -> bytes:
    """`compiled`, from the folder (None: `cache()`) if it is there and whole. A folder that cannot be written costs only time."""
    folder = folder or cache()
    version = ctypes.c_int(), ctypes.c_int()
    _sound(compiler.nvrtcVersion(ctypes.byref(version[0]), ctypes.byref(version[1])))
    told = repr((capability, flags, [number.value for number in version])).encode()
    digest = hashlib.sha256(told + b"\0" + source).hexdigest()
    file = None if folder is None else folder / f"{digest}.cubin"
    try:
        if file is not None:
            kept = file.read_bytes()  # its digest, and itself
            if kept[:32] == hashlib.sha256(kept[32:]).digest():
                return kept[32:]
    except OSError:
        pass  # not there yet, or not ours to read
    image = compiled(source, capability, compiler, flags)
    if file is not None:
        _keep(file, image)
    return image


def _keep(file: Path, image: bytes) -> None:
    """Write by temp + rename: another process sees the whole file or none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temp = tempfile.mkstemp(dir=file.parent, suffix=".part")
        with os.fdopen(handle, "wb") as out:
            out.write(hashlib.sha256(image).digest() + image)
        os.replace(temp, file)
    except OSError:
        pass  # a full disk or a read-only home: compiled again next time


def compiled(source: bytes, capability: tuple[int, int], compiler: ctypes.CDLL, flags: tuple[str, ...] = ()) -> bytes:
    """Machine code for cards of that compute capability."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    _sound(compiler.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None))
    own = "a" if capability == (9, 0) else ""  # Hopper's own instructions, too
    words = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}{own}", "--std=c++17", *flags]
    if compiler.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*(w.encode() for w in words))):
        _sound(compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        _sound(compiler.nvrtcGetProgramLog(program, log))
        raise RuntimeError(log.value.decode(errors="replace"))
    _sound(compiler.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    image = ctypes.create_string_buffer(size.value)
    _sound(compiler.nvrtcGetCUBIN(program, image))
    _sound(compiler.nvrtcDestroyProgram(ctypes.byref(program)))
    return image.raw


def _c(value: Tensor | int | bytes | None, device: int) -> ctypes._SimpleCData | ctypes.Array:
    if isinstance(value, bytes):
        return (ctypes.c_uint64 * (len(value) // 8)).from_buffer_copy(value)
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
