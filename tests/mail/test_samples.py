"""Ugly mails, each named by its defect, against the fields that a careful reader finds in them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from panza.mail import eml
from panza.mail.importing import outcome
from panza.mail.store import Entry

HERE = Path(__file__).parent
SAMPLES = sorted(HERE.glob("*.eml"))


def fields(path: Path) -> dict:
    """What the import makes of the one mail in `path`."""
    result = outcome(next(eml.read(path)))
    if not isinstance(result, Entry):
        return {"reason": result.reason}
    found = asdict(result.message)
    found["sender"] = list(found["sender"].values())
    for name in ("to", "cc"):
        found[name] = [list(a.values()) for a in found[name]]
    return found | {"references": list(found["references"]), "to_emails": [email for _, email in found["to"]]}


def mismatches(want: dict, found: dict) -> dict:
    """Field -> (wanted, found) for each field that differs. "…_has": contains; "…_ends": ends in."""
    wrong = {}
    for name, value in want.items():
        key, _, how = name.rpartition("_") if name.endswith(("_has", "_ends")) else (name, "", "")
        got = found.get(key)
        values = value if isinstance(value, list) and how == "has" else [value]
        right = {
            "has": isinstance(got, str) and all(v in got for v in values),
            "ends": isinstance(got, str) and got.endswith(str(value)),
            "": got == value,
        }[how]
        if not right:
            wrong[name] = (value, got if got is not None else found)
    return wrong


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.stem)
def test_sample(path: Path) -> None:
    want = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert want, "a sample without expectations tests nothing"
    assert mismatches(want, fields(path)) == {}


def test_there_are_samples_and_each_has_its_twin() -> None:
    assert len(SAMPLES) > 100
    assert {p.stem for p in SAMPLES} == {p.stem for p in HERE.glob("*.json")}
