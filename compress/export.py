"""python -m compress.export MODEL --format F --out DIR [--json]: a compressed model as another library loads it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.errors import CompressError


def export(source: str | Path, out: Path, name: str) -> dict[str, Any]:
    """Write the model in the directory `source` to `out` as `formats.PLAIN` or one of `formats.FORMATS`; what was written.

    layers: how many stay compressed. Raises CompressError, naming the layer, for what the format cannot say.
    """
    from compress.checkpoint import load_model
    from compress.formats import PLAIN, export_model, format_module
    from compress.linear import quantized_layers
    from compress.model import find_model

    if name != PLAIN:
        format_module(name)
    source = find_model(source)
    model = load_model(source)
    if not quantized_layers(model):
        raise CompressError(f"'{source}' is not compressed: give what python -m compress wrote")
    layers = export_model(model, source, out, name)
    return {"out": str(out), "format": name, "layers": layers, "bytes": sum(f.stat().st_size for f in out.iterdir())}


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 after one sentence on standard error for a user's mistake; argparse exits with 2 for a wrong usage."""
    from compress.formats import FORMATS, PLAIN

    parser = argparse.ArgumentParser(prog="python -m compress.export", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the directory of a compressed model")
    parser.add_argument("--format", required=True, help=", ".join((PLAIN, *FORMATS)))
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    a = parser.parse_args(arguments)
    try:
        found = export(a.model, a.out, a.format)
    except CompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found) if a.json else sentence(found))
    return 0


def sentence(found: dict[str, Any]) -> str:
    """The result for people."""
    return f"{found['out']}: {found['bytes'] / 1e6:.1f} MB, {found['format']}, {found['layers']} layers compressed"


if __name__ == "__main__":
    sys.exit(main())
