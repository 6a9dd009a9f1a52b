"""The llama.cpp backend, through the package llama-cpp-python: GGUF files, and any other model once written as one.

A GGUF file brings its own tokenizer and template; a model that is written keeps the ones of its directory. Loads torch
only to write.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from panza import adapters
from panza.models.base import Sampling, pieces, room_for_answer
from panza.models.chat import ChatTokenizer, open_tokenizer, render
from panza.prompt import Chat
from panza.types import UserError

READ = 128  # tokens of a prompt between two looks at `stopped`
KEPT = 2  # files that are kept of those that were written: enough to go to and fro between base and adapter
ANY_SEED = 2**32 - 1  # llama.cpp draws another in its place


class LlamaModel:
    """A `Model` over llama_cpp.Llama. What two prompts have in common at their beginning is read once."""

    backend = "llama.cpp"

    def __init__(self, llama: Any, chat_tokenizer: ChatTokenizer, name: str, ends: frozenset[int]) -> None:
        self.llama, self.chat_tokenizer, self.name, self.ends = llama, chat_tokenizer, name, ends
        self.context = min(llama.n_ctx(), package().llama_model_n_ctx_train(llama.model))
        self._one_at_a_time = threading.Lock()

    def encode(self, chat: Chat) -> list[int]:
        return self.chat_tokenizer.encode(chat)

    def generate(self, chat: Chat, sampling: Sampling, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        ids = self.encode(chat)
        room = room_for_answer(self.name, len(ids), self.context, sampling.max_tokens)
        with self._one_at_a_time:
            yield from pieces(self._tokens(ids, sampling, room, stopped), self.chat_tokenizer)

    def _tokens(self, ids: list[int], sampling: Sampling, room: int, stopped: Callable[[], bool]) -> Iterator[int]:
        """At most `room` tokens after ids."""
        ids = self._unread(ids)
        with _choice(sampling) as choose:
            for _ in range(room):
                for start in range(0, len(ids), READ):
                    if stopped():
                        return
                    self.llama.eval(ids[start : start + READ])
                token = choose(self.llama.ctx)
                if token in self.ends:
                    return
                yield token
                ids = [token]

    def _unread(self, ids: list[int]) -> list[int]:
        """What is left to read of a prompt, at least one token, once all that was read and differs is forgotten."""
        llama_cpp, llama = package(), self.llama
        read = llama.input_ids[: llama.n_tokens].tolist()
        pairs = enumerate(zip(read, ids[:-1], strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(read), len(ids) - 1))
        if llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(llama.ctx), -1, same, -1):
            llama.n_tokens = same
        else:  # the state of a recurrent model has no beginning to go back to
            llama.reset()
        return ids[llama.n_tokens :]


@contextmanager
def _choice(sampling: Sampling) -> Iterator[Callable[[Any], int]]:
    """The next token of a llama.cpp context: as `hugging_face.choose` defines it, with llama.cpp's own chance."""
    llama_cpp = package()
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if sampling.temperature <= 0:
        steps = [llama_cpp.llama_sampler_init_greedy()]
    else:
        steps = [
            llama_cpp.llama_sampler_init_temp(sampling.temperature),
            llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
            llama_cpp.llama_sampler_init_dist(sampling.seed % ANY_SEED),
        ]
    for step in steps:
        llama_cpp.llama_sampler_chain_add(chain, step)
    try:
        yield lambda context: llama_cpp.llama_sampler_sample(chain, context, -1)
    finally:
        llama_cpp.llama_sampler_free(chain)


def open_gguf(file: Path, name: str, adapter: Path | None = None) -> LlamaModel:
    """The model in a GGUF file, with the file's own tokenizer; adapter: a GGUF file with LoRA on it. Raises UserError."""
    from jinja2 import TemplateError

    package()
    if not file.is_file():
        raise UserError(f"There is no file '{file}': give a GGUF file, or a directory with a Hugging Face model.")
    llama = _load(file)
    if adapter is not None:
        _attach(llama, adapter)
    tokenizer = GgufTokenizer(llama)
    try:
        chat_tokenizer = ChatTokenizer(tokenizer)
    except TemplateError as error:
        raise UserError(f"The chat template in '{file}' cannot be used: {type(error).__name__}.") from error
    return LlamaModel(llama, chat_tokenizer, name, chat_tokenizer.stop_ids | tokenizer.ends)


def open_written(folder: Path, adapter: Path | None, name: str, kept: Path) -> LlamaModel:
    """The model in a directory, with an adapter merged into it, from the GGUF file in `kept` that is written if need be.

    Raises UserError, or CompressError for what llama.cpp has no place for.
    """
    package()
    file = kept / f"{_content(folder, adapter)}.gguf"
    if not file.exists():
        _write(folder, adapter, file)
    chat_tokenizer = ChatTokenizer(open_tokenizer(folder))
    model = LlamaModel(_load(file), chat_tokenizer, name, chat_tokenizer.stop_ids)
    os.utime(file)
    _keep_latest(kept)
    return model


def _content(folder: Path, adapter: Path | None) -> str:
    """Names the weights and settings of a model with its adapter. Raises UserError if the adapter is not of this model."""
    base = adapters.base_hash_of(folder)
    digest = hashlib.sha256(base.encode() + (folder / "config.json").read_bytes())
    if adapter is not None:
        adapters.check(adapter, lambda: base)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            digest.update((adapter / name).read_bytes())
    return digest.hexdigest()[:32]


