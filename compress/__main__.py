"""python -m compress MODEL --method M --bits B --calibration FILE --out DIR [--json]: the command line of `compress_model`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.methods import METHODS

HELP = {
    "sequences": "sequences of calibration text",
    "length": "tokens of each",
    "held_out": "more sequences, on which tuning stops early",
    "seed": "of all that is drawn",
    "guided": "output groups with Hessians weighted by the loss's gradients (0: plain)",
    "tune": "epochs of tuning each block against the uncompressed one (0: none)",
    "finetune": "then epochs of tuning the whole model to the uncompressed one's logits (0: none)",
    "eora": "rank of a low-rank repair (0: none)",
    "sequential": "calibrate each layer behind the compressed ones before it in its block: slower",
    "rotate": "QuaRot first: no, heads (values), or full (the hidden space too)",
    "embeddings": "bits of the input embedding, 4 to 8 (0: leave at 16)",
    "head": "bits of the output head, 4 to 8 (0: leave at 16)",
    "memory": "GiB of hidden states in memory; beyond, they lie on disk",
    "batch": "tokens that run at once",
}


def parser() -> argparse.ArgumentParser:
    """A flag for each field of Options."""
    from compress.model import Options

    made = argparse.ArgumentParser(prog="python -m compress", description="Write a smaller model.")
    made.add_argument("model", help="a model directory or a hub name")
    made.add_argument("--method", required=True, help=", ".join(METHODS))
    made.add_argument("--bits", type=float, required=True, help="a weight of the linear layers, such as 2, 2.5, 3 or 4")
    made.add_argument("--calibration", type=Path, help=".txt, or .jsonl with 'text' fields (default: own samples)")
    made.add_argument("--out", type=Path, required=True, help="the new model's directory")
    made.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the method, such as group=64"
    )
    made.add_argument("--json", action="store_true", help="print one JSON object")
    for field in fields(Options):
        flag, text = "--" + field.name.replace("_", "-"), f"{HELP[field.name]} (default {field.default})"
        if isinstance(field.default, bool):
            made.add_argument(flag, action="store_true", help=HELP[field.name])
            continue
        bare = {"nargs": "?", "const": "full"} if field.name == "rotate" else {}
        made.add_argument(flag, type=type(field.default), default=field.default, help=text, **bare)
    return made


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """['group=64', 'act_order=false', 'shape=2x8g8'] -> {'group': 64, 'act_order': False, 'shape': '2x8g8'}."""
    made = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and value):
            raise CompressError(f"'{pair}' is no setting: write NAME=VALUE, such as group=64")
        try:
            made[name] = json.loads(value)
        except json.JSONDecodeError:
            made[name] = value  # a word
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 after one sentence on standard error for a user's mistake; argparse exits with 2 for a wrong usage."""
    a = parser().parse_args(arguments)
    from compress import ranks
    from compress.model import Options, compress_model

    options = Options(**{field.name: getattr(a, field.name) for field in fields(Options)})
    try:
        report = compress_model(a.model, a.out, a.method, a.bits, a.calibration, options, settings_of(a.set))
        if ranks.first():
            print(json.dumps(report.summary()) if a.json else sentence(report.summary()))
        return 0
    except CompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        ranks.leave()


def sentence(found: dict[str, Any]) -> str:
    """The summary for people."""
    parts = ", ".join(f"{found[f'bits_{part}']:.2f} {part}" for part in ("body", "embeddings", "head"))
    return (
        f"{found['out']}: {found['bytes'] / 1e6:.1f} MB, {found['bits_per_weight']:.2f} bits a weight ({parts}), "
        f"{found['seconds']:.0f} s, {found['peak_memory_bytes'] / 1e6:.0f} MB of memory at most"
    )


if __name__ == "__main__":
    sys.exit(main())
