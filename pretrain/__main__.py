"""python -m pretrain VERB: clean, tokenizer, prepare, pretrain, tune, sweep, ship, measure, export. See pretrain/README.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

BASE = Path(__file__).resolve().parent.parent / "data" / "base"
VOCAB = 16384


def main(argv: Sequence[str] | None = None) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin starve a shared machine
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m pretrain", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, (run, arguments) in VERBS.items():
        verb = verbs.add_parser(name, help=(run.__doc__ or "").split("\n")[0])
        for flags, options in arguments() if argv[:1] == [name] else ():
            verb.add_argument(*flags, **options)
        verb.set_defaults(run=run)
    args = parser.parse_args(argv)
    args.run(args)


def clean(args: argparse.Namespace) -> None:
    """Make one clean file of all mail, without repeats and personal data."""
    from pretrain.corpus import clean_all

    print(json.dumps(clean_all(args.corpora, args.data, args.processes)))


def make_tokenizer(args: argparse.Namespace) -> None:
    """Train the BPE on a sample of the prose and of the clean mail."""
    from pretrain import tokenizer as tk
    from pretrain.corpus import sample

    tk.save(tk.train(sample(args.corpora, args.data, args.share), args.vocab), args.tokenizer, args.context)


def prepare(args: argparse.Namespace) -> None:
    """Swap and tokenize the corpora into token files."""
    from pretrain.pack import prepare as run

    first, _, last = args.versions.rpartition("-")
    versions = range(int(first or 0), int(last) + (1 if first else 0))
    run(args.corpora, args.tokenizer, args.data, args.kinds.split(","), versions, args.processes)


def train(args: argparse.Namespace) -> None:
    """Train or tune; started again it goes on from its checkpoint."""
    from pretrain import tokenizer as tk
    from pretrain.model import Shape
    from pretrain.train import DEFAULTS
    from pretrain.train import train as run

    default = DEFAULTS[args.verb]
    config = replace(default, **_given(args, default))
    shape = replace(Shape(), **_given(args, Shape()) | {"vocab": tk.load(args.tokenizer).get_vocab_size()})
    run(config, args.data, args.out, shape, args.start, args.teacher or ())


def _given(args: argparse.Namespace, default: object) -> dict[str, object]:
    """The fields of a config that the command line names, each in its type."""
    names = {f.name: type(getattr(default, f.name)) for f in fields(default)}  # type: ignore[arg-type]
    return {n: kind(getattr(args, n)) for n, kind in names.items() if getattr(args, n, None) is not None}


def sweep(args: argparse.Namespace) -> None:
    """Try a table of configurations, one process a GPU, and measure each."""
    from pretrain.sweep import sweep as run

    run(args.table, args.data, args.tokenizer, args.out, args.only.split(",") if args.only else ())


def attempt(args: argparse.Namespace) -> None:
    """One configuration of a sweep's table: pretrain, tune, measure."""
    from pretrain.sweep import attempt as run

    run(json.loads(args.table.read_text(encoding="utf-8"))[args.name], args.data, args.tokenizer, args.out)


def ship(args: argparse.Namespace) -> None:
    """Write a checkpoint as 8-bit rows with its tokenizer."""
    from compress.rows8 import save_rows8
    from pretrain import tokenizer as tk
    from pretrain.model import to_hugging_face
    from pretrain.train import load_model

    tokenizer = tk.load(args.tokenizer)
    model = load_model(args.checkpoint)
    ids = (tokenizer.token_to_id(tk.END_OF_TEXT), tokenizer.token_to_id(tk.END))
    save_rows8(to_hugging_face(model, *ids), args.base)
    tk.save(tokenizer, args.base, model.shape.context)


def export(args: argparse.Namespace) -> None:
    """Write the model of `--base` as a plain transformers directory."""
    from compress.rows8 import load_rows8
    from pretrain import tokenizer as tk

    model = load_rows8(args.base)
    model.save_pretrained(args.dir)
    tk.save(tk.load(args.base), args.dir, model.config.max_position_embeddings)


