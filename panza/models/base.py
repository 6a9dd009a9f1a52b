"""What a backend offers. Knows nothing of any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from panza.models.chat import ChatTokenizer
from panza.prompt import Chat
from panza.types import UserError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next token. temperature 0 is greedy; seed matters only above it."""

    max_tokens: int = 300
    temperature: float = 0.0
    top_p: float = 0.9
    seed: int = 0


class Model(Protocol):
    """What drafting needs of a backend."""

    name: str
    backend: str  # what runs it
    context: int  # tokens that prompt and answer may take together

    def encode(self, chat: Chat) -> list[int]:
        """The prompt's token ids, with the mark after which the answer starts."""

    def generate(self, chat: Chat, sampling: Sampling, stopped: Callable[[], bool]) -> Iterator[str]:
        """The answer piece by piece, a token at a time; ends by itself, at max_tokens or when `stopped()`."""


def room_for_answer(name: str, prompt: int, context: int, most: int) -> int:
    """Tokens that an answer may have. Raises UserError if the prompt fills the context."""
    room = min(most, context - prompt)
    if room <= 0:
        raise UserError(f"The instruction is too long for '{name}', which reads {context} tokens: shorten it.")
    return room


def pieces(tokens: Iterable[int], tokenizer: ChatTokenizer) -> Iterator[str]:
    """The text of tokens as they come: whole characters, a token at a time."""
    written: list[int] = []
    text = shown = ""
    for token in tokens:
        written.append(token)
        text = tokenizer.tokenizer.decode(written, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a character: wait for its other bytes
            yield text[len(shown) :]
            shown = text
    if text != shown:
        yield text[len(shown) :]
