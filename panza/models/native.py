"""The native backend: our own decoder and kernels, for Llama-type models on the CPU. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from panza.models.base import Sampling, pieces, room_for_answer
from panza.models.chat import ChatTokenizer, open_tokenizer
from panza.prompt import Chat


class NativeModel:
    """A `Model` over compress.runtime; see there for the models it knows."""

    backend = "native"

    def __init__(self, runtime: Any, chat_tokenizer: ChatTokenizer, name: str, context: int) -> None:
        self.runtime, self.chat_tokenizer, self.name, self.context = runtime, chat_tokenizer, name, context

    def encode(self, chat: Chat) -> list[int]:
        return self.chat_tokenizer.encode(chat)

    def generate(self, chat: Chat, sampling: Sampling, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        from compress.runtime import Sampling as Choice

        ids = self.encode(chat)
        room = room_for_answer(self.name, len(ids), self.context, sampling.max_tokens)
        how = Choice(temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed)
        tokens = self.runtime.generate(ids, how, room, self.chat_tokenizer.stop_ids, stopped)
        yield from pieces(tokens, self.chat_tokenizer)


def open_native(folder: Path, adapter: Path | None, name: str) -> NativeModel:
    """The model in a directory. Raises compress.runtime.Unsupported, or CompressError if it is damaged."""
    from compress.runtime import load

    runtime = load(folder, adapter, exact=False)
    return NativeModel(runtime, ChatTokenizer(open_tokenizer(folder)), name, runtime.context)
