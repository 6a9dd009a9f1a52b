"""The page in Gradio: which parts there are and what each of them does. Knows the desk; draws nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from typing import Any

import gradio as gr

from panza.types import UserError
from panza.web import view
from panza.web.desk import CHANGES, DRAFT, IMPORT, LEARN, Desk
from panza.web.work import Work

SCRIPT = (resources.files("panza.web") / "assets" / "panza.js").read_text()  # inline: here before the first event
HEAD = (
    f'<link rel="stylesheet" href="panza.css"><script>{SCRIPT}</script><meta name="color-scheme" content="light dark">'
)
# Every event: no public API, no overlay over the text. What is done at once is done and answered in the order in which
# it was asked; nobody waits for a stream. A stream's last value comes twice, so nothing there may undo what a user does.
EVENT = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE = {**EVENT, "concurrency_id": "desk", "concurrency_limit": 1}
STREAM = {**EVENT, "concurrency_limit": None, "trigger_mode": "multiple"}
LETTER = ("instruction", "to", "subject", "text")  # the fields, as in `Letter` and in panza.js

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
        self.fields = {name: getattr(self, name) for name in LETTER}
        # To the server: the browser's question; back: the words that answer it. One for each chain of events, for one
        # chain may begin while another still goes on.
        self.offer, self.offer_restored, self.offer_drafted = (gr.JSON(visible=False) for _ in range(3))
        self._looked_at: tuple[tuple[str, ...], str] = (), ""
        self.written = [self.text, self.facts, self.sources, self.notice, self.bring_back, self.stop]
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
        """Say what happens when. The browser asks for words with a number, so that a late answer can be told."""
        fields, ask = [*self.fields.values()], "(query) => [query, 0]"
        asked, told = [self.search, self.offer_restored], [*self.around, *self.written, self.offer_restored]
        self._answer(page.load(self.restore, asked, told, js=ask, **AT_ONCE), self.offer_restored)
        self.search.change(self.find, self.search, self.picker, trigger_mode="always_last", **AT_ONCE)
        # preprocess=False: Gradio would refuse a mail that a search took out of the list while it was being clicked
        opened, mode = [self.mail, self.notice, self.offer], {"preprocess": False, "trigger_mode": "always_last"}
        ask = "(mail) => [mail, panza.ask('to', 'subject')]"
        picked = self.picker.input(self.pick, [self.picker, self.offer], opened, js=ask, **mode, **AT_ONCE)
        land(picked, self.offer, self.fields)
        for name, field in self.fields.items():
            typed = [field.input, field.blur]  # Gradio misses some inputs (a paste right after an output); blur has all
            tell = f"(words) => panza.tell([words], ['{name}'])"
            gr.on(typed, partial(self.keep, name), field, None, trigger_mode="multiple", js=tell, **AT_ONCE)
        for name, button in self.changes.items():
            locked = [self.text, *self.changes.values()]
            button.click(None, fields, locked, js=f"(...words) => panza.lock(words, {len(locked)})", **EVENT)
            write, ask = partial(self.write, CHANGES[name]), "() => [...panza.locked(), panza.ask('subject')]"
            asked, told = [*fields, self.offer_drafted], [*self.written, self.offer_drafted]
            self._answer(button.click(write, asked, told, js=ask, **AT_ONCE), self.offer_drafted)
        self.stop.click(self.desk.stop, None, None, queue=False, **EVENT)
        ask = "(...words) => [...panza.tell(words), panza.ask('text')]"
        swapped = self.bring_back.click(self.swap, [*fields, self.offer], self.offer, js=ask, **AT_ONCE)
        land(swapped, self.offer, self.fields)

    def _answer(self, event: gr.events.Dependency, offer: gr.JSON) -> None:
        """Let the words of an answer into the fields, and follow the draft that it began."""
        land(event, offer, self.fields)
        shown = event.then(self.follow, offer, self.written, **STREAM)
        done = shown.then(partial(self.finish, offer), offer, [*self.written, offer], **AT_ONCE)
        land(done, offer, self.fields)

    def keep(self, name: str, words: str | None) -> None:
        """Remember one field; None: what the page shows of it is not the user's."""
        self.keep_all({name: words})

    def keep_all(self, words: dict[str, str | None]) -> None:
        """Remember the fields that hold what the user sees and means."""
        self.desk.keep(**{name: value for name, value in words.items() if value is not None})

    def offered(self, question: int, *fields: str, follow: bool = False) -> dict[str, Any]:
        """These fields of the letter for the browser, in answer to its question. follow: a draft is being written."""
        return {"question": question, "follow": follow, "words": {f: getattr(self.desk.letter, f) for f in fields}}

    def surroundings(self, query: str) -> Changes:
        """Status, the picker's list and the open mail, as they are now."""
        status = self.desk.assistant.status()
        return {self.status: view.status(status), self.mail: self.opened(status.mails), self.picker: self.find(query)}

    def opened(self, mails: int) -> str:
        """The middle pane."""
        conversation = self.desk.conversation()
        return view.letter(*conversation) if conversation else view.nothing_chosen(mails)

    def restore(self, query: str, question: int) -> Changes:
        """The desk as it is now, on a page that was just opened."""
        around, writing = self.surroundings(query), self.desk.running(DRAFT)
        # the value first: Gradio shows one after the other, and the user may click into a list as soon as it shows
        around[self.picker] = {"value": self.desk.letter.reply_to, **around[self.picker]}
        return {**around, **self.pane(writing), self.offer_restored: self.offered(question, *LETTER, follow=writing)}

    def find(self, query: str) -> dict[str, Any]:
        """The picker's list: the mails that `query` finds. Which one is chosen is left to the user's last click."""
        return gr.update(choices=[view.NEW_MAIL, *map(view.choice, self.desk.found(query))])

    def pick(self, message_id: str, question: int) -> Changes:
        """Open a mail to answer."""
        try:
            self.desk.pick(message_id)
        except UserError as mistake:
            return {self.notice: view.notice(str(mistake)), self.offer: self.offered(question)}
        mail = self.opened(self.desk.assistant.status().mails)
        return {self.mail: mail, self.notice: "", self.offer: self.offered(question, "to", "subject")}

    def write(self, change: Callable, *asked: Any) -> Changes:
        """Begin a new draft. The browser has locked the text and the buttons."""
        *words, question = asked
        self.keep_all(dict(zip(LETTER, words, strict=True)))
        try:
            self.desk.write(change)
        except UserError as mistake:
            free = dict.fromkeys([self.text, *self.changes.values()], gr.update(interactive=True))
            return {**free, self.notice: view.notice(str(mistake)), self.offer_drafted: self.offered(question)}
        return {**self.pane(writing=True), self.offer_drafted: self.offered(question, follow=True)}

    def follow(self, offer: dict[str, Any]) -> Iterator[Changes]:
        """Show a draft while it grows. Each yield is whole, for the browser skips one when two come at once."""
        yield self.pane(writing=True) if offer["follow"] else gr.skip()
        for _ in self.desk.last[DRAFT].follow() if offer["follow"] else ():
            yield self.pane(writing=True)

    def finish(self, place: gr.JSON, offer: dict[str, Any]) -> Changes:
        """Hand the finished draft to the user."""
        if not offer["follow"]:
            return gr.skip()
        text = gr.update(value=self.desk.letter.text, interactive=True)
        return {**self.pane(writing=False), self.text: text, place: self.offered(offer["question"], "subject")}

    def pane(self, writing: bool) -> Changes:
        """The right pane as it is now; while Panza writes, the text is Panza's and Stop is all that can be pressed."""
        desk, work = self.desk, self.desk.last.get(DRAFT)
        drafted = bool(desk.draft) and not writing
        buttons = {b: gr.update(visible=drafted, interactive=True) for b in self.changes.values()}
        return buttons | {
            self.changes["Draft"]: gr.update(visible=not writing, interactive=True),
            self.stop: gr.update(visible=writing),
            self.bring_back: gr.update(visible=not writing and bool(desk.before.strip())),
            self.text: gr.update(value=desk.letter.text, interactive=False) if writing else gr.update(interactive=True),
            self.facts: view.facts(desk.draft, writing, bool(work) and work.stopped.is_set()),
            self.sources: self.looked_at(desk.draft.sources if desk.draft else ()),
            self.notice: view.notice(work.error if work and work.ended and not writing else ""),
        }

    def looked_at(self, ids: tuple[str, ...]) -> str:
        """The sources of a draft; made once, not at every token."""
        if ids != self._looked_at[0]:
            self._looked_at = ids, view.sources(map(self.desk.assistant.message, ids))
        return self._looked_at[1]

    def swap(self, *asked: Any) -> dict[str, Any]:
        """Bring back the text before the newest draft."""
        *words, question = asked
        self.keep_all(dict(zip(LETTER, words, strict=True)))
        self.desk.swap()
        return self.offered(question, "text")


