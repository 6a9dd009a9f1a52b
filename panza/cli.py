"""panza VERB: one command per stage. Knows flags and the terminal; the work is in panza.assistant."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from panza.assistant import Assistant
from panza.home import open_home
from panza.playback import PlaybackConfig
from panza.train import TrainConfig
from panza.types import DraftRequest, UserError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Drafts your mail in your voice, on your own computer."
)
err = Console(stderr=True)

Home = Annotated[Path | None, typer.Option("--home", help="Folder that holds everything; $PANZA_HOME otherwise.")]
Base = Annotated[
    str | None,
    typer.Option("--base", help="Hugging Face directory or hub name; '' for the embedded model. Remembered."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"


def main() -> None:
    """Run a verb; a user's mistake is one sentence and exit status 1."""
    try:
        app(standalone_mode=False)
    except UserError as error:
        fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        fail("Stopped. The same command goes on where it was.")
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            error.show()  # wrong usage: says what was wrong and names the help
            sys.exit(2)
        raise


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
    paths: Annotated[list[Path], typer.Argument(help="mbox files, Maildir folders, .eml files or folders of them.")],
    me: Annotated[list[str], typer.Option("--me", help="Your own address; give each one you have sent from.")] = [],  # noqa: B006
    dropped: Annotated[str, typer.Option("--dropped", help="List the mails that were not used for this reason.")] = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Read mailboxes into Panza's own store. A second import adds only what is new."""
    panza = Assistant(open_home(home))
    with bar() as progress:
        report = panza.import_mail(paths, me, progress)
    if dropped:
        for where, detail in panza.store.dropped_items(dropped):
            err.print(f"{where}  {detail}", markup=False, highlight=False, soft_wrap=True)
    show(asdict(report), as_json, f"{report.added} new mails of {report.seen}, {report.sent_by_me} sent by you.")


@app.command()
@flags(PlaybackConfig)
def playback(
    config: PlaybackConfig,
    show_pairs: Annotated[int, typer.Option("--show", help="Show this many of the pairs and stop.")] = 0,
    home: Home = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Turn each sent mail into the instruction that would have led to it."""
    import time

    started = time.monotonic()
    panza = Assistant(open_home(home), base)
    if show_pairs:
        for pair in panza.pairs()[-show_pairs:]:
            err.print(f"[{pair.how}] {pair.instruction}", style="bold", markup=False)
            err.print(pair.message.body + "\n", markup=False, highlight=False)
        return
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
    report.pop("trained_on")
    show(
        report,
        as_json,
        f"Learnt from {report['pairs']} mails in {report['seconds']:.0f} s; loss on {report['heldout']} held-out mails "
        f"{report['loss_before']:.3f} → {report['loss_after']:.3f}.",
    )


@app.command()
def draft(
    instruction: Annotated[str, typer.Argument(help="What the mail should say; '-' reads it from standard input.")],
    to: Annotated[str, typer.Option(help="Name, address, or 'Name <address>'.")] = "",
    reply_to: Annotated[str, typer.Option(help="Message-ID of the mail to answer; `panza inbox` lists them.")] = "",
    subject: Annotated[str, typer.Option(help="Subject; else the thread's, else one is written.")] = "",
    length: Annotated[str, typer.Option(help="very short, short, medium or long.")] = "",
    seed: Annotated[int | None, typer.Option(help="Sample with this seed; without one the draft is greedy.")] = None,
    adapter: Annotated[bool, typer.Option(help="Use what was learnt; --no-adapter drafts with the base.")] = True,
    home: Home = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Draft a mail; it is streamed to standard output. Nothing is sent."""
    text = sys.stdin.read() if instruction == "-" else instruction
    panza = Assistant(open_home(home), base)
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
def status(home: Home = None, as_json: AsJson = False) -> None:
    """What Panza has of you: mails, pairs, model, adapter."""
    panza = Assistant(open_home(home))
    state = asdict(panza.status()) | {"home": str(panza.home.root)}
    words = {name: ", ".join(value) if name == "me" else value for name, value in state.items()}
    show(state, as_json, "\n".join(f"{name:8} {value}" for name, value in words.items() if value != ""))


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; the next free one if it is taken.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    home: Home = None,
    base: Base = None,
) -> None:
    """Open the page on 127.0.0.1."""
    from panza.web import serve

    serve(Assistant(open_home(home), base), port=port, open_browser=open_browser)


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    page: Annotated[bool, typer.Option(help="Open the page at the end.")] = True,
    home: Home = None,
) -> None:
    """Everything with the sample mailbox: import, playback, training, page. What is done already is not done again."""
    panza = Assistant(open_home(home))
    if not panza.store.count():
        step("Importing the sample mailbox")
        with bar() as progress:
            panza.import_mail([SAMPLE / "mail.mbox"], sample_addresses(), progress)
    if panza.adapter is None:
        step("Learning to write like its author (a few minutes; Ctrl-C stops, the next start goes on)")
        with bar() as progress:
            panza.learn(progress)
    if page:
        from panza.web import serve

        serve(panza, port=port, open_browser=open_browser)


def sample_addresses() -> list[str]:
    """The own addresses of data/sample's invented author."""
    return json.loads((SAMPLE / "author.json").read_text(encoding="utf-8"))["addresses"]


def step(text: str) -> None:
    err.print(text, style="bold")


def show(value: dict[str, Any], as_json: bool, text: str) -> None:
    """One JSON object, or `text`, to standard output."""
    print(json.dumps(value, ensure_ascii=False) if as_json else text)


class bar:
    """A progress bar on standard error whose text says what is done, with rate and time left."""

    def __enter__(self) -> Callable[[int, int, str], None]:
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=err, transient=False,
        )  # fmt: skip
        self.bar.start()
        self.task: Any = None
        self.phase = ""
        return self.report

    def report(self, done: int, total: int, note: str = "") -> None:
        phase = note.split(",")[0].split(":")[0].split(" 1/")[0]
        phase = "epoch" if phase.startswith("epoch") else phase
        if self.task is None or phase != self.phase:
            self.task, self.phase = self.bar.add_task(note, total=total or None), phase
        self.bar.update(self.task, completed=done, total=total or None, description=note)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


if __name__ == "__main__":
    main()
