"""A tokenizer in llama.cpp's words: tokens, merges and the name of the splitting that is its own. Knows text; knows no model.

llama.cpp has no place for a pattern, only for the name of one that it knows. So each of `SPLITTINGS` is tried on `PROBES`
and the one that gives this tokenizer's ids is written; if none does, the nearest, unless it is far.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from compress.errors import CompressError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
NEAR = 0.99  # of the probes' tokens: a splitting that has fewer of them in common is another tokenizer
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # SentencePiece's tokens for what it has no other for
SPACES = {"Sequence", "Prepend", "Replace", "Metaspace", "Split"}  # what turns spaces into ▁, and parts a text there
SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}  # llama.cpp's word: transformers'

WORD = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Splitting:
    """Patterns that cut a text one after the other; whole: a piece that is a token stays one, whatever the merges say."""

    patterns: tuple[str, ...]
    whole: bool = False


SPLITTINGS = {  # tokenizer.ggml.pre
    "gpt-2": Splitting((WORD,)),
    "smollm": Splitting((r"\p{N}", WORD)),
    "qwen2": Splitting((SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST,)),
    "llama-bpe": Splitting((SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST,), whole=True),
    "smaug-bpe": Splitting((SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST,)),
    "tekken": Splitting((CASED % ("", "") + r"|\p{N}" + SLASH,), whole=True),
    "gpt-4o": Splitting((CASED % (SHORT + "?", SHORT + "?") + r"|\p{N}{1,3}" + SLASH,)),
}

PROBES = (
    "Hi Anna,\n\nthanks for your mail. I've read the draft twice; it's fine, but we'll need 3 changes before 17:30.\n",
    'She said: "I can\'t come on Tuesday (sorry!)" - and left.  Two spaces follow that full stop, as some people write.\n',
    "> On 12 March 2024, Tom O'Brien <tom.obrien@example.com> wrote:\n>> DON'T SEND THE INVOICE No. 20240312-7A yet!!!\n",
    "\tdef f(x):\n\t\treturn x**2 + 10000 // 7  # 1,234.56\r\n\r\n    if a != b and c >= 0:\r\n        print('ok...')\n\n\n",
    "Zürich, naïve café, Ærø, straße; Привет, как дела? Καλημέρα. 你好，世界。 こんにちは 안녕하세요 नमस्ते 👍🏽 → € 20 ½ x² 第3回",
    "Best regards,\nMara\n--\nMara Lindt | +49 30 1234567 | https://example.org/a_b?c=d&e=%20#top\n",
)


def vocabulary(tokenizer: Any, rows: int, near: float = NEAR) -> tuple[dict[str, Any], float]:
    """GGUF's keys for a transformers tokenizer, and the share of the probes' tokens that llama.cpp splits alike.

    rows: of the embedding, at least one for each token. near: the least share. Raises CompressError for a kind that
    llama.cpp does not have.
    """
    written = json.loads(_backend(tokenizer).to_str())
    if _byte_fallback(written):
        made, alike = _sentencepiece(tokenizer, written, rows), 1.0
    elif written["model"].get("type") == "BPE" and "ByteLevel" in _kinds(written["pre_tokenizer"]):
        made, alike = _byte_level(tokenizer, written, near)
    else:
        raise CompressError(
            "the model's tokenizer is neither byte-level BPE nor SentencePiece's BPE, as llama.cpp needs"
        )
    ids = {word: getattr(tokenizer, f"{name}_token_id") for word, name in SPECIAL.items()}
    first, last = _around(tokenizer)
    made |= {
        "tokens": _tokens(written, rows),
        "token_type": _types(written, rows),
        **{f"{word}_token_id": i for word, i in ids.items() if i is not None},
        "add_bos_token": first is not None and first == ids["bos"],
        "add_eos_token": last is not None and last == ids["eos"],
    }
    keys = {f"tokenizer.ggml.{key}": value for key, value in made.items()}
    template = getattr(tokenizer, "chat_template", None)
    return keys | ({"tokenizer.chat_template": template} if isinstance(template, str) else {}), alike


def nearest(tokenizer: Tokenizer) -> tuple[str, float]:
    """The splitting that gives most of a byte-level tokenizer's own tokens for the probes, and their share."""
    shares = {name: _share(tokenizer, split_as(tokenizer, splitting)) for name, splitting in SPLITTINGS.items()}
    best = max(shares, key=shares.get)  # of equals the first
    return best, shares[best]