def land(event: gr.events.Dependency, offer: gr.JSON, fields: dict[str, gr.Textbox]) -> None:
    """Let the offered words into the fields, each only where the user has not written since the question."""
    event.then(None, offer, [*fields.values()], js=f"(offer) => panza.land(offer, {[*fields]})", **EVENT)


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
                self.offer = gr.JSON(visible=False)
            with gr.Column(elem_classes="card"):
                gr.HTML(LEARN_WORDS)
                self.learning = Job(desk, LEARN, "Learn my voice", view.learnt)

    def wire(self, page: gr.Blocks, writing: Writing) -> None:
        """Say what happens when. New mail and a new voice show on the writing tab at once."""
        known = page.load(self.addresses, self.offer, self.offer, js="() => [-1]", **AT_ONCE)
        land(known, self.offer, {"me": self.me})
        self.bringing_in.wire(page, self.desk.bring_in, [self.paths, self.me], writing)
        self.learning.wire(page, self.desk.learn, [], writing)

    def addresses(self, question: int) -> dict[str, Any]:
        """The user's own addresses, once Panza knows them."""
        return {"question": question, "words": {"me": ", ".join(self.desk.assistant.status().me)}}


class Job:
    """A piece of work that the user starts: its button, its progress, its report."""

    def __init__(self, desk: Desk, name: str, verb: str, report: Callable[[Any], str]):
        self.desk, self.name, self.report = desk, name, report
        word = verb.split()[0].lower()
        self.button = gr.Button(verb, elem_id=word, variant="primary")
        self.stop = gr.Button("Stop", elem_id=f"{word}-stop", visible=False)
        self.shown = gr.HTML(elem_id=f"{word}-progress")
        self.clicked, self.loaded = gr.State(False), gr.State(False)  # whether these have work to follow

    def wire(self, page: gr.Blocks, start: Callable[..., Work], inputs: list, writing: Writing) -> None:
        """start: begins the work from the values of `inputs`."""
        own, around = [self.button, self.stop, self.shown], [*writing.around]
        for event, begun in (
            (self.button.click(partial(self.begin, start), inputs, [*own, self.clicked], **AT_ONCE), self.clicked),
            (page.load(self.restore, None, [*own, self.loaded], **AT_ONCE), self.loaded),
        ):
            shown = event.then(self.follow, begun, own, **STREAM)
            shown.then(partial(self.finish, writing), [begun, writing.search], [*own, *around], **AT_ONCE)
        self.stop.click(self.desk.stop, None, None, queue=False, **EVENT)

    def begin(self, start: Callable[..., Work], *inputs: str) -> Changes:
        """Start the work."""
        try:
            start(*inputs)
        except UserError as mistake:
            return {self.shown: view.notice(str(mistake)), self.clicked: False}
        return {**self.state(running=True), self.clicked: True}

    def restore(self) -> Changes:
        """The work as it is now, on a page that was just opened."""
        running = self.desk.running(self.name)
        return {**self.state(running), self.loaded: running}

    def follow(self, begun: bool) -> Iterator[Changes]:
        """Show the progress until the end."""
        yield self.state(running=True) if begun else gr.skip()
        for _ in self.desk.last[self.name].follow(every=0.2) if begun else ():
            yield self.state(running=True)

    def finish(self, writing: Writing, begun: bool, query: str) -> Changes:
        """Show the report and what the work changed elsewhere."""
        return {**self.state(running=False), **writing.surroundings(query)} if begun else gr.skip()

    def state(self, running: bool) -> Changes:
        """Button, progress or report as they are now."""
        work = self.desk.last.get(self.name)
        shown = "" if work is None else view.progress(work) if running else self._ended(work)
        return {self.button: gr.update(visible=not running), self.stop: gr.update(visible=running), self.shown: shown}

    def _ended(self, work: Work) -> str:
        return view.notice(work.error) if work.error else self.report(work.result)
