"""python -m pretrain VERB: tokenizer, prepare, pretrain, tune, ship, measure, export. Order and times: pretrain/README.md."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

BASE = Path(__file__).resolve().parent.parent / "data" / "base"
VOCAB = 12288


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pretrain", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, (run, arguments) in VERBS.items():
        verb = verbs.add_parser(name, help=(run.__doc__ or "").split("\n")[0])
        for flags, options in arguments:
            verb.add_argument(*flags, **options)
        verb.set_defaults(run=run)
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin starve a shared machine
    args.run(args)


def make_tokenizer(args: argparse.Namespace) -> None:
    """Train the BPE on a sample of the corpora."""
    from pretrain import tokenizer as tk
    from pretrain.corpus import sample

    tk.save(tk.train(sample(args.corpora, args.share), args.vocab), args.tokenizer, args.context)


def prepare(args: argparse.Namespace) -> None:
    """Clean, swap and tokenize the corpora into token files."""
    from pretrain.pack import prepare as run

    run(args.corpora, args.tokenizer, args.data, args.kinds.split(","), args.versions, args.processes)


def train(args: argparse.Namespace) -> None:
    """Train or tune; started again it goes on from its checkpoint."""
    from pretrain import tokenizer as tk
    from pretrain.model import Shape
    from pretrain.train import DEFAULTS
    from pretrain.train import train as run

    default = DEFAULTS[args.verb]
    given = {
        f.name: type(getattr(default, f.name))(getattr(args, f.name))
        for f in fields(default)
        if getattr(args, f.name) is not None
    }
    sizes = {f.name: getattr(args, f.name) for f in fields(Shape) if getattr(args, f.name, None) is not None}
    shape = Shape(**sizes | {"vocab": tk.load(args.tokenizer).get_vocab_size()})
    run(args.verb, args.tokens, args.data, args.out, replace(default, **given), shape, args.start)


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
    print(json.dumps(m.report(model, args.base, m.some(mails, args.mails or len(mails)), asked)), flush=True)
    if args.drafts:
        for item, (text, ended) in zip(
            m.by_hand(), m.drafts(model, args.base, [i.prompt for i in m.by_hand()]), strict=True
        ):
            fields = item.prompt[item.prompt.index(tk.USER) :].replace(tk.USER, "").split(tk.END)[0].strip()
            print(f"{'=' * 60}\n{fields}\n{'-' * 60}\n{text}{'' if ended else ' [no end]'}")


Argument = tuple[tuple[str, ...], dict[str, object]]
CORPORA: Argument = (("--corpora",), {"type": Path, "required": True, "help": "folder of the *.jsonl.xz files"})
TOKENIZER: Argument = (("--tokenizer",), {"type": Path, "default": BASE, "help": "folder of tokenizer.json"})
DATA: Argument = (("--data",), {"type": Path, "required": True, "help": "folder of the token files"})
BASE_DIR: Argument = (("--base",), {"type": Path, "default": BASE})
CHECKPOINT: Argument = (("--checkpoint",), {"type": Path})
SHAPE: list[Argument] = [
    ((f"--{n}",), {"type": int}) for n in ("hidden", "layers", "heads", "kv_heads", "ffn", "context")
]
CONFIG: list[Argument] = [
    ((f"--{n}",), {"type": float}) for n in ("lr", "floor", "decay", "weight_decay", "save_seconds")
]
CONFIG += [
    ((f"--{n}",), {"type": int})
    for n in ("T", "rows", "micro", "warmup", "seed", "validate_every", "documents", "compile")
]
TRAIN: list[Argument] = [
    DATA,
    TOKENIZER,
    (("--tokens",), {"type": lambda s: int(float(s)), "required": True}),
    (("--out",), {"type": Path, "required": True, "help": "folder of the checkpoint and the log"}),
    (("--start",), {"type": Path, "help": "checkpoint to take the weights from"}),
    *SHAPE,
    *CONFIG,
]
VERBS: dict[str, tuple[Callable[[argparse.Namespace], None], list[Argument]]] = {
    "tokenizer": (
        make_tokenizer,
        [
            CORPORA,
            TOKENIZER,
            (("--vocab",), {"type": int, "default": VOCAB}),
            (("--share",), {"type": float, "default": 0.04}),
            (("--context",), {"type": int, "default": 2048}),
        ],
    ),
    "prepare": (
        prepare,
        [
            CORPORA,
            TOKENIZER,
            DATA,
            (("--kinds",), {"default": "prose,mail,items"}),
            (("--versions",), {"type": int, "default": 4}),
            (("--processes",), {"type": int, "default": os.cpu_count()}),
        ],
    ),
    "pretrain": (train, TRAIN),
    "tune": (train, TRAIN),
    "ship": (ship, [(("--checkpoint",), {"type": Path, "required": True}), TOKENIZER, BASE_DIR]),
    "measure": (
        measure,
        [
            BASE_DIR,
            CHECKPOINT,
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
    "export": (export, [(("dir",), {"type": Path}), BASE_DIR]),
}

if __name__ == "__main__":
    main()
