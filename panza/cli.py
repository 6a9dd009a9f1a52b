"""panza VERB: one command per stage. Knows flags and the terminal; the work is in panza.assistant."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from panza.assistant import Assistant
from panza.home import open_home, shipped
from panza.measure import MeasureConfig
from panza.playback import PlaybackConfig
from panza.smaller import CompressConfig
from panza.train import TrainConfig
from panza.types import DraftRequest, UserError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Drafts your mail in your voice, on your own computer."
)
err = Console(stderr=True)

Home = Annotated[Path | None, typer.Option("--home", help="Folder that holds everything; $PANZA_HOME otherwise.")]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Hugging Face directory, hub name, or .gguf file to draft with; '' for the embedded model. Remembered.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="What runs drafts: native (Panza's own kernels), torch, llama.cpp, or auto: native for the models it knows."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

SAMPLE = shipped("sample")


def main() -> None:
    """Run a verb; a user's mistake is one sentence and exit status 1, wrong usage exit status 2."""
    try:
        app(standalone_mode=False)
    except UserError as error:
        fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        fail("Stopped. What was done is kept; the same command goes on from there.")
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):
            error.show()  # wrong usage: says what was wrong and names the help
            sys.exit(2)
        if os.environ.get("PANZA_DEBUG"):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]  # never the message: it may quote mail
        fail(
            f"Panza failed: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}. PANZA_DEBUG=1 shows more."
        )


def fail(sentence: str) -> None:
    """One sentence to standard error, exit status 1."""
    err.print(sentence, style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)


def flags(config: type, **given: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb one flag per field of a config dataclass; the verb gets the built object as `config`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.name != "config"]
        made = [
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=f.default,
                annotation=Annotated[type(f.default), typer.Option(help=f.metadata.get("help", ""))],
            )
            for f in fields(config)
            if f.default is not MISSING
        ]

        def run(**values: Any) -> None:
            verb(config=config(**{p.name: values.pop(p.name) for p in made}), **values)

        run.__name__, run.__doc__ = verb.__name__, verb.__doc__
        run.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in own] + made)  # type: ignore[attr-defined]
        return run

    return decorate