def measure(args: argparse.Namespace) -> None:
    """Bits per byte, facts kept, drafts ended, personal data; then drafts of the instructions typed by hand."""
    import torch

    from compress.rows8 import load_rows8
    from pretrain import measure as m
    from pretrain import tokenizer as tk
    from pretrain.model import to_hugging_face
    from pretrain.pack import read_kept, validation_items
    from pretrain.train import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = (to_hugging_face(load_model(args.checkpoint), 0, 4) if args.checkpoint else load_rows8(args.base)).to(
        device
    )
    if args.mail:
        mails = m.heldout(args.mail)
        asked = m.heldout_items(mails, args.count)
    else:
        mails = read_kept(args.data, args.part)
        asked = m.some([i for i in validation_items(args.data, args.part) if i.task == "write"], args.count)
    folder = args.tokenizer if args.checkpoint else args.base
    print(json.dumps(m.report(model, folder, m.some(mails, args.mails or len(mails)), asked)), flush=True)
    if args.drafts:
        for item, (text, ended) in zip(
            m.by_hand(), m.drafts(model, folder, [i.prompt for i in m.by_hand()]), strict=True
        ):
            fields = item.prompt[item.prompt.index(tk.USER) :].replace(tk.USER, "").split(tk.END)[0].strip()
            print(f"{'=' * 60}\n{fields}\n{'-' * 60}\n{text}{'' if ended else ' [no end]'}")


Argument = tuple[tuple[str, ...], dict[str, object]]
CORPORA: Argument = (("--corpora",), {"type": Path, "required": True, "help": "folder of the *.jsonl.xz files"})
TOKENIZER: Argument = (("--tokenizer",), {"type": Path, "default": BASE, "help": "folder of tokenizer.json"})
DATA: Argument = (("--data",), {"type": Path, "required": True, "help": "folder of the token files"})
BASE_DIR: Argument = (("--base",), {"type": Path, "default": BASE})
CHECKPOINT: Argument = (("--checkpoint",), {"type": Path})


def _flags(config: type) -> list[Argument]:
    """A flag for each field of a config that is a number or a word."""
    return [((f"--{f.name}",), {"metavar": f.type.upper()}) for f in fields(config) if f.name != "vocab"]


def _train_arguments() -> list[Argument]:
    from pretrain.model import Shape
    from pretrain.train import TrainConfig

    return [
        DATA,
        TOKENIZER,
        (("--out",), {"type": Path, "required": True, "help": "folder of the checkpoint and the log"}),
        (("--start",), {"type": Path, "help": "checkpoint to take the weights from"}),
        (("--teacher",), {"type": Path, "action": "append", "help": "checkpoint to learn from; may be repeated"}),
        *_flags(Shape),
        *_flags(TrainConfig),
    ]


SHIPPED: list[Argument] = [(("--checkpoint",), {"type": Path, "required": True}), TOKENIZER, BASE_DIR]
PROCESSES: Argument = (("--processes",), {"type": int, "default": os.cpu_count()})
TABLE: Argument = (("--table",), {"type": Path, "required": True, "help": "JSON: name -> configuration"})
OUT: Argument = (("--out",), {"type": Path, "required": True})
VERBS: dict[str, tuple[Callable[[argparse.Namespace], None], Callable[[], list[Argument]]]] = {
    "clean": (clean, lambda: [CORPORA, DATA, PROCESSES]),
    "tokenizer": (
        make_tokenizer,
        lambda: [
            CORPORA,
            DATA,
            TOKENIZER,
            (("--vocab",), {"type": int, "default": VOCAB}),
            (("--share",), {"type": float, "default": 0.05}),
            (("--context",), {"type": int, "default": 2048}),
        ],
    ),
    "prepare": (
        prepare,
        lambda: [
            CORPORA,
            TOKENIZER,
            DATA,
            (("--kinds",), {"default": "prose,mail,written,items"}),
            (("--versions",), {"default": "4", "help": "how many, or their numbers: 4-7"}),
            PROCESSES,
        ],
    ),
    "pretrain": (train, _train_arguments),
    "tune": (train, _train_arguments),
    "sweep": (sweep, lambda: [TABLE, DATA, TOKENIZER, OUT, (("--only",), {"help": "names, with commas"})]),
    "attempt": (attempt, lambda: [(("name",), {}), TABLE, DATA, TOKENIZER, OUT]),
    "ship": (ship, lambda: SHIPPED),
    "measure": (
        measure,
        lambda: [
            BASE_DIR,
            CHECKPOINT,
            TOKENIZER,
            (
                ("--mail",),
                {"type": Path, "help": "a JSONL file of held-out mails; else the validation authors of --data"},
            ),
            (("--data",), {"type": Path}),
            (("--part",), {"default": "authors", "choices": ("authors", "mails")}),
            (("--count",), {"type": int, "default": 300}),
            (("--mails",), {"type": int, "default": None}),
            (("--drafts",), {"action": "store_true"}),
        ],
    ),
    "export": (export, lambda: [(("dir",), {"type": Path}), BASE_DIR]),
}

if __name__ == "__main__":
    main()
