"""Text as token sequences: from a file, or from the model's own samples. Knows tokenizers; knows no layer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError

MAIL = ".mbox", ".eml", ".msg"
PIECE = 8192  # characters of a plain text that are drawn together


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model directory."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CompressError(f"'{folder}' holds no tokenizer that loads ({type(error).__name__})") from error


def read_text(path: Path) -> str:
    """All text of a .txt or .jsonl file; the texts of a .jsonl are set apart by blank lines."""
    return "\n\n".join(documents(path)) if path.suffix == ".jsonl" else _plain(path)


def documents(path: Path) -> list[str]:
    """The texts of a .jsonl (its `text` fields), or a plain text in pieces of PIECE characters."""
    if path.suffix in MAIL:
        raise CompressError(f"'{path}' is mail, headers and all: give its texts, as a .jsonl with 'text' fields")
    if path.suffix == ".jsonl":
        return list(_json_lines(path))
    text = _plain(path)
    return [text[at : at + PIECE] for at in range(0, len(text), PIECE)]


def _plain(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CompressError(f"the text '{path}' cannot be read: {error.strerror}") from error


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_plain(path).splitlines(), 1):
        try:
            if line.strip():
                yield str(json.loads(line)["text"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CompressError(f"line {number} of '{path}' is no JSON object with a 'text'") from error


def check_ids(ids: Sequence[int], model: nn.Module) -> None:
    """Raises CompressError for token ids that the model has no embedding for."""
    most = model.get_input_embeddings().num_embeddings
    if (largest := max(ids, default=0)) >= most:
        raise CompressError(f"the tokenizer gives token {largest}, and the model has {most}: it is another model's")


def token_sequences(path: Path, tokenizer: Any, count: int, length: int, seed: int) -> Tensor:
    """`count` sequences of `length` tokens that do not overlap, drawn at random from a file: (count, length) int64.

    Each begins with the tokenizer's BOS if it has one, as texts that the model reads do; BOS, else EOS, parts texts.
    """
    texts, stream = documents(path), []
    random.Random(seed).shuffle(texts)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    between = (bos or ends) if path.suffix == ".jsonl" else []
    room = max(1, length - len(bos))  # a sequence of one token is a token of the text
    for text in texts:
        stream += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + between
        if len(stream) >= count * room:
            rows = torch.tensor(stream[: count * room]).view(count, room)
            return torch.cat((torch.tensor(bos[: length - room]).expand(count, -1).long(), rows), 1)
    raise CompressError(
        f"'{path}' holds {len(stream)} tokens: {count} sequences of {length} need {count * room}; ask for fewer"
    )


@torch.no_grad()
def own_samples(model: nn.Module, count: int, length: int, seed: int, batch: int = 16) -> Tensor:
    """`count` sequences that the model draws from itself at temperature 1: (count, length) int64, the same for a seed."""
    chance = torch.Generator().manual_seed(seed)
    start, made = first_token(model), []
    for at in range(0, count, batch):
        ids = torch.full((min(batch, count - at), 1), start)  # (B, 1)
        made.append(_continue(model, ids, length, chance))
    return torch.cat(made)


def first_token(model: nn.Module) -> int:
    """What the model's texts begin with: its BOS, else its EOS, else token 0."""
    known = (getattr(model.config, name, None) for name in ("bos_token_id", "eos_token_id"))
    first = next((t for t in known if t is not None), 0)
    return first[0] if isinstance(first, list) else first


def _continue(model: nn.Module, ids: Tensor, length: int, chance: torch.Generator) -> Tensor:
    """Sample until `ids` are `length` long; chance runs on the CPU so that every device draws alike."""
    device = next(model.parameters()).device
    step, cache = ids, None
    while ids.shape[1] < length:
        out = model(step.to(device), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        step = torch.multinomial(out.logits[:, -1].float().softmax(-1).cpu(), 1, generator=chance)  # (B, 1)
        ids = torch.cat((ids, step), 1)
    return ids[:, :length]
