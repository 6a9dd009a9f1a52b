"""The GPU's kernels on a CPU (cuda_on_cpu.hpp): compiled by the machine's C++ compiler, launched as `nvrtc.kernel` launches."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

from torch import Tensor

from compress import nvrtc

HEADER = Path(__file__).parent / "cuda_on_cpu.hpp"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
PTX = (
    "fma2 add2 sub2 mul2 within of_half to_half half twice half_to_bf16 hold previous_kernel mma mma8 copy commit arrived barrier_init barriers_ready "
    "barrier_arrive barrier_arrive_when_copied barrier_expect barrier_wait bulk_copy matrix warpgroup_mma products_begin products_commit "
    "products_done together"
).split()  # functions that the header has instead of the source
PARTS = {0: ("narrow",), 1: ("wide", "finish"), 2: ("dense",), 3: ("dots", "total")}
AFTER = {  # what needs the source's own names
    "mma": "static void mma(float* c, const u32* a, u32 b0, u32 b1) { const u32 b[2] = {b0, b1}; emulated_mma<16, BF16>(c, a, b); }",
    "mma8": "static void mma8(float* c, u32 a0, u32 a1, u32 b) { const u32 a[2] = {a0, a1}; emulated_mma<8, BF16>(c, a, &b); }",
    "together": "static void together(int team) { together_at(1 + team, TEAM * 32); }",
    "matrix": "static unsigned long long matrix(u32 shared) { return shared; }",
    "warpgroup_mma": """static void warpgroup_mma(float (*c)[4], const u32* a, unsigned long long b) {
    const int g = emulated::lane() >> 2, t = emulated::lane() & 3;
    for (int n = 0; n < NT; ++n) {  // 8 inputs of a token are 16 bytes, of all tokens a CHUNK
        const char* from = shared_at(b) + (8 * n + g) * 16 + 4 * t;
        mma(c[n], a, *(const u32*)from, *(const u32*)(from + CHUNK));
    }
}""",
}


def translated(source: str, flags: tuple[str, ...], kernels: tuple[str, ...]) -> str:
    """C++ of a .cu: without PTX, with the kernels to launch."""
    source = re.sub(r'extern __shared__ uint4 room\[\];|asm volatile\("(griddepcontrol|fence)[^;]*;[^;]*;', "", source)
    source = source.replace('asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits))', "f = emulated::of_half(bits)")
    source = source.replace('asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f))', "bits = emulated::to_half(f)")
    for name in PTX:
        head = rf"(?:template <int \w+>[^\n]*\n)?__device__ (?:__forceinline__ )?[\w ]+? {name}\((?:[^()]|\([^()]*\))*\) \{{"
        places = list(re.finditer(head, source))
        for i, place in reversed(list(enumerate(places))):
            end = _end(source, place.end())
            new = AFTER.get(name, "") if i == 0 else ""
            source = source[: place.start()] + new + source[end:]
    defined = "".join(f"#define {flag[2:].replace('=', ' ')}\n" for flag in flags)
    launches = " ".join(f"LAUNCHED({kernel})" for kernel in kernels)
    return f'#include "{HEADER.name}"\n{defined}{source}\nEMULATED({launches})\n'


def _end(source: str, at: int) -> int:
    """Behind the brace that closes the one before `at`."""
    depth = 1
    while depth:
        depth += {"{": 1, "}": -1}.get(source[at], 0)
        at += 1
    return at


class Emulator:
    """Launches kernels on tensors of the CPU. arch: __CUDA_ARCH__, which decides what a source uses."""

    held: tuple[Tensor, ...] = ()  # buffers that a struct points to

    def __init__(self, folder: Path, arch: int) -> None:
        self.folder, self.loaded = folder / str(arch), {}
        self.command = [COMPILER, "-std=c++17", "-O1", "-fno-strict-aliasing", "-fno-gnu-unique", "-w", "-fPIC", f"-D__CUDA_ARCH__={arch}"]  # fmt: skip
        if not self.folder.exists():  # the header is most of the work of a compilation: once
            self.folder.mkdir()
            shutil.copy(HEADER, self.folder)
            self._compile("-x", "c++-header", HEADER.name, "-o", f"{HEADER.name}.gch")

    def kernel(self, name: str, device: int | None, function: str, flags: tuple[str, ...] = (), **_) -> nvrtc.Launch:
        library = self.library(name, flags)

        def launch(blocks: int, threads: int, shared: int, *arguments: Tensor | int | bytes | None) -> None:
            values = [_c(argument) for argument in arguments]
            places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            tensors = [t for t in (*arguments, *self.held) if isinstance(t, Tensor)]
            starts = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
            sizes = (ctypes.c_size_t * len(tensors))(*(t.numel() * t.element_size() for t in tensors))
            seed = random.getrandbits(32)
            told = library.launch(
                function.encode(), blocks, threads, shared, places, len(tensors), starts, sizes, seed
            )  # fmt: skip
            assert not told, f"{function} {flags}, seed {seed}: {told.decode()}"

        return launch

    def library(self, name: str, flags: tuple[str, ...]) -> ctypes.CDLL:
        if (name, flags) not in self.loaded:
            part = next((int(f[7:]) for f in flags if f.startswith("-DPART=")), None)
            source = translated(
                (nvrtc.sources() / f"{name}.cu").read_text(), flags, (name,) if part is None else PARTS[part]
            )
            file = self.folder / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.cpp"
            if not file.exists():
                file.write_text(source)
                self._compile("-shared", file.name, "-o", f"{file.stem}.so")
            library = ctypes.CDLL(str(file.with_suffix(".so")))
            library.launch.restype, pointer = ctypes.c_char_p, ctypes.c_void_p
            number = ctypes.c_int
            library.launch.argtypes = [ctypes.c_char_p, number, number, number, pointer, number, pointer, pointer, ctypes.c_uint]  # fmt: skip
            self.loaded[name, flags] = library
        return self.loaded[name, flags]

    def _compile(self, *arguments: str) -> None:
        subprocess.run([*self.command, *arguments], cwd=self.folder, check=True, timeout=300)


def _c(value: Tensor | int | bytes | None) -> ctypes._SimpleCData | ctypes.Array:
    if isinstance(value, bytes):
        return (ctypes.c_uint64 * (len(value) // 8)).from_buffer_copy(value)
    return (
        ctypes.c_int(value) if isinstance(value, int) else ctypes.c_void_p(None if value is None else value.data_ptr())
    )
