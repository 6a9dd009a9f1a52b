"""Does it work? The whole path for each of several mailboxes: base against adapter and floors, on held-out mail.

    python benchmarks/people.py FILE.mbox=ADDRESS[,ADDRESS] … [--latest 300] [--base DIR] [--home DIR] [--json]

Each person gets a home of their own under --home (kept; a second run goes on where the first stopped).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from panza.assistant import Assistant
from panza.home import open_home
from panza.playback import PlaybackConfig
from panza.train import TrainConfig

SHOWN = ("perplexity", "chrf", "rouge_l", "bleu", "greeting", "sign_off", "length_ratio", "facts_kept")


def measure(
    mbox: Path, me: list[str], home: Path, latest: int, base: str, config: TrainConfig, limit: int
) -> dict[str, Any]:
    """Import, playback, train and evaluate one person."""
    panza = Assistant(open_home(home), base)
    note = _printer(mbox.stem)
    imported = panza.import_mail([mbox], me, note)
    played = panza.play_back(PlaybackConfig(latest=latest), note)
    trained = (
        panza.train(config, note) if panza.adapter is None else json.loads((panza.adapter / "report.json").read_text())
    )
    trained.pop("trained_on")
    return {
        "sent": imported.sent_by_me,
        "playback": asdict(played),
        "train": trained,
        "eval": panza.evaluate(limit, note),
    }


def row(name: str, report: dict[str, Any]) -> str:
    """One line a system: the point estimates."""
    lines = [
        f"{name}: {report['train']['pairs']} mails trained on, n = {report['eval']['n']}, {report['train']['seconds']:.0f} s"
    ]
    for system, metrics in report["eval"]["systems"].items():
        values = (
            f"{metrics[m]['value']:10.3f}" if m in metrics and metrics[m]["value"] is not None else " " * 10
            for m in SHOWN
        )
        lines.append(f"  {system:14}" + "".join(values))
    return "\n".join(lines)


def _printer(name: str) -> Any:
    def note(done: int, total: int, text: str = "") -> None:
        if done % 25 == 0 or done == total:
            print(f"{name}: {text} {done}/{total}", file=sys.stderr)

    return note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", nargs="+", metavar="FILE.mbox=ADDRESS[,ADDRESS]")
    parser.add_argument("--latest", type=int, default=300)
    parser.add_argument("--limit", type=int, default=0, help="at most this many held-out mails each")
    parser.add_argument("--base", default="")
    parser.add_argument("--home", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    for name in ("epochs", "rank", "patience", "alpha"):
        parser.add_argument(f"--{name}", type=int, default=getattr(TrainConfig, name))
    for name in ("lr", "raft", "dropout"):
        parser.add_argument(f"--{name}", type=float, default=getattr(TrainConfig, name))
    args = parser.parse_args()
    config = TrainConfig(
        **{n: getattr(args, n) for n in ("epochs", "rank", "patience", "alpha", "lr", "raft", "dropout")}
    )
    root = args.home or Path(tempfile.mkdtemp(prefix="panza-people-"))
    reports = {}
    if not args.json:
        print(" " * 16 + "".join(f"{m:>10}" for m in SHOWN))
    for person in args.people:
        path, _, me = person.rpartition("=")
        name = Path(path).stem
        reports[name] = measure(Path(path), me.split(","), root / name, args.latest, args.base, config, args.limit)
        if not args.json:
            print(row(name, reports[name]), flush=True)
    if args.json:
        print(json.dumps(reports))


if __name__ == "__main__":
    main()