def _write(folder: Path, adapter: Path | None, file: Path) -> None:
    """At 16 bits, which predict what the other backends do; a smaller type would round a second time what is small."""
    from compress.checkpoint import load_model
    from compress.formats.gguf import export_gguf
    from compress.formats.gguf_types import half_for
    from compress.linear import decode_

    net = decode_(load_model(folder))
    net = adapters.merged(net, adapter) if adapter else net
    file.parent.mkdir(parents=True, exist_ok=True)
    export_gguf(net, folder, file, half_for(net.parameters()), alike=0.0)  # llama.cpp will split no text


def _keep_latest(kept: Path) -> None:
    """Remove what was written for models that others have followed."""
    for old in sorted(kept.glob("*.gguf"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
        with suppress(PermissionError):  # Windows, while another process reads it
            old.unlink()


def _load(file: Path) -> Any:
    """A llama_cpp.Llama that is silent, with the context that drafts may take. Raises UserError."""
    from compress.runtime import MOST_CONTEXT

    llama = _opened(file, MOST_CONTEXT)
    short = _short_context(llama.metadata)
    return llama if short >= llama.n_ctx() else _opened(file, short)


def _short_context(numbers: dict[str, str]) -> int:
    """Tokens for which a model with "longrope" has factors of their own: llama.cpp uses these for no longer context alone."""
    scaling = f"{numbers['general.architecture']}.rope.scaling"
    before = numbers.get(f"{scaling}.original_context_length")
    return int(before) if before and numbers.get(f"{scaling}.type", "longrope") == "longrope" else 1 << 30


def _opened(file: Path, context: int) -> Any:
    """Raises UserError for a file that llama.cpp does not read."""
    from jinja2 import TemplateError

    from compress.llama_cpp import complaints
    from compress.native import cores

    threads = {"n_threads": cores(), "n_threads_batch": cores()}
    said = complaints()
    said.clear()
    try:
        return package().Llama(str(file), n_ctx=context, verbose=False, **threads)
    except (ValueError, TemplateError) as error:
        why = said[0].strip().removeprefix("llama_model_load: error loading model: ") if said else str(error)
        raise UserError(f"'{file}' holds no model that llama.cpp reads: {why}.") from error


def _attach(llama: Any, adapter: Path) -> None:
    """Add a LoRA adapter, which goes with its model. Raises UserError. llama_cpp.Llama itself would draft without a bad one."""
    from compress.llama_cpp import complaints

    llama_cpp, said = package(), complaints()
    said.clear()
    found = llama_cpp.llama_adapter_lora_init(llama.model, str(adapter).encode())
    if not found:
        why = said[-1].strip().rpartition("adapter: ")[2] if said else "llama.cpp does not say why"
        raise UserError(f"'{adapter}' holds no adapter for this model: {why}.")
    one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(found)
    failed = llama_cpp.llama_set_adapters_lora(llama.ctx, one, 1, (ctypes.c_float * 1)(1.0))
    assert not failed, f"llama_set_adapters_lora says {failed}"


def package() -> ModuleType:
    """llama_cpp. Raises UserError if it is not installed."""
    from compress import llama_cpp
    from compress.errors import CompressError

    try:
        return llama_cpp.package("llama_cpp")
    except CompressError as error:
        raise UserError(f"GGUF files are read by llama.cpp, and {error}.") from error


class GgufTokenizer:
    """What ChatTokenizer needs of a tokenizer, from a GGUF file. ends: tokens that llama.cpp knows to end an answer."""

    def __init__(self, llama: Any) -> None:
        self._llama_cpp, self._llama = package(), llama
        self._vocab = self._llama_cpp.llama_model_get_vocab(llama.model)
        numbers = {name: getattr(self._llama_cpp, f"llama_vocab_{name}")(self._vocab) for name in ("bos", "eos", "pad")}
        numbers = {name: number for name, number in numbers.items() if number >= 0}
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (numbers.get(n) for n in ("bos", "eos", "pad"))
        self._named = {name: self._written(number) for name, number in numbers.items()}
        self.eos_token = self._named.get("eos")
        self.all_special_tokens = list(self._named.values())
        self.chat_template = llama.metadata.get("tokenizer.chat_template")
        self._pieces: dict[int, bytes] = {}
        every = range(llama.n_vocab())
        self.ends = frozenset(i for i in every if self._llama_cpp.llama_vocab_is_eog(self._vocab, i))
        self._added = {text: i for i in every if self._special(i) and (text := self._written(i)).strip()}

    def get_added_vocab(self) -> dict[str, int]:
        return self._added

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, Any]:
        raw = text.encode("utf-8", "replace")
        return {"input_ids": self._llama.tokenize(raw, add_bos=add_special_tokens, special=True)}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """Special tokens have no text, whether they are skipped or not."""
        return b"".join(map(self._piece, ids)).decode("utf-8", "replace")

    def apply_chat_template(self, chat: Chat, tokenize: bool = False, **values: Any) -> str:
        return render(self.chat_template, chat, self._named, values)

    def _special(self, token: int) -> bool:
        """Whether the token's text is read as the token wherever it stands."""
        c = self._llama_cpp
        kinds = c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_USER_DEFINED | c.LLAMA_TOKEN_ATTR_UNKNOWN
        return bool(c.llama_vocab_get_attr(self._vocab, token) & kinds)

    def _written(self, token: int) -> str:
        return self._llama_cpp.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        if token not in self._pieces:
            room = 32 * len(self._written(token)) + 32  # llama.cpp spells bytes out that it does not know
            raw = ctypes.create_string_buffer(room)
            size = self._llama_cpp.llama_token_to_piece(self._vocab, token, raw, room, 0, False)
            assert size >= 0, f"token {token} has more than {room} bytes"
            self._pieces[token] = raw[:size]
        return self._pieces[token]
