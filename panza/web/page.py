"""The page in Gradio: which parts there are and what each of them does. Knows the desk; draws nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from panza.types import UserError
from panza.web import view
from panza.web.desk import CHANGES, DRAFT, IMPORT, LEARN, Desk
from panza.web.work import Work

HEAD = (
    '<link rel="stylesheet" href="panza.css"><script src="panza.js" defer></script>'
    '<meta name="color-scheme" content="light dark">'
)
# Every event: no public API, no overlay over the text, and nobody waits for another tab's stream.
EVENT = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}

Changes = dict[gr.components.Component, Any]  # component -> its new value or settings

IMPORT_WORDS = """<h2>Bring in your mail</h2>
<p>Panza reads it where it lies and keeps a copy of its own on this computer. The original is never changed.</p>"""
LEARN_WORDS = """<h2>Let Panza learn your voice</h2>
<p>It turns each mail you sent into an instruction, then trains a small adapter on your words. You can stop at any time
and go on later.</p>"""
WHERE = """
<details class="where"><summary>Where do I find my mail?</summary><ul>
<li><b>Gmail</b>: takeout.google.com, choose Mail; unpack it and name the .mbox file.</li>
<li><b>Thunderbird</b>: Help, Troubleshooting Information, Profile Folder; in it Mail or ImapMail: the files without
an ending.</li>
<li><b>Apple Mail</b>: choose the Sent mailbox, then Mailbox, Export Mailbox.</li>
<li><b>Others</b>: a Maildir, or a folder of .eml files.</li>
</ul></details>
"""


def theme() -> gr.themes.Base:
    """A typeface that Gradio carries with it, in the two weights that hold every letter; the look is in panza.css."""
    return gr.themes.Base(font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"])


def build(assistant: Any) -> gr.Blocks:
    """The whole page over one assistant."""
    desk = Desk(assistant)
    with gr.Blocks(title="Panza", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
        gr.HTML(view.header(), elem_id="top")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Write"):
                writing = Writing(desk)
            with gr.Tab("Your mail"):
                mailbox = Mailbox(desk)
        writing.wire(page)
        mailbox.wire(page, writing)
    return page


class Writing:
    """The tab with the three panes: what there is, what to answer, what to say."""

    def __init__(self, desk: Desk):
        self.desk = desk
        with gr.Row(elem_id="desk"):
            with gr.Column(elem_id="side", min_width=240):
                self._side()
            with gr.Column(elem_id="reading", min_width=280):
                self.mail = gr.HTML(elem_id="mail")
            with gr.Column(elem_id="writing", min_width=320):
                self._writing()
        self.around = [self.status, self.picker, self.mail]
        self.fields = {"instruction": self.instruction, "to": self.to, "subject": self.subject, "text": self.text}
        self._looked_at: tuple[tuple[str, ...], str] = (), ""
        self.written = [self.subject, self.text, self.facts, self.sources, self.notice, self.bring_back, self.stop]
        self.written += self.changes.values()

    def _side(self) -> None:
        self.status = gr.HTML(elem_id="status")
        self.search = gr.Textbox(label="Answer a mail", placeholder="Search received mail", elem_id="search")
        self.picker = gr.Radio([view.NEW_MAIL], value="", label="Received mail", elem_id="picker", show_label=False)

    def _writing(self) -> None:
        self.instruction = gr.Textbox(
            label="What should it say?",
            placeholder="tell Anna the review moves to Thursday 3pm",
            lines=2,
            max_lines=6,
            elem_id="instruction",
            autofocus=True,
        )
        with gr.Row(elem_id="envelope"):
            self.to = gr.Textbox(label="To", placeholder="a name or an address", elem_id="to", min_width=120)
            self.subject = gr.Textbox(
                label="Subject", placeholder="Panza suggests one", elem_id="subject", min_width=120
            )
        with gr.Row(elem_id="buttons"):
            self.changes = {name: gr.Button(name, elem_id=name.lower(), min_width=60) for name in CHANGES}
            self.stop = gr.Button("Stop", elem_id="stop", min_width=60, visible=False)
            self.bring_back = gr.Button("Bring back", elem_id="bring-back", min_width=60, visible=False)
        self.notice = gr.HTML(elem_id="notice")
        self.text = gr.Textbox(
            label="Draft",
            placeholder="The draft appears here, word by word. You can edit every word of it.",
            lines=11,
            max_lines=60,
            elem_id="text",
            buttons=["copy"],
            autoscroll=False,
        )
        self.facts = gr.HTML(elem_id="facts")
        self.sources = gr.HTML(elem_id="sources")

    def wire(self, page: gr.Blocks) -> None:
        """Say what happens when."""
        fields = list(self.fields.values())
        page.load(self.typed, None, fields, **EVENT)
        page.load(self.restore, None, [*self.around, *self.written], **EVENT)
        self.search.change(self.find, self.search, self.picker, trigger_mode="always_last", **EVENT)
        # preprocess=False: Gradio would refuse a mail that a search took out of the list while it was being clicked
        opened = [self.mail, self.to, self.subject, self.notice]
        self.picker.input(self.pick, self.picker, opened, preprocess=False, trigger_mode="always_last", **EVENT)
        for name, field in self.fields.items():
            typed = [field.input, field.blur]  # Gradio misses some inputs (a paste right after an output); blur has all
            gr.on(typed, partial(self.keep, name), field, None, trigger_mode="always_last", **EVENT)
        for name, button in self.changes.items():
            button.click(partial(self.write, CHANGES[name]), fields, self.written, **EVENT)
        self.stop.click(self.desk.stop, None, None, queue=False, **EVENT)
        self.bring_back.click(self.swap, fields, self.text, **EVENT)

    def keep(self, name: str, value: str) -> None:
        """Remember one field."""
        self.desk.keep(**{name: value})

    def surroundings(self) -> Changes:
        """Status, the picker's list and the open mail, as they are now."""
        status = self.desk.assistant.status()
        return {self.status: view.status(status), self.mail: self.opened(status.mails), self.picker: self.find("")}

    def opened(self, mails: int) -> str:
        """The middle pane."""
        conversation = self.desk.conversation()
        return view.letter(*conversation) if conversation else view.nothing_chosen(mails)

    def typed(self) -> Changes:
        """What the user typed before a reload. An empty field is let be: by now it may hold the user's next words."""
        kept = {field: getattr(self.desk.letter, name) for name, field in self.fields.items()}
        return {field: value or gr.skip() for field, value in kept.items()}

    def restore(self) -> Iterator[Changes]:
        """The rest of the desk, and the draft that is being written right now, if any."""
        around = self.surroundings()
        around[self.picker]["value"] = self.desk.letter.reply_to
        yield {**around, **self.written_so_far()}
        if self.desk.running(DRAFT):
            yield from self.follow(self.desk.last[DRAFT])

    def find(self, query: str) -> dict[str, Any]:
        """The picker's list: the mails that `query` finds. Which one is chosen is left to the user's last click."""
        return gr.update(choices=[view.NEW_MAIL, *map(view.choice, self.desk.found(query))])

    def pick(self, message_id: str) -> Changes:
        """Open a mail to answer."""
        try:
            self.desk.pick(message_id)
        except UserError as mistake:
            return {self.notice: view.notice(str(mistake))}
        letter, mail = self.desk.letter, self.opened(self.desk.assistant.status().mails)
        return {self.mail: mail, self.to: letter.to, self.subject: letter.subject, self.notice: ""}

    def write(self, change: Callable, *fields: str) -> Iterator[Changes]:
        """Stream a new draft."""
        self.desk.keep(**dict(zip(self.fields, fields, strict=True)))
        try:
            work = self.desk.write(change)
        except UserError as mistake:
            yield {self.notice: view.notice(str(mistake))}
            return
        yield from self.follow(work)

    def follow(self, work: Work) -> Iterator[Changes]:
        """Show a draft while it grows. Each yield is whole, for the browser skips one when two come at once."""
        yield self.written_so_far()
        for _ in work.follow():
            yield self.written_so_far()
        yield {**self.written_so_far(), self.subject: self.desk.letter.subject}

    def written_so_far(self) -> Changes:
        """The right pane as it is now; while Panza writes, Stop is all that can be pressed."""
        desk, writing, work = self.desk, self.desk.running(DRAFT), self.desk.last.get(DRAFT)
        drafted = bool(desk.draft) and not writing
        buttons = {b: gr.update(visible=drafted) for b in self.changes.values()}
        return buttons | {
            self.changes["Draft"]: gr.update(visible=not writing),
            self.stop: gr.update(visible=writing),
            self.bring_back: gr.update(visible=not writing and bool(desk.before.strip())),
            self.text: gr.update(value=desk.letter.text, interactive=not writing),
            self.facts: view.facts(desk.draft, writing, bool(work) and work.stopped.is_set()),
            self.sources: self.looked_at(desk.draft.sources if desk.draft else ()),
            self.notice: view.notice(work.error if work and work.ended else ""),
        }

    def looked_at(self, ids: tuple[str, ...]) -> str:
        """The sources of a draft; made once, not at every token."""
        if ids != self._looked_at[0]:
            self._looked_at = ids, view.sources(map(self.desk.assistant.message, ids))
        return self._looked_at[1]

    def swap(self, *fields: str) -> str:
        """Bring back the text before the newest draft."""
        self.desk.keep(**dict(zip(self.fields, fields, strict=True)))
        self.desk.swap()
        return self.desk.letter.text


