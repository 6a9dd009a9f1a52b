"""python -m compress.table MODEL --text FILE --calibration FILE --work DIR: every method at every size, as one Markdown table.

A row is finished when its line stands in DIR/rows.jsonl; a run that is taken up again makes the rows that lack.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.files import make
from compress.layers import recipe_for
from compress.measure import measure
from compress.methods import METHODS
from compress.model import Options, compress_model, find_model
from compress.progress import say
from compress.text import read_text

SIZES = (2.0, 2.5, 3.0, 4.0)
MARKS = "<!-- table -->\n", "<!-- end of table -->\n"
HEAD = ("method", "asked", "MB", "bits body", "bits all", "perplexity", "worse by", "KL", "seconds")


def fill(
    model: Path, texts: Sequence[Path], calibration: Path | None, work: Path, options: Options,
    methods: Sequence[str] = METHODS, sizes: Sequence[float] = SIZES, context: int = 1024,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for the model itself and one for each method and size; those in work/rows.jsonl are taken from there."""
    known, read = make(work) / "rows.jsonl", [read_text(text) for text in texts]
    key = {"model": str(model), "texts": [str(t) for t in texts], "context": context, **asdict(options)}
    key["calibration"] = str(calibration)
    rows = [row for row in _known(known) if row["key"] == key]
    for method, bits in [("", 16.0), *((m, b) for b in sizes for m in methods)]:
        if any(row["method"] == method and row["asked"] == bits for row in rows):
            continue
        say(f"{method or 'the model itself'} at {bits:g} bits")
        row = {"method": method, "asked": bits, "key": key}
        if refused := _refusal(method, bits):
            row["refused"] = refused
        else:
            row |= _row(model, method, bits, read, calibration, work, options, context)
        rows.append(row)
        with known.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return rows


def _known(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            say(f"a line of {path} is torn: its row is made again")


def _refusal(method: str, bits: float) -> str:
    """Why the method has no settings for a size, "" if it has."""
    try:
        if method:
            recipe_for(method, bits)
        return ""
    except CompressError as error:
        return str(error)


def _row(
    model: Path, method: str, bits: float, texts: Sequence[str], calibration: Path | None, work: Path,
    options: Options, context: int,
) -> dict[str, Any]:  # fmt: skip
    out, how = work / f"{method}-{bits:g}", {"context": context, "batch": max(1, options.batch // context)}
    if not method:
        size = sum(f.stat().st_size for f in model.iterdir() if f.suffix == ".safetensors")
        return {"bytes": size, "texts": [asdict(measure(model, t, **how)) for t in texts]}
    report = compress_model(model, out, method, bits, calibration, options)
    found = [asdict(measure(out, t, reference=model, **how)) for t in texts]
    shutil.rmtree(out)
    return {"bytes": report.bytes, "bits": report.bits, "seconds": report.seconds, "texts": found}


def markdown(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """One table for each text. A method that refuses a size says why."""
    return "\n".join(f"{name}\n\n{_table(rows, number)}" for number, name in enumerate(names))


def _table(rows: Sequence[dict[str, Any]], number: int) -> str:
    plain = next(row for row in rows if not row["method"])["texts"][number]["perplexity"]
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1))]
    lines += [_cells(row, number, plain) for row in rows if "refused" not in row]
    refused = [f"- {row['method']} at {row['asked']:g}: {row['refused']}" for row in rows if "refused" in row]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
    return table + ("\n" + "\n".join(refused) + "\n" if refused else "")


def _cells(row: dict[str, Any], number: int, plain: float) -> tuple[str, ...]:
    found, bits = row["texts"][number], row.get("bits", {"body": 16.0, "all": 16.0})
    size, perplexity = f"{row['bytes'] / 1e6:.1f}", f"{found['perplexity']:.2f}"
    if not row["method"]:
        return ("(as it is)", "", size, "", "", perplexity, "", "", "")
    worse, kl = f"{100 * (found['perplexity'] / plain - 1):.1f} %", f"{found['kl']:.4f}"
    sizes = f"{bits['body']:.2f}", f"{bits['all']:.2f}"
    return (row["method"], f"{row['asked']:g}", size, *sizes, perplexity, worse, kl, f"{row['seconds']:.0f}")


def write_between_marks(path: Path, table: str) -> None:
    """Put the table between the marks of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(MARKS[0])
    _, ended, after = rest.partition(MARKS[1])
    if not (found and ended):
        raise CompressError(f"'{path}' has no lines '{MARKS[0].strip()}' and '{MARKS[1].strip()}' to write between")
    part = path.with_name(path.name + ".part")
    part.write_text(f"{before}{found}\n{table}\n{ended}{after}", encoding="utf-8")
    part.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 after one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m compress.table", description="Compare the methods on one model.")
    parser.add_argument("model", help="a model directory or a hub name")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="what perplexity and KL are measured on")
    parser.add_argument("--calibration", type=Path, help="another text, for calibration (default: own samples)")
    parser.add_argument("--work", type=Path, required=True, help="a directory for finished rows")
    parser.add_argument("--readme", type=Path, help="a Markdown file with the marks to write between")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--bits", nargs="+", type=float, default=SIZES)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=Options.sequences)
    parser.add_argument("--length", type=int, default=Options.length)
    parser.add_argument("--tune", type=int, default=0, help="epochs of block tuning, for every method")
    parser.add_argument("--finetune", type=int, default=0, help="epochs of tuning the whole model, for every method")
    parser.add_argument("--guided", type=int, default=0, help="output groups of guided Hessians, for every method")
    parser.add_argument("--batch", type=int, default=Options.batch, help="tokens that run at once")
    a = parser.parse_args(arguments)
    names = "sequences", "length", "tune", "finetune", "guided", "batch"
    options = Options(**{name: getattr(a, name) for name in names})
    try:
        rows = fill(find_model(a.model), a.text, a.calibration, a.work, options, a.methods, a.bits, a.context)
        how = f"context {a.context}, calibration {a.sequences} × {a.length} tokens, {a.tune} epochs of block tuning"
        how += f", {a.finetune} of the whole model" if a.finetune else ""
        table = markdown(rows, [f"`{text.name}`, {how}:" for text in a.text])
        if a.readme:
            write_between_marks(a.readme, table)
    except CompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
