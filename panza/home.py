"""The one folder that holds everything Panza keeps. Knows paths and permissions; reads no file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from panza.types import UserError


@dataclass(frozen=True)
class Home:
    """`root` is PANZA_HOME. Directories are made 0700, files 0600."""

    root: Path

    @property
    def mail(self) -> Path:
        return self.root / "mail.db"

    @property
    def vectors(self) -> Path:
        return self.root / "vectors"

    @property
    def playback(self) -> Path:
        return self.root / "playback.jsonl"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"


def open_home(path: Path | None = None) -> Home:
    """The home at `path`, at $PANZA_HOME, or in the user's data directory; made if it is not there.

    Also sets this process's umask, so that every file made from now on is 0600.
    """
    root = Path(path or os.environ.get("PANZA_HOME") or platformdirs.user_data_dir("panza", appauthor=False))
    os.umask(0o077)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(
            f"'{root}' cannot be Panza's folder ({type(error).__name__}): give another with --home or PANZA_HOME."
        ) from None
    root.chmod(0o700)
    return Home(root.resolve())


def shipped(name: str) -> Path:
    """The folder `data/<name>` that comes with Panza: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "data" / name
    return beside if beside.is_dir() else package / "_data" / name


def read_settings(home: Home) -> dict[str, Any]:
    """The settings, {} if there are none yet."""
    if not home.settings.exists():
        return {}
    try:
        return dict(json.loads(home.settings.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"'{home.settings}' is not a JSON object: mend it or delete it.") from None


def write_atomically(path: Path, text: str) -> None:
    """Write by temp + rename, so that a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(path.name + ".part")
    temp.write_text(text, encoding="utf-8")
    temp.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`value` as readable JSON, by temp + rename."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
