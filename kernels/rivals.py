"""What our kernels are measured beside: products of torch, and of llama.cpp if llama-cpp-python is installed. See bench.py.

llama.cpp's products are graphs of one node on its CPU backend, with the weight in the memory that llama.cpp itself would
choose: the first of those that can multiply it, the rearranging ones before the plain one. Knows no kernel of ours.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.llama_cpp import complaints, package

REST = 0.01  # seconds: the threads of both spin for some milliseconds after a product, and would disturb the next
ROWS = 64  # that are quantized; a weight repeats them, since IQ types are slow to make
KINDS = {"Q2_K": 10, "IQ2_XXS": 16, "Q3_K": 11, "IQ3_XXS": 18, "Q4_0": 2}  # ggml_type


def rivals(N: int, D: int, span: int) -> dict[str, Callable[[], Any]]:
    """A name and what makes it: objects with `bytes`, `shape`, `error` and `sample(x, pool)`, as bench.Timed has."""
    made: dict[str, Callable[[], Any]] = {f"torch {str(t)[6:]}": lambda t=t: TorchLinear(N, D, t, span) for t in (torch.float32, torch.bfloat16)}  # fmt: skip
    if find_spec("llama_cpp"):
        made |= {f"llama.cpp {kind}": lambda kind=kind: GgmlLinear(N, D, kind, span) for kind in KINDS}
    return made


def features() -> str:
    """What the installed llama.cpp was compiled for; "" without one."""
    if not find_spec("llama_cpp"):
        return ""
    return (
        package("llama_cpp").llama_print_system_info().decode().removeprefix("CPU : ").replace(" = 1", "").strip(" |")
    )


def copies(size: int, span: int) -> int:
    """Of a weight of `size` bytes, to be larger together than the span."""
    return 1 + max(1, span // size)


class TorchLinear:
    """F.linear of one type."""

    def __init__(self, N: int, D: int, dtype: torch.dtype, span: int) -> None:
        self.shape, self.dtype, self.at = (N, D), dtype, 0
        weight = torch.randn(N, D).to(dtype)
        self.bytes = weight.nbytes
        self.copies = [weight] + [weight.clone() for _ in range(copies(weight.nbytes, span) - 1)]
        x = torch.randn(1, D)
        exact = x.double() @ weight[:ROWS].double().T
        self.error = ((self._product(x.to(dtype))[:, :ROWS] - exact).norm() / exact.norm()).item()

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.copies[self.at])

    @torch.inference_mode()
    def sample(self, x: np.ndarray, pool: Any) -> float:
        """Seconds of a product with x (T, D)."""
        torch.set_num_threads(pool.threads)
        given = torch.from_numpy(x).to(self.dtype)
        self._product(given)  # wakes the threads, as the sum before it does for ours
        self.at = (self.at + 1) % len(self.copies)
        start = time.perf_counter()
        self._product(given)
        seconds = time.perf_counter() - start
        time.sleep(REST)
        return seconds


class GgmlLinear:
    """ggml_mul_mat with one of KINDS. `memory` names the kind of memory that its weight is in."""

    def __init__(self, N: int, D: int, kind: str, span: int) -> None:
        self.shape, self.at, self.tokens, self.ggml = (N, D), 0, 0, ggml()
        self.backend = self.ggml.ggml_backend_cpu_init()
        self.pools: dict[int, int] = {}
        rows = quantized(kind, D)
        data = np.tile(rows, (-(-N // ROWS), 1))[:N]
        self.bytes = data.nbytes
        chosen = next(b for b in self._memories() if self._can(KINDS[kind], b))
        self.memory = self.ggml.ggml_backend_buft_name(chosen).decode()
        self.weights = [self._weight(KINDS[kind], chosen, data) for _ in range(copies(self.bytes, span))]
        self.error = self._error(kind, rows)

    def sample(self, x: np.ndarray, pool: Any) -> float:
        """Seconds of a product with x (T, D)."""
        self._prepare(x)
        self._use_threads(pool.threads)
        self.ggml.ggml_threadpool_resume(self.pools[pool.threads])
        self.ggml.ggml_backend_graph_compute(self.backend, self.graphs[self.at])  # wakes the threads
        self.at = (self.at + 1) % len(self.weights)
        start = time.perf_counter()
        failed = self.ggml.ggml_backend_graph_compute(self.backend, self.graphs[self.at])
        seconds = time.perf_counter() - start
        self.ggml.ggml_threadpool_pause(self.pools[pool.threads])
        time.sleep(REST)
        assert not failed, f"ggml says {failed}"
        return seconds

    def _memories(self) -> list[int]:
        """ggml_backend_buffer_type_t of the CPU, in llama.cpp's order of preference."""
        device = self.ggml.ggml_backend_get_device(self.backend)
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.ggml.ggml_backend_reg_get_proc_address(self.ggml.ggml_backend_dev_backend_reg(device), name)
        found = []
        if address:
            extra = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
            while extra and extra[len(found)]:
                found.append(extra[len(found)])
        return [*found, self.ggml.ggml_backend_cpu_buffer_type()]

    def _can(self, kind: int, memory: int) -> bool:
        """Whether a product with a weight in this memory can be computed."""
        g, (N, D) = self.ggml, self.shape
        made = g.context(4)
        weight = g.ggml_new_tensor_2d(made, kind, D, N)
        buffer = g.ggml_backend_alloc_ctx_tensors_from_buft(made, memory)
        product = g.ggml_mul_mat(made, weight, g.ggml_new_tensor_2d(made, 0, D, 1))
        can = g.ggml_backend_supports_op(self.backend, product)
        g.ggml_backend_buffer_free(buffer)
        g.ggml_free(made)
        return can

    def _weight(self, kind: int, memory: int, data: np.ndarray) -> int:
        g, (N, D) = self.ggml, self.shape
        made = g.context(2)
        weight = g.ggml_new_tensor_2d(made, kind, D, N)
        g.ggml_backend_alloc_ctx_tensors_from_buft(made, memory)
        g.ggml_backend_tensor_set(weight, data.ctypes.data, 0, data.nbytes)
        return weight

    def _prepare(self, x: np.ndarray) -> None:
        """Graphs for as many tokens as x has, and x in its place."""
        g = self.ggml
        if len(x) != self.tokens:
            self.tokens, made = len(x), g.context(2 + len(self.weights), graphs=len(self.weights))
            self.x = g.ggml_new_tensor_2d(made, 0, self.shape[1], self.tokens)
            self.products = [g.ggml_mul_mat(made, weight, self.x) for weight in self.weights]
            self.graphs = [g.ggml_new_graph(made) for _ in self.weights]
            for graph, product in zip(self.graphs, self.products, strict=True):
                g.ggml_build_forward_expand(graph, product)
            g.ggml_backend_alloc_ctx_tensors(made, self.backend)
        g.ggml_backend_tensor_set(self.x, x.ctypes.data, 0, x.nbytes)

    def _use_threads(self, threads: int) -> None:
        if threads not in self.pools:
            settings = ctypes.create_string_buffer(4096)  # of ggml_threadpool_params, which has less than 1 kB
            self.ggml.ggml_threadpool_params_init(settings, threads)
            self.pools[threads] = self.ggml.ggml_threadpool_new(settings)
        self.ggml.ggml_backend_cpu_set_n_threads(self.backend, threads)
        self.ggml.ggml_backend_cpu_set_threadpool(self.backend, self.pools[threads])

    def _error(self, kind: str, rows: np.ndarray) -> float:
        """Relative, of a product with what the gguf package decodes."""
        from gguf import GGMLQuantizationType, quants

        x = np.random.default_rng(1).standard_normal((1, self.shape[1]), np.float32)
        self._prepare(x)
        self.ggml.ggml_backend_graph_compute(self.backend, self.graphs[0])
        y = np.empty(self.shape[0], np.float32)
        self.ggml.ggml_backend_tensor_get(self.products[0], y.ctypes.data, 0, y.nbytes)
        exact = quants.dequantize(rows, GGMLQuantizationType[kind]).astype(np.float64) @ x[0]
        error = np.linalg.norm(y[:ROWS] - exact[: len(y)]) / np.linalg.norm(exact[: len(y)])
        assert error < 0.02, f"{kind} is off by {error:.1e}"
        return float(error)