class Mailbox:
    """The tab where mail comes in and the voice is learnt."""

    def __init__(self, desk: Desk):
        self.desk = desk
        with gr.Row(elem_id="mailbox"):
            with gr.Column(elem_classes="card"):
                gr.HTML(IMPORT_WORDS)
                self.paths = gr.Textbox(
                    label="Files or folders on this computer, one a line",
                    placeholder="~/Downloads/Takeout/Mail/Sent.mbox",
                    lines=2,
                    elem_id="paths",
                )
                self.me = gr.Textbox(label="Your own addresses", placeholder="you@example.org", elem_id="me")
                self.bringing_in = Job(desk, IMPORT, "Import", view.imported)
                gr.HTML(WHERE)
            with gr.Column(elem_classes="card"):
                gr.HTML(LEARN_WORDS)
                self.learning = Job(desk, LEARN, "Learn my voice", view.learnt)

    def wire(self, page: gr.Blocks, writing: Writing) -> None:
        """Say what happens when. New mail and a new voice show on the writing tab at once."""
        page.load(self.addresses, None, self.me, **EVENT)
        self.bringing_in.wire(page, self.desk.bring_in, [self.paths, self.me], writing)
        self.learning.wire(page, self.desk.learn, [], writing)

    def addresses(self) -> str | dict[str, Any]:
        """The user's own addresses, once Panza knows them."""
        return ", ".join(self.desk.assistant.status().me) or gr.skip()