def split_as(tokenizer: Tokenizer, splitting: Splitting) -> Tokenizer:
    """What llama.cpp does with the tokens and merges of a byte-level tokenizer: this splitting, and no normalizer."""
    written = json.loads(tokenizer.to_str()) | {"normalizer": None, "post_processor": None}
    written["model"]["ignore_merges"] = splitting.whole
    made = Tokenizer.from_str(json.dumps(written))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    return made


def _backend(tokenizer: Any) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CompressError("the model's tokenizer has no tokenizer.json: only such a one is written")
    return backend


def _byte_fallback(written: dict[str, Any]) -> bool:
    return bool(written["model"].get("byte_fallback")) and set(BYTES) <= written["model"]["vocab"].keys()


def _share(ours: Tokenizer, theirs: Tokenizer) -> float:
    """Of our tokens of the probes, those that are theirs too, at the same place."""
    same = count = 0
    for text in PROBES:
        a, b = (t.encode(text, add_special_tokens=False) for t in (ours, theirs))
        count += len(a.ids)
        same += len(a.ids) if a.ids == b.ids else len(set(_placed(a)) & set(_placed(b)))
    return same / count


def _placed(encoding: Any) -> Iterator[tuple[int, tuple[int, int]]]:
    return zip(encoding.ids, encoding.offsets, strict=True)


def _byte_level(tokenizer: Any, written: dict[str, Any], near: float) -> tuple[dict[str, Any], float]:
    pre, alike = nearest(_backend(tokenizer))
    if alike < near:
        raise CompressError(
            f"none of llama.cpp's pre-tokenizers splits text as this tokenizer does: the nearest, '{pre}', "
            f"has {alike:.0%} of its tokens ({', '.join(SPLITTINGS)} were tried)"
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in written["model"]["merges"]]
    return {"model": "gpt2", "pre": pre, "merges": merges}, alike


def _sentencepiece(tokenizer: Any, written: dict[str, Any], rows: int) -> dict[str, Any]:
    """llama.cpp joins the neighbours whose token has the highest score: the sooner merged, the higher."""
    if other := sorted(_kinds([written["normalizer"], written["pre_tokenizer"]]) - SPACES):
        raise CompressError(f"llama.cpp has no '{other[0]}' before SentencePiece's BPE, as this tokenizer has")
    vocab, merges = written["model"]["vocab"], written["model"]["merges"]
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault("".join(pair.split(" ", 1) if isinstance(pair, str) else pair), number)
    ids = {i: piece for piece, i in vocab.items()}
    scores = [-float(rank.get(ids.get(i, ""), len(merges))) for i in range(rows)]
    prefix = tokenizer.tokenize("a")[:1] != ["a"]
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}


def _kinds(part: Any) -> set[str]:
    """The types of a tokenizer's part and of its parts."""
    if isinstance(part, dict):
        return {part["type"]} | _kinds(list(part.values())) if "type" in part else _kinds(list(part.values()))
    return set().union(*map(_kinds, part)) if isinstance(part, list) else set()


def _around(tokenizer: Any) -> tuple[int | None, int | None]:
    """What the tokenizer puts before and after every text."""
    bare, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    before = full[0] if full[:1] != bare[:1] else None
    return before, full[-1] if full[-1:] != bare[-1:] else None


def _tokens(written: dict[str, Any], rows: int) -> list[str]:
    named = {i: piece for piece, i in written["model"]["vocab"].items()}
    named |= {t["id"]: t["content"] for t in written["added_tokens"]}
    if max(named) >= rows:
        raise CompressError(f"the tokenizer has {max(named) + 1} tokens, the model's embedding {rows} rows")
    return [named.get(i, f"[unused {i}]") for i in range(rows)]


def _types(written: dict[str, Any], rows: int) -> list[int]:
    model = written["model"]
    kinds = dict.fromkeys(model["vocab"].values(), NORMAL)
    if _byte_fallback(written):
        kinds |= {model["vocab"][byte]: BYTE for byte in BYTES}
    kinds |= {t["id"]: CONTROL if t["special"] else USER_DEFINED for t in written["added_tokens"]}
    if (unknown := model["vocab"].get(model.get("unk_token"))) is not None:
        kinds[unknown] = UNKNOWN
    return [kinds.get(i, UNUSED) for i in range(rows)]