def quantized(kind: str, D: int) -> np.ndarray:
    """ROWS random rows of D inputs as ggml's bytes: (ROWS, bytes) uint8."""
    g, numbers = ggml(), np.random.default_rng(0).standard_normal((ROWS, D), np.float32)
    made = np.empty((ROWS, g.ggml_row_size(KINDS[kind], D)), np.uint8)
    all_alike = np.ones(D, np.float32)  # an importance, which IQ types insist on
    g.ggml_quantize_chunk(KINDS[kind], numbers.ctypes.data, made.ctypes.data, 0, ROWS, D, all_alike.ctypes.data)
    return made


P, SIZE, INT, LONG = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64
FUNCTIONS = {  # what it returns, what it takes: ggml.h, ggml-backend.h, ggml-cpu.h
    "ggml_row_size": (SIZE, INT, LONG),
    "ggml_quantize_chunk": (SIZE, INT, P, P, LONG, LONG, LONG, P),
    "ggml_tensor_overhead": (SIZE,),
    "ggml_graph_overhead": (SIZE,),
    "ggml_free": (None, P),
    "ggml_new_tensor_2d": (P, P, INT, LONG, LONG),
    "ggml_mul_mat": (P, P, P, P),
    "ggml_new_graph": (P, P),
    "ggml_build_forward_expand": (None, P, P),
    "ggml_threadpool_params_init": (None, P, INT),
    "ggml_threadpool_new": (P, P),
    "ggml_threadpool_pause": (None, P),
    "ggml_threadpool_resume": (None, P),
    "ggml_backend_cpu_init": (P,),
    "ggml_backend_cpu_buffer_type": (P,),
    "ggml_backend_cpu_set_n_threads": (None, P, INT),
    "ggml_backend_cpu_set_threadpool": (None, P, P),
    "ggml_backend_get_device": (P, P),
    "ggml_backend_dev_backend_reg": (P, P),
    "ggml_backend_reg_get_proc_address": (P, P, ctypes.c_char_p),
    "ggml_backend_buft_name": (ctypes.c_char_p, P),
    "ggml_backend_buffer_free": (None, P),
    "ggml_backend_alloc_ctx_tensors": (P, P, P),
    "ggml_backend_alloc_ctx_tensors_from_buft": (P, P, P),
    "ggml_backend_supports_op": (ctypes.c_bool, P, P),
    "ggml_backend_tensor_set": (None, P, P, SIZE, SIZE),
    "ggml_backend_tensor_get": (None, P, P, SIZE, SIZE),
    "ggml_backend_graph_compute": (INT, P, P),
}


class Settings(ctypes.Structure):
    """ggml_init_params"""

    _fields_ = (("mem_size", SIZE), ("mem_buffer", P), ("no_alloc", ctypes.c_bool))


@cache
def ggml() -> Any:
    """The functions of ggml from llama-cpp-python's libraries, and `context(tensors, graphs)`."""
    complaints()  # which else, like all that it tells, go to standard error
    folder = Path(package("llama_cpp").__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("*ggml.*"))))  # whose dependencies have the functions
    for name, (returns, *takes) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returns, takes
    library.ggml_init.restype, library.ggml_init.argtypes = P, (Settings,)

    def context(tensors: int, graphs: int = 0) -> int:
        """Room for so many, none of whose numbers it holds."""
        size = tensors * library.ggml_tensor_overhead() + graphs * library.ggml_graph_overhead()
        return library.ggml_init(Settings(2 * size, None, True))

    library.context = context
    return library
