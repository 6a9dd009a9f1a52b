"""python -m compress.export MODEL --format F --out PATH [--json]: a compressed model as another library loads it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.errors import CompressError


def export(
    source: str | Path,
    out: Path,
    name: str,
    kind: str = "",
    text: Path | None = None,
    sequences: int = 64,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """Write the model in the directory `source` to `out` as `formats.PLAIN`, one of `formats.FORMATS` or GGUF; what was written.

    kind: see `export_gguf`; "" for F16, or F32 of an adapter. text, sequences: see there. adapter: a directory with LoRA on
    this model, which is written alone, as GGUF. layers: how many stay compressed. Raises CompressError, naming the layer, for
    what the format cannot say.
    """
    from compress.checkpoint import load_model
    from compress.formats import GGUF, PLAIN, export_model, format_module
    from compress.linear import quantized_layers
    from compress.model import find_model

    if name not in (PLAIN, GGUF):
        format_module(name)
    source = find_model(source)
    model = load_model(source)
    if name == GGUF:
        from compress.formats.gguf import export_gguf
        from compress.formats.gguf_lora import export_lora

        if adapter is not None:
            made = export_lora(model, adapter, out, kind or "F32")
        else:
            made = {"layers": 0} | export_gguf(model, source, out, kind or "F16", text, sequences)
        return {"out": str(out), "format": name, "bytes": out.stat().st_size} | made
    if not quantized_layers(model):
        raise CompressError(f"'{source}' is not compressed: give what python -m compress wrote")
    layers = export_model(model, source, out, name)
    return {"out": str(out), "format": name, "layers": layers, "bytes": sum(f.stat().st_size for f in out.iterdir())}


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 after one sentence on standard error for a user's mistake; argparse exits with 2 for a wrong usage."""
    from compress.formats import FORMATS, GGUF, PLAIN

    parser = argparse.ArgumentParser(prog="python -m compress.export", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the directory of a compressed model; for gguf of any model")
    parser.add_argument("--format", required=True, help=", ".join((PLAIN, *FORMATS, GGUF)))
    parser.add_argument("--out", type=Path, required=True, help="a new directory; for gguf a new file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    gguf = parser.add_argument_group("gguf")
    gguf.add_argument(
        "--type", type=str.upper, help="F16 (default), BF16, F32; with llama-cpp-python Q4_K_M, IQ2_XS, ..."
    )
    gguf.add_argument(
        "--calibration", type=Path, metavar="TEXT", help="weigh a layer's inputs by what this brings there"
    )
    gguf.add_argument("--sequences", type=int, default=64, help="of calibration, 512 tokens each")
    gguf.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="write this LoRA on the model, and not the model; F32 (default), F16, BF16",
    )
    a = parser.parse_args(arguments)
    if a.format != GGUF and (a.type or a.calibration or a.adapter):
        parser.error("--type, --calibration and --adapter go with --format gguf")
    if a.adapter and a.calibration:
        parser.error("--calibration weighs a model's inputs: leave it out with --adapter")
    try:
        found = export(a.model, a.out, a.format, a.type or "", a.calibration, a.sequences, a.adapter)
    except CompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found) if a.json else sentence(found))
    return 0


def sentence(found: dict[str, Any]) -> str:
    """The result for people."""
    from compress.formats import GGUF

    size = f"{found['out']}: {found['bytes'] / 1e6:.1f} MB, {found['format']}"
    if found["format"] != GGUF:
        return f"{size}, {found['layers']} layers compressed"
    if "adapted" in found:
        return f"{size} {found['type']}, an adapter of {found['adapted']} layers"
    nearly = f"llama.cpp splits text almost as the model's tokenizer does: {found['alike']:.1%} of the probes' tokens"
    return f"{size} {found['type']}" + ("" if found["alike"] == 1 else f"; {nearly}")


if __name__ == "__main__":
    sys.exit(main())
