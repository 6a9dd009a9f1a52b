"""How long a large model takes to compress, and the memory it needs. `python -m benchmarks.compress --shape 1B`.

A Llama of 80 million to 8 billion random weights is written to a directory, with the embedded model's tokenizer, and compressed
as any other: what its predictions are worth says nothing, what they cost does. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import decode

SHAPES = {"80M": (768, 10, 12, 12, 64, 2048, 16384), **decode.SHAPES, "8B": (4096, 32, 32, 8, 128, 14336, 128256)}
TOKENIZER = decode.ROOT / "data/base"


def random_model(shape: str, folder: Path) -> int:
    """Write a bf16 Llama of that shape to `folder`; how many weights it has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from compress.checkpoint import copy_tokenizer

    hidden, layers, heads, kv_heads, head_dim, ffn, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=ffn,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=shape != "8B",
        bos_token_id=0,
        eos_token_id=4,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder, max_shard_size="2GB")
    copy_tokenizer(TOKENIZER, folder)
    weights = sum(p.numel() for p in model.parameters())
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return weights


def main() -> int:
    """Prints the settings, the report's numbers and what they are per block."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compress", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1B")
    parser.add_argument("--method", default="trellis")
    parser.add_argument("--bits", type=float, default=2)
    parser.add_argument("--calibration", type=Path, required=True, help=".txt, or .jsonl with 'text' fields")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16384, help="tokens that run at once")
    parser.add_argument("--tune", type=int, default=0, help="epochs of block tuning")
    parser.add_argument("--work", type=Path, help="where the two models lie (default: a temporary directory)")
    a = parser.parse_args()

    work = a.work or Path(tempfile.mkdtemp())
    source, out = work / a.shape, work / f"{a.shape}-{a.method}-{a.bits:g}"
    begun = time.perf_counter()
    weights = random_model(a.shape, source)
    print(f"{weights / 1e9:.2f} billion weights written in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    from compress.model import Options, compress_model

    options = Options(sequences=a.sequences, length=a.length, batch=a.batch, tune=a.tune)
    report = compress_model(source, out, a.method, a.bits, a.calibration, options)
    if not a.work:
        shutil.rmtree(work)
    said = {"shape": a.shape, "weights": weights, "method": a.method, "bits": report.bits["body"], "tune": a.tune}
    said |= {"tokens": a.sequences * a.length, "seconds": round(report.seconds, 1)}
    said |= {"peak_memory_bytes": report.peak_memory_bytes, "peak_gpu_bytes": report.peak_gpu_bytes}
    said["epochs"] = [len(t["history"]) for t in report.tuned]
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
