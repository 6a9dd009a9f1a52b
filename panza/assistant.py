"""The verbs as one object: what the command line and the page both call. Opens what a verb needs, and only then."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panza import dataset, models, playback, smaller, train
from panza.adapters import read_report
from panza.draft import Writer, check
from panza.home import Home, read_settings, write_json
from panza.mail import ImportReport, Store, import_mail
from panza.playback import PlaybackConfig, PlaybackReport
from panza.retrieve import Retriever
from panza.smaller import CompressConfig
from panza.train import TrainConfig
from panza.types import Draft, DraftRequest, Message, PlaybackPair, Progress, Thread, UserError, silent

FEW = 64  # new mails that are embedded on the way to a draft; more wait for `panza index` or training


@dataclass(frozen=True, slots=True)
class Status:
    """What Panza has of its user."""

    mails: int
    sent: int
    me: tuple[str, ...]
    pairs: int
    base: str
    adapter: str  # "" if there is none; else what it was trained on, in words
    compressed: str  # "" if drafts run on the whole model; else how it was made smaller
    indexed: int
    backend: str  # what drafts run on; "" while the first one decides it


class Assistant:
    """One user's Panza: a home folder, a base model, and what has been learnt.

    base: "" for the embedded model, a directory, a hub name or a GGUF file; None for the one used last. It is remembered in the
    home's settings once it has been loaded. Each base has an adapter of its own. backend: what runs drafts, see
    `models.load_for_drafts`; `why_not_native` says why that is not the native one.
    """

    def __init__(self, home: Home, base: str | None = None, backend: str = "auto") -> None:
        models.settle_libraries()
        self.home = home
        self._remembered: str = read_settings(home).get("base", "")
        self.base = self._remembered if base is None else _absolute(base)
        self._fetch = bool(base)  # the user named it in this call: a hub may be asked for it
        self.store = Store(home.mail)
        self.backend, self.why_not_native = backend, ""
        self._models: dict[str, tuple[Any, Any]] = {}  # "batch", "drafts" -> what it was loaded from, model
        self._retriever: Retriever | None = None

    def status(self) -> Status:
        """Counts and names; loads no model."""
        report = read_report(self.adapter) if self.adapter else {}
        beside = models.adapter_beside(self.base)
        trained = f"trained on {report['pairs']} mails" if report else beside.name if beside else ""
        if report and report["loss_before"] is not None:
            trained += f", loss {report['loss_before']:.2f} → {report['loss_after']:.2f}"
        return Status(
            mails=self.store.count(),
            sent=self.store.count(mine=True),
            me=tuple(sorted(self.store.me)),
            pairs=playback.count(self.home.playback),
            base=models.base_id(self.base),
            adapter=trained,
            compressed=self._compressed_words(),
            indexed=self.retriever.count(),
            backend=self._runs_on,
        )

    @property
    def _runs_on(self) -> str:
        if "drafts" in self._models:
            return self._models["drafts"][1].backend
        return "llama.cpp" if models.is_gguf(self.base) else self.backend.replace("auto", "")

    # Mail in

    def import_mail(self, paths: Sequence[Path], me: Sequence[str] = (), progress: Progress = silent) -> ImportReport:
        """Read mailboxes into the store."""
        return import_mail(self.store, paths, me, progress)

    def index(self, progress: Progress = silent) -> int:
        """Embed the mails that have no vector yet; how many that were."""
        return self.retriever.update(progress)

    def inbox(self, query: str = "", limit: int = 50) -> list[Message]:
        """Received mails, newest first, or those that a query finds, best first."""
        if not query.strip():
            return list(self.store.messages(mine=False, newest_first=True, limit=limit))
        found = self.store.by_rows(self.store.search(query, 4 * limit))
        return [m for m in found if not m.mine][:limit]

    def message(self, message_id: str) -> Message:
        """One mail; UserError if there is none."""
        try:
            return self.store.get(message_id)
        except KeyError:
            raise UserError(f"There is no mail with the Message-ID '{message_id}'.") from None

    def thread(self, message_id: str) -> Thread:
        """The thread of one mail."""
        return self.store.thread(self.message(message_id).thread)

    # Learning

    def play_back(self, config: PlaybackConfig | None = None, progress: Progress = silent) -> PlaybackReport:
        """An instruction for each sent mail that has none yet."""
        if not self.store.count(mine=True):
            raise UserError("There is no sent mail to learn from: `panza import PATH --me ADDRESS` brings it in.")
        config = config or PlaybackConfig()
        model = self.model(adapter=False) if config.tries else None
        return playback.play_back(self.store.messages(mine=True), model, self.home.playback, config, progress)

    def forget_playback(self) -> None:
        """Set the playback file aside, so that the next playback starts over."""
        if self.home.playback.exists():
            self.home.playback.replace(self.home.playback.with_suffix(".jsonl.old"))

    def pairs(self) -> list[PlaybackPair]:
        """All playback pairs, by date."""
        return playback.read_pairs(self.home.playback, self.store.messages(mine=True))

    def train(self, config: TrainConfig | None = None, progress: Progress = silent) -> dict[str, Any]:
        """Fine-tune a LoRA adapter on the playback pairs; returns the report that lies beside it."""
        began = time.monotonic()
        config = config or TrainConfig()
        models.check_learns(self.base)
        split = self.split(config)
        self.index(progress)
        self._models.clear()  # two models at once may be too much for a laptop
        net, tokenizer = models.load_base(self.base, self._fetch)
        self._remember_base()
        chat_tokenizer = models.ChatTokenizer(tokenizer)
        aside = frozenset(p.message.thread for p in split.heldout)
        encoded = {}
        for name in ("train", "validation", "heldout"):
            training = name == "train"
            examples = self._examples(
                getattr(split, name), chat_tokenizer, config, training, aside if training else frozenset()
            )
            encoded[name] = dataset.encode(examples, chat_tokenizer, config.most_tokens)
        about = {
            "base": models.base_id(self.base),
            "method": "lora",
            "trained_on": [p.message.id for p in split.train + split.validation],
            "kept_aside": [p.message.id for p in split.heldout],
        }
        return train.train(net, train.Parts(**encoded), self._adapter_folder, config, about, progress, began)

    def learn(self, progress: Progress = silent) -> dict[str, Any]:
        """Playback, index and training in one go: what the page's button does."""
        self.play_back(progress=progress)
        return self.train(progress=progress)

    def compress(self, config: CompressConfig | None = None) -> dict[str, Any]:
        """Make the base and what was learnt into one smaller model, which drafts from now on; returns its report.

        It is out of date, and not used, once there is another adapter.
        """
        config = config or CompressConfig()
        smaller.check(config)
        model = self.model()
        texts, measured = self._calibration(model.chat_tokenizer)
        folder = models.folder(self.base)
        if folder is None:
            raise UserError(f"'{self.base}' has no files on this computer: draft with it once, then compress it.")
        out = self.home.models / f"{self._short_name}-{config.method}-{config.bits:g}"
        made = smaller.compress(model, folder, texts, measured, out, self._made_from(), config)
        self._models.clear()  # its adapter is merged now
        write_json(self.home.settings, read_settings(self.home) | {"compressed": out.name})
        return made | {"out": str(out)}

    def forget_compressed(self) -> None:
        """Draft with the whole model again; the smaller one's files stay."""
        write_json(self.home.settings, read_settings(self.home) | {"compressed": ""})

    @property
    def compressed(self) -> Path | None:
        """The folder of the smaller model that drafts, if it was made from this base with this adapter."""
        name = read_settings(self.home).get("compressed", "")
        folder = self.home.models / name
        made = smaller.read_card(folder) if name else {}
        return folder if made and all(made.get(k) == v for k, v in self._made_from().items()) else None

    def _made_from(self) -> dict[str, Any]:
        weights = self.adapter / "adapter_model.safetensors" if self.adapter else None
        return {
            "base": models.base_id(self.base),
            "base_hash": models.weights_id(self.base),
            "adapter": hashlib.sha256(weights.read_bytes()).hexdigest() if weights else "",
        }

    def _compressed_words(self) -> str:
        if self.compressed is None:
            return ""
        made = smaller.read_card(self.compressed)
        return f"{made['method']} at {made['bits_body']:.2f} bits, {made['bytes'] / 1e6:.1f} MB"

    def _calibration(self, tokenizer: models.ChatTokenizer) -> tuple[list[str], list[str]]:
        """Prompts with their answers, as drafting will see them: (of most sent mails, of those kept aside)."""
        pairs, config = self.pairs(), TrainConfig()
        if len(pairs) < 10:
            return [], []
        parts = dataset.split(pairs, config.heldout, config.validation)
        groups = (parts.train + parts.validation, parts.heldout[-40:])
        return tuple(
            [
                tokenizer.answered(e.chat, e.answer)
                for e in self._examples(group[-400:], tokenizer, config, training=False)
            ]
            for group in groups
        )

    def split(self, config: TrainConfig) -> dataset.Split:
        """The pairs by thread and time; UserError if there are too few to train on."""
        pairs = self.pairs()
        if len(pairs) < 10:
            raise UserError(
                f"There are {len(pairs)} playback pairs, and training needs 10: import more sent mail, then `panza playback`."
            )
        return dataset.split(pairs, config.heldout, config.validation)

    # Drafting

    def draft(
        self, request: DraftRequest, stopped: Callable[[], bool] = lambda: False, adapter: bool = True
    ) -> Iterator[Draft]:
        """Snapshots of a draft; the last has `done`."""
        check(request, self.store)
        retriever = self.retriever if self.store.count() else None
        if retriever and 0 < self.store.count() - retriever.count() <= FEW:
            retriever.update()
        return Writer(self.drafting_model(adapter), self.store, retriever, self.store.my_name).draft(request, stopped)

    def model(self, adapter: bool = True) -> models.TorchModel:
        """The base on torch, for many texts at once; with the trained adapter if there is one and it is asked for."""
        return self._kept("batch", adapter, lambda folder: models.load(self.base, folder, self._fetch))

    def drafting_model(self, adapter: bool = True) -> models.Model:
        """The model that writes one draft after the other."""

        small = self.compressed if adapter else None

        def load(folder: Path | None) -> models.Model:
            base, folder = (str(small), None) if small else (self.base, folder)
            kept = self.home.models / "gguf"
            model, self.why_not_native = models.load_for_drafts(base, folder, self._fetch, self.backend, kept)
            return model

        return self._kept("drafts", adapter, load, small)

    def _kept(self, use: str, adapter: bool, load: Callable[[Path | None], Any], small: Path | None = None) -> Any:
        """A model that stays in memory, alone, until another is wanted or its files change."""
        folder = (self.adapter or models.adapter_beside(self.base)) if adapter else None
        files = [folder, small and small / smaller.CARD]
        key = [(str(f), f.stat().st_mtime if f else 0.0) for f in files]
        if use not in self._models or self._models[use][0] != key:
            self._models.clear()
            self._models[use] = key, load(folder)
            self._remember_base()
        return self._models[use][1]

    def _remember_base(self) -> None:
        if self.base != self._remembered:
            write_json(self.home.settings, read_settings(self.home) | {"base": self.base})
            self._remembered = self.base

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter trained on this base, if there is one."""
        return self._adapter_folder if (self._adapter_folder / "adapter_model.safetensors").exists() else None

    @property
    def learnt(self) -> bool:
        """Whether there is an adapter, and the weights it was trained on are those that the base has now."""
        found = self.adapter and read_report(self.adapter).get("base_hash", "")
        return self.adapter is not None and found in ("", models.weights_id(self.base))

    @property
    def _adapter_folder(self) -> Path:
        return self.home.adapters / self._short_name

    @property
    def _short_name(self) -> str:
        """The base's name as a folder's."""
        name = models.base_id(self.base)
        short = re.sub(r"[^\w.-]+", "-", Path(name).name)
        return short if name == short else f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    @property
    def retriever(self) -> Retriever:
        """Search over the stored mail."""
        if self._retriever is None:
            self._retriever = Retriever(self.store, self.home.vectors)
        return self._retriever

    # Evaluation

    def evaluate(self, limit: int = 0, progress: Progress = silent) -> dict[str, Any]:
        """Base against adapter and two floors on the held-out pairs; the report is also kept in the home.

        limit: at most this many held-out pairs, drawn with a fixed seed; 0 for all.
        """
        from panza.evaluate import evaluate

        if self.adapter is None:
            raise UserError("There is no adapter to evaluate: `panza train` makes one.")
        trained = read_report(self.adapter)
        config = TrainConfig(**trained["config"])
        seen = {i: self._thread_of(i) for i in trained["trained_on"]}
        aside, seen_threads = set(trained["kept_aside"]), set(seen.values())
        pairs = self.pairs()
        held = [p for p in pairs if p.message.id in aside and p.message.thread not in seen_threads]
        if not held:
            raise UserError(
                f"None of the {len(aside)} mails that training kept aside can be used now: import more mail and `panza train` again."
            )
        gone = len(aside) - len(held)
        if limit and limit < len(held):
            held = [held[i] for i in sorted(random.Random(config.seed).sample(range(len(held)), limit))]
        training_pairs = [p for p in pairs if p.message.id in seen]
        systems = {name: self._system(name == "adapter", config, progress) for name in ("base", "adapter")}
        report = evaluate(held, training_pairs, systems) | {"kept_aside": len(aside), "no_longer_usable": gone}
        write_json(self.home.reports / "eval.json", report)
        return report

    def _thread_of(self, message_id: str) -> str:
        """The thread of a mail, its id if the mail is gone."""
        try:
            return self.store.get(message_id).thread
        except KeyError:
            return message_id

    def _system(
        self, adapter: bool, config: TrainConfig, progress: Progress
    ) -> Callable[[Sequence[PlaybackPair]], Any]:
        """A system under evaluation: greedy drafts and the loss of each reference, from the prompts of real drafting."""
        from panza.evaluate import SystemOutput

        def answer(pairs: Sequence[PlaybackPair]) -> SystemOutput:
            model = self.model(adapter)
            examples = self._examples(pairs, model.chat_tokenizer, config, False)
            texts = [""] * len(examples)
            done = 0
            for i, text in models.generate_batch(model, [e.chat for e in examples], models.Sampling()):
                texts[i] = text
                done += 1
                progress(done, len(examples), f"drafting with the {'adapter' if adapter else 'base'}")
            rows = train.losses(model.net, dataset.encode(examples, model.chat_tokenizer, config.most_tokens))
            return SystemOutput(texts, [nll for nll, _ in rows], [n for _, n in rows])

        return answer

    def _examples(
        self,
        pairs: Sequence[PlaybackPair],
        tokenizer: models.ChatTokenizer,
        config: TrainConfig,
        training: bool,
        kept_aside: frozenset[str] = frozenset(),
    ) -> list[dataset.Example]:
        """Prompts with answers: with the chances of `config` for training, else as drafting makes them."""
        return dataset.build(
            pairs,
            self.store,
            self.retriever,
            tokenizer,
            sender=self.store.my_name,
            most_tokens=config.most_tokens,
            raft=config.raft if training else 1.0,
            lengths=config.lengths if training else 0.0,
            seed=config.seed,
            kept_aside=kept_aside,
        )


def _absolute(base: str) -> str:
    """A directory or GGUF file by its full path, so that it is found from anywhere; a hub name as it is."""
    path = Path(base).expanduser()
    return str(path.resolve()) if base and (path.is_dir() or models.is_gguf(base)) else base