@app.command(name="import")
def import_(
    paths: Annotated[
        list[Path], typer.Argument(help="mbox files, Maildir folders, .eml files or folders of them.")
    ] = [],  # noqa: B006
    me: Annotated[list[str], typer.Option("--me", help="Your own address; give each one you have sent from.")] = [],  # noqa: B006
    not_me: Annotated[list[str], typer.Option("--not-me", help="An address that is not yours after all.")] = [],  # noqa: B006
    dropped: Annotated[str, typer.Option("--dropped", help="List the mails that were not used for this reason.")] = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Read mailboxes into Panza's own store. A second import adds only what is new."""
    panza = Assistant(open_home(home))
    panza.store.drop_me(not_me)
    numbers: dict[str, Any] = {}
    text = ""
    if paths or not (dropped or not_me):
        with bar() as progress:
            report = panza.import_mail(paths, me, progress)
        numbers = asdict(report)
        text = f"{report.added} new mails of {report.seen}, {report.sent_by_me} sent by you."
        if report.candidates:
            text += f" None is by you; most are by {', '.join(report.candidates)}: give yours with --me."
    if dropped:
        reasons = panza.store.dropped()
        if dropped not in reasons:
            raise UserError(f"No mail was dropped for '{dropped}': the reasons are {', '.join(reasons) or 'none yet'}.")
        numbers["items"] = [{"mail": where, "detail": detail} for where, detail in panza.store.dropped_items(dropped)]
        text += "\n".join(f"{item['mail']}  {item['detail']}" for item in numbers["items"])
    show(numbers, as_json, text or f"Your addresses: {', '.join(sorted(panza.store.me)) or 'none'}.")


@app.command()
@flags(PlaybackConfig)
def playback(
    config: PlaybackConfig,
    show_pairs: Annotated[int, typer.Option("--show", help="Show this many of the pairs and stop.")] = 0,
    again: Annotated[
        bool, typer.Option("--again", help="Start over; the old pairs are kept as playback.jsonl.old.")
    ] = False,
    home: Home = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Turn each sent mail into the instruction that would have led to it."""
    started = time.monotonic()
    panza = Assistant(open_home(home), base)
    if show_pairs:
        pairs = panza.pairs()[-show_pairs:]
        rows = [
            {"message_id": p.message.id, "how": p.how, "instruction": p.instruction, "mail": p.message.body}
            for p in pairs
        ]
        show({"pairs": rows}, as_json, "\n\n".join(f"[{r['how']}] {r['instruction']}\n{r['mail']}" for r in rows))
        return
    if again:
        panza.forget_playback()
    with bar() as progress:
        report = panza.play_back(config, progress)
    numbers = asdict(report) | {"seconds": round(time.monotonic() - started, 2), "file": str(panza.home.playback)}
    show(numbers, as_json, f"{report.pairs} pairs in {panza.home.playback}; it is yours to edit.")


@app.command()
@flags(TrainConfig)
def train(
    config: TrainConfig,
    method: Annotated[str, typer.Option(help="Fine-tuning method: lora.")] = "lora",
    home: Home = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune an adapter on the playback pairs."""
    if method != "lora":
        raise UserError(f"'{method}' is no training method: choose lora.")
    with bar() as progress:
        report = Assistant(open_home(home), base).train(config, progress)
    report = {key: value for key, value in report.items() if key not in ("trained_on", "kept_aside")}
    text = f"Learnt from {report['pairs']} mails in {report['seconds']:.0f} s; "
    if report["heldout"]:
        text += f"loss on {report['heldout']} held-out mails {report['loss_before']:.3f} → {report['loss_after']:.3f}."
    else:
        text += "too few mails to keep some aside and measure."
    show(report, as_json, text)


@app.command()
@flags(CompressConfig)
def compress(
    config: CompressConfig,
    undo: Annotated[bool, typer.Option("--undo", help="Draft with the whole model again.")] = False,
    home: Home = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Make the base and what was learnt one smaller model, calibrated on your mail; it drafts from then on."""
    panza = Assistant(open_home(home), base)
    if undo:
        panza.forget_compressed()
        show({"compressed": ""}, as_json, "Drafts run on the whole model again.")
        return
    made = panza.compress(config)
    text = f"{made['out']}: {made['bytes'] / 1e6:.1f} MB, {made['bits_body']:.2f} bits a weight of its layers."
    if made["perplexity"]:
        text += f" Perplexity on mail kept aside {made['perplexity_before']:.2f} → {made['perplexity']:.2f}."
    show(made, as_json, text)


@app.command()
def index(home: Home = None, as_json: AsJson = False) -> None:
    """Make all imported mail searchable by meaning. Training does it too; new mail is found by its words until then."""
    panza = Assistant(open_home(home))
    with bar() as progress:
        added = panza.index(progress)
    total = panza.retriever.count()
    show({"added": added, "indexed": total}, as_json, f"{added} mails added, {total} searchable by meaning.")


@app.command()
def draft(
    instruction: Annotated[str, typer.Argument(help="What the mail should say; '-' reads it from standard input.")],
    to: Annotated[str, typer.Option(help="Name, address, or 'Name <address>'.")] = "",
    reply_to: Annotated[str, typer.Option(help="Message-ID of the mail to answer; `panza inbox` lists them.")] = "",
    subject: Annotated[str, typer.Option(help="Subject; else the thread's, else one is written.")] = "",
    length: Annotated[str, typer.Option(help="very short, short, medium or long.")] = "",
    seed: Annotated[int | None, typer.Option(help="Sample with this seed; without one the draft is greedy.")] = None,
    adapter: Annotated[bool, typer.Option(help="Use what was learnt; --no-adapter drafts with the base.")] = True,
    backend: Backend = "auto",
    home: Home = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Draft a mail; it is streamed to standard output. Nothing is sent."""
    text = sys.stdin.read() if instruction == "-" else instruction
    panza = Assistant(open_home(home), base, backend)
    shown, last = "", None
    for last in panza.draft(DraftRequest(text, to, reply_to, subject, length, seed), adapter=adapter):
        if not as_json:
            print(last.text[len(shown) :], end="", flush=True)
            shown = last.text
    keys = ("text", "subject", "sources", "tokens", "seconds", "first_token_seconds")
    if as_json:
        print(json.dumps({k: getattr(last, k) for k in keys}, ensure_ascii=False))
        return
    print()
    err.print(f"\nSubject: {last.subject}", style="dim", markup=False, highlight=False)
    why = f": {panza.why_not_native}" if panza.why_not_native else ""
    drafted_on = panza.drafting_model(adapter).backend
    err.print(f"Drafted on the {drafted_on} backend{why}.", style="dim", markup=False, highlight=False)
    for source in last.sources:
        m = panza.message(source)
        err.print(
            f"Source: {m.sender.label}, {m.subject or 'no subject'} <{m.id}>",
            style="dim",
            markup=False,
            highlight=False,
        )


@app.command()
def inbox(
    query: Annotated[str, typer.Argument(help="Words to look for; the newest mails without them.")] = "",
    limit: Annotated[int, typer.Option(help="At most this many.")] = 20,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List received mails with the Message-IDs that --reply-to takes."""
    mails = Assistant(open_home(home)).inbox(query, limit)
    rows = [{"id": m.id, "date": m.date, "from": m.sender.label, "subject": m.subject} for m in mails]
    if as_json:
        print(json.dumps({"mails": rows}, ensure_ascii=False))
        return
    for m in mails:
        when = datetime.fromtimestamp(m.date).strftime("%d %b %Y") if m.date else "no date"
        print(f"{when}  {m.sender.label}: {m.subject or 'no subject'}\n             {m.id}")


@app.command(name="eval")
def eval_(
    limit: Annotated[int, typer.Option(help="At most this many held-out mails; 0 for all.")] = 0,
    home: Home = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Base against adapter and two floors, on mails that training never saw."""
    from panza.evaluate import table

    with bar() as progress:
        report = Assistant(open_home(home), base).evaluate(limit, progress)
    show(report, as_json, table(report))


@app.command()
@flags(MeasureConfig)
def measure(
    config: MeasureConfig,
    mail: Annotated[
        Path, typer.Option(help="JSONL file: 'from', 'to', 'subject', 'text' and perhaps 'quoted' a line.")
    ],
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter to put on the base.")] = None,
    base: Annotated[str, typer.Option(help="Hugging Face directory or hub name; '' for the embedded model.")] = "",
    as_json: AsJson = False,
) -> None:
    """What a model is worth on mail it has not seen: bits per byte, facts kept, drafts that end, personal data."""
    from panza import models
    from panza.measure import left_out, read_mails, table
    from panza.measure import measure as run

    mails, malformed = read_mails(mail, config.cleaned)
    if malformed:
        err.print(left_out(malformed), soft_wrap=True, highlight=False)
    model = models.load(base, adapter, fetch=bool(base))
    with bar() as progress:
        measures = run(model, mails, config, progress)
    show(asdict(measures), as_json, table(measures))


@app.command()
def status(home: Home = None, as_json: AsJson = False) -> None:
    """What Panza has of you: mails, pairs, model, adapter."""
    panza = Assistant(open_home(home))
    state = asdict(panza.status()) | {"home": str(panza.home.root)}
    words = {name: ", ".join(value) if name == "me" else value for name, value in state.items()}
    show(state, as_json, "\n".join(f"{name:8} {value}" for name, value in words.items() if value != ""))


@app.command()
def doctor(backend: Backend = "auto", home: Home = None, base: Base = None, as_json: AsJson = False) -> None:
    """What this computer gives a draft: instruction set, threads, memory, tokens a second, and what limits them."""
    from panza.doctor import examine

    panza = Assistant(open_home(home), base, backend)
    report = examine(panza.drafting_model(), panza.why_not_native)
    show(asdict(report) | {"limited_by": report.limited_by}, as_json, report.sentences())


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; the next free one if it is taken.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    backend: Backend = "auto",
    home: Home = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Open the page on 127.0.0.1."""
    open_page(Assistant(open_home(home), base, backend), port, open_browser, as_json)


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    page: Annotated[bool, typer.Option(help="Open the page at the end.")] = True,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Everything with the sample mailbox: import, playback, training, page. What is done already is not done again.

    It has a home of its own, the folder `sample` in yours, so that its mail never mixes with your own.
    """
    panza = Assistant(open_home(open_home(home).root / "sample"), "")
    if not panza.store.count():
        step("Importing the sample mailbox")
        with bar() as progress:
            panza.import_mail([SAMPLE / "mail.mbox"], sample_addresses(), progress)
    if not panza.learnt:
        step("Learning to write like its author (some minutes; Ctrl-C stops, the next start goes on)")
        with bar() as progress:
            panza.learn(progress)
    if page:
        open_page(panza, port, open_browser, as_json)
    else:
        show(asdict(panza.status()), as_json, f"Ready in {panza.home.root}.")


def open_page(panza: Assistant, port: int, open_browser: bool, as_json: bool) -> None:
    """Serve until Ctrl-C; the link goes to standard output."""
    from panza.web import serve

    if as_json:
        serve(panza, port, open_browser, lambda text: print(json.dumps({"url": text.split()[3]}), flush=True))
    else:
        serve(panza, port, open_browser)


def sample_addresses() -> list[str]:
    """The own addresses of data/sample's invented author."""
    return json.loads((SAMPLE / "author.json").read_text(encoding="utf-8"))["addresses"]


def step(text: str) -> None:
    err.print(text, style="bold")


def show(value: dict[str, Any], as_json: bool, text: str) -> None:
    """One JSON object, or `text`, to standard output."""
    print(json.dumps(value, ensure_ascii=False) if as_json else text)


class Rate(ProgressColumn):
    """Items a second; megabytes where the total is too large to count items."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0
        return Text(f"{speed / 1e6:.1f} MB/s" if (task.total or 0) > 1e5 else f"{speed:.1f}/s")


class bar:
    """A progress bar on standard error: what is done, how fast, how long still. Each total is a bar of its own."""

    def __enter__(self) -> Callable[[int, int, str], None]:
        columns = (BarColumn(24), TaskProgressColumn(), Rate(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(TextColumn("{task.description}"), *columns, console=err)
        self.bar.start()
        self.task: Any = None
        self.last = (0, 0)
        return self.report

    def report(self, done: int, total: int, note: str = "") -> None:
        if self.task is None or total != self.last[1] or done < self.last[0]:
            self.task = self.bar.add_task(note, total=total or None)
        self.last = (done, total)
        self.bar.update(self.task, completed=done, description=note)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


if __name__ == "__main__":
    main()
