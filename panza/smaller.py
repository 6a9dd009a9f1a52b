"""A smaller model of one's own: base and adapter merged, compressed with the user's mail as calibration, and measured.

Knows `compress` and the files of a home's `models` folder; the mail comes as texts. What is written of them is removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from panza.home import write_json
from panza.models import ChatTokenizer
from panza.types import UserError

METHODS = ("trellis", "aqlm", "spqr", "gptq", "rtn")
CARD = "panza.json"  # beside the weights: what the model was made from
LENGTH = 1024  # tokens of a calibration sequence


@dataclass(frozen=True, slots=True)
class CompressConfig:
    """How small, and how."""

    method: str = field(default="trellis", metadata={"help": f"One of {', '.join(METHODS)}."})
    bits: float = field(default=3.0, metadata={"help": "Of a weight: 2, 2.5, 3 or 4."})
    sequences: int = field(default=64, metadata={"help": f"Calibration sequences of {LENGTH} tokens, at most."})
    tune: int = field(default=0, metadata={"help": "Epochs of tuning each block, at most: better, and much slower."})
    seed: int = field(default=0, metadata={"help": "Of all that is drawn."})


def check(config: CompressConfig) -> None:
    """UserError for what cannot be meant. Loads nothing."""
    if config.method not in METHODS:
        raise UserError(f"'{config.method}' is no method of compression: choose one of {', '.join(METHODS)}.")
    if not 1 < config.bits <= 8:
        raise UserError(f"{config.bits:g} bits a weight is no size: choose 2, 2.5, 3 or 4.")


def compress(
    model: Any,
    base: Path,
    texts: Sequence[str],
    measured: Sequence[str],
    out: Path,
    made_from: dict[str, Any],
    config: CompressConfig,
) -> dict[str, Any]:
    """Write the compressed model to `out`; an interrupted run goes on. Returns the report that lies beside it as CARD.

    model: a TorchModel, its adapter not yet merged. base: the directory of its tokenizer files (and, without an
    adapter, its weights). texts: whole prompts with their answers; without enough, the model's own samples calibrate.
    measured: others, whose perplexity is reported. Raises UserError.
    """
    from compress.checkpoint import copy_tokenizer
    from compress.errors import CompressError
    from compress.measure import measure
    from compress.model import Options, compress_model

    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(out.name + ".work")  # the merged model and the texts: gone when all is done
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        source = base
        if hasattr(model.net, "merge_and_unload"):
            source = work / "merged"
            model.net.merge_and_unload().save_pretrained(source)
            copy_tokenizer(base, source)
        sequences = min(config.sequences, _tokens(model.chat_tokenizer, texts) // LENGTH)
        calibration = work / "calibration.jsonl" if sequences >= 4 else None
        if calibration:
            calibration.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
        length = min(LENGTH, model.context)
        options = Options(
            sequences=sequences or 16,
            length=length,
            held_out=4 if config.tune else 0,
            tune=config.tune,
            seed=config.seed,
        )
        report = compress_model(source, out, config.method, config.bits, calibration, options).summary()
        text = "\n\n".join(measured)
        after = measure(out, text, source, length) if text.strip() else None
        before = measure(source, text, None, length) if text.strip() else None
    except CompressError as error:
        raise UserError(f"{error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    made = made_from | asdict(config) | {
        "calibrated_on": "mail" if calibration else "own samples",
        "bytes": report["bytes"],
        "bits_per_weight": report["bits_per_weight"],
        "bits_body": report["bits_body"],
        "seconds": round(report["seconds"], 1),
        "perplexity_before": before and before.perplexity,
        "perplexity": after and after.perplexity,
        "kl": after and after.kl,
    }  # fmt: skip
    write_json(out / CARD, made)
    return made


def _tokens(tokenizer: ChatTokenizer, texts: Sequence[str]) -> int:
    return (
        sum(len(ids) for ids in tokenizer.tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else 0
    )


def read_card(folder: Path) -> dict[str, Any]:
    """What a compressed model was made from; {} for none."""
    try:
        return dict(json.loads((folder / CARD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