class Job:
    """A piece of work that the user starts: its button, its progress, its report."""

    def __init__(self, desk: Desk, name: str, verb: str, report: Callable[[Any], str]):
        self.desk, self.name, self.report = desk, name, report
        word = verb.split()[0].lower()
        self.button = gr.Button(verb, elem_id=word, variant="primary")
        self.stop = gr.Button("Stop", elem_id=f"{word}-stop", visible=False)
        self.shown = gr.HTML(elem_id=f"{word}-progress")

    def wire(self, page: gr.Blocks, start: Callable[..., Work], inputs: list, writing: Writing) -> None:
        """start: begins the work from the values of `inputs`."""
        own = [self.button, self.stop, self.shown]
        self.button.click(partial(self.begin, start, writing), inputs, [*own, *writing.around], **EVENT)
        self.stop.click(self.halt, None, self.shown, queue=False, **EVENT)
        page.load(partial(self.restore, writing), None, [*own, *writing.around], **EVENT)

    def begin(self, start: Callable[..., Work], writing: Writing, *inputs: str) -> Iterator[Changes]:
        """Start, then show how it goes."""
        try:
            work = start(*inputs)
        except UserError as mistake:
            yield {self.shown: view.notice(str(mistake))}
            return
        yield from self.follow(work, writing)

    def restore(self, writing: Writing) -> Iterator[Changes]:
        """The work as it is now, on a page that was just opened."""
        yield self.state()
        if self.desk.running(self.name):
            yield from self.follow(self.desk.last[self.name], writing)

    def follow(self, work: Work, writing: Writing) -> Iterator[Changes]:
        """Show the progress until the end, then the report and what it changed elsewhere."""
        yield self.state()
        for _ in work.follow(every=0.2):
            yield self.state()
        yield {**self.state(), **writing.surroundings()}

    def halt(self) -> str:
        """Stop at the next step."""
        self.desk.stop()
        return view.progress(self.desk.last[self.name])

    def state(self) -> Changes:
        """Button, progress or report as they are now."""
        work, running = self.desk.last.get(self.name), self.desk.running(self.name)
        shown = "" if work is None else view.progress(work) if running else self._ended(work)
        return {self.button: gr.update(visible=not running), self.stop: gr.update(visible=running), self.shown: shown}

    def _ended(self, work: Work) -> str:
        return view.notice(work.error) if work.error else self.report(work.result)
