"""How fast drafts come: tokens a second, time to the first token, memory. `python -m benchmarks.decode`.

Of the embedded model, and of Llama shapes of 1 and 3 billion weights with random codes (what they say is noise; what
they cost is not). Each is measured in a process of its own; `limit` is what memory bandwidth, measured in the same process,
would allow. `--torch` adds transformers' generate on the same embedded model.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {  # hidden, layers, heads, kv heads, head size, ffn, vocabulary
    "1B": (2048, 16, 32, 8, 64, 8192, 128256),
    "3B": (3072, 28, 24, 8, 128, 8192, 128256),
}
CODES = ("trellis 2", "trellis 3", "additive 2x8", "grid 2", "grid 3", "grid 4")
PROMPTS, ANSWER = (512, 2048), 96


class RandomWeights:
    """What compress.runtime builds a model from, with random codes of one kind; both ends of the vocabulary have 4 bits."""

    def __init__(self, shape: dict[str, Any], codes: str) -> None:
        import numpy as np

        self.shape, self.codes, self.random = shape, codes, np.random.default_rng(0)
        self.table = None

    def has(self, name: str) -> bool:
        return "_proj" in name and "qkv" not in name and "gate_up" not in name

    def numbers(self, name: str, needed: bool = True) -> Any:
        import numpy as np

        return np.ones(self.shape["hidden"], np.float32) if needed else None

    def linear(self, name: str) -> Any:
        s, leaf = self.shape, name.rsplit(".", 1)[-1]
        if leaf in ("embed_tokens", "lm_head"):
            self.table = self.table or self.made("grid 4", s["vocab"], s["hidden"])
            return self.table
        sizes = {
            "q_proj": (s["heads"] * s["head_dim"], s["hidden"]),
            "k_proj": (s["kv_heads"] * s["head_dim"], s["hidden"]),
            "v_proj": (s["kv_heads"] * s["head_dim"], s["hidden"]),
            "o_proj": (s["hidden"], s["heads"] * s["head_dim"]),
            "gate_proj": (s["ffn"], s["hidden"]),
            "up_proj": (s["ffn"], s["hidden"]),
            "down_proj": (s["hidden"], s["ffn"]),
        }
        return self.made(self.codes, *sizes[leaf])

    def made(self, codes: str, N: int, D: int) -> Any:
        """A weight whose rows have about unit length, as trained ones do."""
        import numpy as np

        from compress import native

        kind, size = codes.split()
        spec: dict[str, Any] = {
            "shape": [N, D],
            "decode": {"kind": kind, "padded": [N, D]},
            "scale": {"kind": "real", "groups": 1},
        }
        spec["transform"] = {"in_block": 1, "out_block": 1, "permuted": False}
        arrays = {"scale.values": np.full((N, 1), D**-0.5, np.float16)}
        if kind == "grid":
            spec["decode"]["bits"], spec["scale"]["groups"] = int(size), D // 128
            arrays["scale.values"] = np.full((N, D // 128), D**-0.5 / 2 ** (int(size) - 1), np.float16)
            shape = N, D * int(size) // 8
        elif kind == "additive":
            spec["decode"] |= {"books": 2, "bits": 8, "group": 8, "int8": False}
            arrays["decode.codebooks"] = self.random.standard_normal((2, 256, 8)).astype(np.float16) / 2
            shape = N, D // 4
        else:
            spec["decode"] |= {"step": int(size), "window": 8}
            arrays["decode.lut"] = self.random.standard_normal(256).astype(np.float16)
            spec["transform"] |= {"in_block": min(D & -D, 1024), "out_block": min(N & -N, 1024)}
            arrays |= {
                f"transform.{side}_signs": self.random.integers(0, 256, n // 8, np.uint8)
                for side, n in (("in", D), ("out", N))
            }
            shape = N // 16, (16 * D * int(size) + 8 - int(size) + 7) // 8
        arrays["decode.codes"] = self.random.integers(0, 256, shape, np.uint8)
        return native.from_spec(spec, arrays)


def resident() -> float:
    """Megabytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * resource.getpagesize() / 1e6


def runtime_of(model: str, codes: str, threads: int) -> Any:
    from compress import runtime

    if model == "base":
        from panza.models import EMBEDDED

        return runtime.load(EMBEDDED if codes == "8-bit rows" else Path(codes), threads=threads)
    hidden, layers, heads, kv_heads, head_dim, ffn, vocab = SHAPES[model]
    config = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": ffn, "max_position_embeddings": 4096,
    }  # fmt: skip
    shape = runtime._shape(config, 4096)
    return runtime.Runtime(runtime._build(shape, RandomWeights(shape, codes), config), 4096, threads)


def measure(model: str, codes: str, threads: int) -> dict[str, Any]:
    """One line of the report."""
    from panza.doctor import read_bandwidth

    before = resident()
    made = runtime_of(model, codes, threads)
    list(made.generate(list(range(8)), most=4))
    row: dict[str, Any] = {"model": model, "codes": codes, "threads": threads, "megabytes": round(resident() - before)}
    for prompt in PROMPTS:
        if prompt + ANSWER > made.context:
            continue
        made.session.truncate(0)
        begun = time.perf_counter()
        times = [time.perf_counter() for _ in made.generate([i % 100 for i in range(prompt)], most=ANSWER)]
        gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
        row |= {
            f"first_token_s_{prompt}": round(times[0] - begun, 3),
            f"tokens_per_s_{prompt}": round(1 / statistics.median(gaps), 1),
        }
    row["megabytes_per_token"] = round(made.model.bytes / 1e6, 1)
    row["limit_tokens_per_s"] = round(read_bandwidth(threads=threads) * 1e9 / made.model.bytes, 1)
    return row


def measure_torch(threads: int) -> dict[str, Any]:
    """transformers' generate on the embedded model, fp32, greedy."""
    import torch

    from panza.models import load_base

    torch.set_num_threads(threads)
    before = resident()
    net, _ = load_base()
    row: dict[str, Any] = {
        "model": "base",
        "codes": "torch fp32",
        "threads": threads,
        "megabytes": round(resident() - before),
    }
    for prompt in PROMPTS[:1]:
        ids = torch.tensor([[i % 100 for i in range(prompt)]])
        seconds = []
        for count in (1, 1, 65):
            begun = time.perf_counter()
            net.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
            seconds.append(time.perf_counter() - begun)
        row |= {
            f"first_token_s_{prompt}": round(seconds[1], 3),
            f"tokens_per_s_{prompt}": round(64 / (seconds[2] - seconds[1]), 1),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="base,1B", help="base, 1B, 3B, with commas")
    parser.add_argument("--codes", default=",".join(CODES), help="of the shapes, with commas")
    parser.add_argument("--compressed", default="", help="directories of the base compressed, with commas")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "CODES", "THREADS"), help="measure this in this process")
    args = parser.parse_args()
    if args.one:
        model, codes, threads = args.one
        print(json.dumps(measure_torch(int(threads)) if codes == "torch" else measure(model, codes, int(threads))))
        return
    runs = []
    for model in args.models.split(","):
        own = ["8-bit rows", *filter(None, args.compressed.split(",")), *(["torch"] if args.torch else [])]
        runs += [(model, codes) for codes in (own if model == "base" else args.codes.split(","))]
    for model, codes in runs:
        for threads in args.threads.split(","):
            command = [sys.executable, "-m", "benchmarks.decode", "--one", model, codes, threads]
            print(
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip(), flush=True
            )


if __name__ == "__main__":
    main()
