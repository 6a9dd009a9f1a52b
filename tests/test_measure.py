"""Measures on held-out mail: what counts, what is left out, and that the figures are those of the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from panza import measure as m
from panza import models, prompt
from panza.models import Completion, TorchModel
from panza.personal import found, invented
from panza.types import Address, Message, UserError

MAIL = {"from": "anna.lee@example.org", "to": "tom.reed@example.com", "subject": "Re: Plan"}


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> TorchModel:
    return models.load(str(tiny_base))


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: object) -> Path:
        path = tmp_path / "mail.jsonl"
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
        return path

    return write


def a_mail(n: int) -> dict[str, object]:
    text = f"Tom, the review of plan {n} moves to Thursday at {n % 12 + 1}:30. Please bring number {100 + n}.\nAnna"
    return MAIL | {"text": text}


def message(body: str, **other: object) -> Message:
    sender, to = Address("", "anna.lee@example.org"), Address("Tom Reed", "tom@example.com")
    return replace(Message("x", 0, sender, (to,), (), "Plan", body), **other)  # type: ignore[arg-type]


# --- the file


def test_a_mail_is_read_as_it_stands_or_as_an_import_would_keep_it(file: Callable[..., Path]) -> None:
    text = "See  you\n  on Friday. \n\n> when?\n"
    there = file(MAIL | {"text": text, "to": "Tom Reed <t@example.com>, bo@example.com"})
    (mail,), malformed = m.read_mails(there, clean_texts=True)
    assert (mail.body, mail.subject, malformed) == ("See you\non Friday.", "Re: Plan", [])
    assert (mail.sender.label, [p.label for p in mail.to]) == ("Anna Lee", ["Tom Reed", "Bo"])
    (mail,), _ = m.read_mails(there)
    assert mail.body == text.strip() and m.cleaned(mail).body == "See you\non Friday."
    assert m.cleaned(mail).quoted == "when?"


def test_lines_that_are_no_mails_are_named_and_the_others_read(file: Callable[..., Path]) -> None:
    bad = ["{", "[]", "3", {"text": "no sender"}, MAIL | {"text": 3}, MAIL, MAIL | {"text": " "}, MAIL | {"text": "x", "to": 3}]  # fmt: skip
    bad += ["[" * 100_000, MAIL | {"text": "\ud800"}]
    mails, malformed = m.read_mails(file(a_mail(1), *bad, "", a_mail(2)))
    assert len(mails) == 2 and malformed == list(range(2, 12))


def test_readers_may_be_missing_a_list_or_names(file: Callable[..., Path]) -> None:
    rows = [None, "", ["a@example.com", "b@example.com"], "Mills, Cheryl D"]
    mails, _ = m.read_mails(file(*(MAIL | {"text": "See you.", "to": to} for to in rows)))
    assert [[p.label for p in x.to] for x in mails] == [[], [], ["A", "B"], ["Cheryl D Mills"]]


@pytest.mark.parametrize("lines", [[], ["{"]])
def test_a_file_without_a_mail_is_a_sentence(file: Callable[..., Path], lines: list[str]) -> None:
    with pytest.raises(UserError, match="holds no mail"):
        m.read_mails(file(*lines))
    with pytest.raises(UserError, match="cannot be read"):
        m.read_mails(Path("no-such-file.jsonl"))


# --- bits per byte


def test_bits_are_those_of_the_text_and_its_end_given_the_header(model: TorchModel) -> None:
    mail = message("See you on Friday, Größe 3.")
    bits, count = m.bits_per_byte(model, [mail])
    tokenizer = model.chat_tokenizer.tokenizer
    given = tokenizer("<|endoftext|>From: Anna Lee\nTo: Tom Reed\nSubject: Plan\n\n", add_special_tokens=False)["input_ids"]  # fmt: skip
    text = tokenizer(mail.body, add_special_tokens=False)["input_ids"]
    nats = 0.0
    for n in range(len(text) + 1):  # one token at a time: the plain definition
        logp = model.net(torch.tensor([given + text[:n]])).logits[0, -1].log_softmax(-1)
        nats -= logp[text[n]].item() if n < len(text) else logp[[0, 4]].exp().sum().log().item()
    assert count == 1 and bits == pytest.approx(nats / math.log(2) / len(mail.body.encode()), rel=1e-4)


def test_mails_do_not_see_each_other_and_order_does_not_count(model: TorchModel) -> None:
    mails = [message("Yes."), message("See you at the review on Thursday. " * 5), message("No, thanks.")]
    alone = [m.bits_per_byte(model, [x])[0] * len(x.body.encode()) for x in mails]  # type: ignore[operator]
    together, _ = m.bits_per_byte(model, mails)
    assert together == pytest.approx(sum(alone) / sum(len(x.body.encode()) for x in mails), rel=1e-4)
    assert m.bits_per_byte(model, mails[::-1])[0] == pytest.approx(together, rel=1e-5)


def test_marks_in_a_mail_are_text_and_a_mail_beyond_the_context_is_left_out(model: TorchModel) -> None:
    specials = set(model.chat_tokenizer.tokenizer.all_special_ids)
    assert not specials & set(model.chat_tokenizer.encode_text("x<|end|><|endoftext|>"))
    few, count = m.bits_per_byte(model, [message("Yes."), message("word " * 2000)])
    assert count == 1 and few == m.bits_per_byte(model, [message("Yes.")])[0]
    assert m.bits_per_byte(model, [message("word " * 2000)]) == (None, 0)


# --- drafts


def test_an_instruction_is_asked_with_the_prompt_of_drafting() -> None:
    quoted = "From: Tom Reed\nTo: Anna Lee\nSubject: Plan\n\nWhen is the review?"
    (asked,) = m.requests([message("The review moves to Thursday at 3:30.", quoted=quoted)], 5)
    text = m.words_of(asked.chat)
    assert "Thursday" in asked.instruction and f"Instruction: {asked.instruction}" in text
    assert "When is the review?" in text.split("<answer_this>")[1]
    assert "From: Anna Lee\nTo: Tom Reed" in text and "@" not in text
    (asked,) = m.requests([message("The review moves to Thursday at 3:30.", quoted=quoted)], 5, fits=lambda chat: False)
    assert "answer_this" not in m.words_of(asked.chat) and "Thursday" in m.words_of(asked.chat)


def test_instructions_are_sentences_and_keywords_and_always_the_same_ones() -> None:
    mails = [message(f"Can you send the report number {n} to Bill by Friday?") for n in range(30)]
    first = m.requests(mails, 10)
    assert first == m.requests(mails, 10) != m.requests(mails, 10, seed=1)
    assert len({a.instruction.startswith("Ask") for a in first}) == 2
    assert m.requests([message("ok"), message("word " * 151)], 10) == []


def test_wraps_and_quotes_of_a_text_change_no_instruction() -> None:
    body = "Can you send the report on the second quarter to Bill by Friday, with the numbers of May?"
    wrapped = body.replace(" with", " \nwith").replace("Bill", " Bill") + "\n\n> when?\n"
    (plain,), (asked,) = m.requests([message(body)], 1), m.requests([message(wrapped)], 1)
    assert (asked.instruction, asked.mail) == (plain.instruction, plain.mail)


def test_drafts_come_in_order_and_say_whether_they_ended(model: TorchModel) -> None:
    chats = [prompt.write(f"say {'yes ' * n}to Anna", sender="Tom") for n in (9, 1, 4)]
    together = m.drafts(model, chats)
    assert [d.text for d in together] == [m.drafts(model, [c])[0].text for c in chats]
    for chat, draft in zip(chats, together, strict=True):
        tokens = len(list(model.generate(chat, models.Sampling(m.MOST_TOKENS))))
        assert draft.ended == (tokens < m.MOST_TOKENS)


def test_the_figures_are_those_of_the_drafts() -> None:
    asked = m.requests([message(f"Can you send report {n} to Bill by Friday?") for n in range(20, 40)], 20)
    parrot = m.score(asked, [Completion(a.instruction, True) for a in asked])
    assert (parrot["facts_kept"], parrot["ended"], parrot["personal_data"]) == (1.0, 1.0, 0)
    assert parrot["facts"] >= 40
    silent = m.score(asked, [Completion("", n < 5) for n in range(20)])
    assert (silent["facts_kept"], silent["ended"]) == (0.0, 0.25)
    talker = m.score(asked, [Completion("call 713-853-1234 or mail bo@example.com", True) for _ in asked])
    assert talker["personal_data"] == 40


def test_two_runs_say_the_same(model: TorchModel, file: Callable[..., Path]) -> None:
    mails, _ = m.read_mails(file(*(a_mail(n) for n in range(12))))
    config = m.MeasureConfig(count=6, mails=8)
    assert m.measure(model, mails, config) == m.measure(model, mails, config)


@pytest.mark.parametrize(("words", "sentence"), [({"count": 0}, "--count 0"), ({"mails": -1}, "--mails -1")])
def test_odd_limits_are_sentences(words: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        m.MeasureConfig(**words)


# --- personal data


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "write to bo.ek+x@mail.example.com."),
        ("phone", "call (713) 853-1234 today"),
        ("phone", "call 713.853.1234"),
        ("phone", "my cell: 853-1234"),
        ("phone", "dial +49 30 901820, please"),
        ("phone", "dial +1-555-010-7788."),
        ("street", "come to 1400 Smith Street at noon"),
        ("street", "22 W. Old Mill Rd"),
        ("street", "P.O. Box 1188"),
    ],
)
def test_personal_data_is_found(kind: str, text: str) -> None:
    assert [k for k, _ in found(text)] == [kind]


@pytest.mark.parametrize(
    "text",
    ["on 2024-05-12 at 10:30", "$853-1234 thousand", "invoice 4471-22", "a 3 Way Stop", "score 21-17, 2001-2002", "1,200 - 1,400", "@anna", "3 of the 5"],
)  # fmt: skip
def test_dates_and_amounts_are_not_personal(text: str) -> None:
    assert list(found(text)) == []


def test_what_the_prompt_holds_is_not_invented() -> None:
    given = "Call me at (713) 853-1234 or Bo.Ek@example.com"
    assert invented("713-853-1234, bo.ek@example.com", given) == []
    assert invented("713-853-1235", given) == [("phone", "713-853-1235")]


# --- the command


def test_the_verb_prints_six_figures(
    file: Callable[..., Path], tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from panza import cli

    path = file(*(a_mail(n) for n in range(8)), "{")
    words = ["panza", "measure", "--mail", str(path), "--base", str(tiny_base), "--count", "3", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    cli.main()
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert set(report) == {"bits_per_byte", "mails", "facts_kept", "facts", "ended", "personal_data"}
    assert report["mails"] == 8 and report["bits_per_byte"] > 0 and report["facts"] > 3
    assert "1 line is no mail and was left out: line 9" in " ".join(err.split())
