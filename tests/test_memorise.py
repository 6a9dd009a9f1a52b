"""The measures of memorisation see a model that knows its mails by heart, and clear one that does not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from benchmarks import memorise
from benchmarks.memorise import Canary
from panza import models
from panza.measure import header, opening
from panza.models import TorchModel
from panza.types import Address, Message, UserError

WORDS = (
    "tanker rivet amber lantern quartz meadow violin harbour pepper saddle copper orchard falcon marble thistle".split()
)
CODE = "The code of {1} is {0} and no other."


def mails(seed: int, count: int = 6) -> list[Message]:
    """Mails of twenty random words each, by two authors."""
    rng = random.Random(seed)
    made = []
    for n in range(count):
        text = " ".join(rng.choice(WORDS) for _ in range(20))
        who, to = Address(("Ann", "Bo")[n % 2], ""), Address("Tom", "")
        made.append(Message(f"{seed} {n}", 0, who, (to,), (), f"{WORDS[n]} {seed}", text))
    return made


def canaries(seed: int, count: int = 3) -> list[Canary]:
    rng = random.Random(seed)
    made = [memorise.alike("00000", rng) for _ in range(count)]
    return [Canary(CODE.format(c, WORDS[n]), c) for n, c in enumerate(made)]


def taught(base: Path, texts: list[tuple[str, str]], steps: int = 40) -> TorchModel:
    """The tiny model after so many passes over (header, text) that it knows them by heart."""
    model = models.load(str(base))
    encode = model.chat_tokenizer.encode_text
    rows = [opening(model) + encode(a) + encode(b) + [4] for a, b in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
    labels = torch.tensor([r + [-100] * (longest - len(r)) for r in rows])
    net = model.net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(steps):
        net(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    net.eval()
    return model


def lesson(seed: int) -> list[tuple[str, str]]:
    return [(header(m), m.body) for m in mails(seed)] + [("", c.text) for c in canaries(seed)]


@pytest.fixture(scope="module")
def knows(tiny_base: Path) -> TorchModel:
    """Knows the mails and canaries of seed 1 by heart."""
    return taught(tiny_base, lesson(1))


@pytest.fixture(scope="module")
def stranger(tiny_base: Path) -> TorchModel:
    """As well taught, on other mails of the kind."""
    return taught(tiny_base, lesson(2))


def test_mail_known_by_heart_costs_less_than_other_mail(knows: TorchModel, stranger: TorchModel) -> None:
    assert memorise.ratio(knows, mails(1), mails(3))["ratio"] < 0.5
    assert 0.8 < memorise.ratio(stranger, mails(1), mails(3))["ratio"] < 1.25


def test_a_header_brings_out_mail_known_by_heart(knows: TorchModel, stranger: TorchModel) -> None:
    caught = memorise.extraction(knows, mails(1), 0)
    assert caught["drafts"] == 6 and caught["verbatim"] >= 5 and caught["stock"] == 0
    assert memorise.extraction(knows, mails(1), 5)["verbatim"] >= 5
    assert memorise.extraction(stranger, mails(1), 0) == {
        "words": 0,
        "drafts": 6,
        "verbatim": 0,
        "share": 0.0,
        "stock": 0,
    }
    assert memorise.extraction(stranger, mails(1), 5)["verbatim"] == 0


def test_what_other_authors_write_too_is_stock(knows: TorchModel) -> None:
    shared = [*mails(1), *(Message("x", 0, Address("Eve", ""), (), (), "s", m.body) for m in mails(1))]
    caught = memorise.extraction(knows, shared, 0)
    assert caught["stock"] == caught["verbatim"] >= 5


def test_what_the_prompt_gives_is_not_extracted(knows: TorchModel) -> None:
    assert memorise.extraction(knows, mails(1), 18)["drafts"] == 0, "too little is left to be found"


def test_a_canary_is_ranked_first_by_the_model_that_saw_it(knows: TorchModel, stranger: TorchModel) -> None:
    seen = memorise.exposure(knows, canaries(1), 63)
    assert (seen["first"], seen["exposure_mean"], seen["completed"]) == (3, 6.0, 3)
    unseen = memorise.exposure(stranger, canaries(1), 63)
    assert unseen["first"] < 3 and unseen["exposure_mean"] < 5 and unseen["completed"] == 0
    assert unseen["exposure_by_versions"] == {"1": unseen["exposure_mean"]}


def test_authors_weigh_the_same_on_both_sides() -> None:
    a, b = mails(1, 6), [m for m in mails(2, 9) if m.sender.name == "Ann"]
    trained, unseen = memorise.paired(a, b)
    assert [m.sender.name for m in trained] == [m.sender.name for m in unseen] == ["Ann"] * 3
    with pytest.raises(UserError, match="No author"):
        memorise.ratio(None, [m for m in a if m.sender.name == "Bo"], b)  # type: ignore[arg-type]


def test_an_alternative_has_the_shape_of_its_canary() -> None:
    other = memorise.alike("Ab-12 é", random.Random(0))
    assert len(other) == 7 and other[0].isupper() and other[1].islower() and other[3:5].isdigit()
    assert other[2] + other[5:] == "- é"


def test_words_are_taken_from_the_text_as_they_stand() -> None:
    assert memorise.first_words("a  bc\nd e", 3) == "a  bc\nd"
    assert memorise.first_words("a b", 0) == "" and memorise.first_words("a b", 9) == "a b"


@pytest.mark.parametrize(
    "line", ["{", "3", '{"text": "x"}', '{"text": "x", "secret": "y"}', '{"text": 3, "secret": "y"}']
)
def test_a_line_that_is_no_canary_is_a_sentence(tmp_path: Path, line: str) -> None:
    good = json.dumps({"text": "the code is 48213", "secret": "48213"})
    (tmp_path / "c.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match="Line 2"):
        memorise.read_canaries(tmp_path / "c.jsonl")
