"""New files and directories, whole or not at all, and nothing of anybody else's removed. Knows the disk; knows no model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from compress.errors import CompressError

MARK = ".part-of-compress"  # in a directory that is being written, and so may be removed


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its place at the end if all went well, and is gone if not.

    What stands at `out` is replaced. Raises CompressError if the disk refuses, or if another's directory is in the way.
    """
    part = out.with_name(out.name + ".part")
    remove_own(part, MARK)
    with _told(out):
        try:
            part.mkdir(parents=True)
            (part / MARK).touch()
            yield part
            (part / MARK).unlink()
            shutil.rmtree(out, ignore_errors=True)
            os.replace(part, out)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def new_file(out: Path, keep: bool = True) -> Iterator[Path]:
    """A file beside `out` that takes its name at the end if all went well (and `keep`), and is gone if not."""
    part = out.with_name(out.name + ".part")
    with _told(out):
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            yield part
            if keep:
                part.replace(out)
        finally:
            part.unlink(missing_ok=True)


def make(folder: Path) -> Path:
    """The directory, made with all above it. Raises CompressError if it cannot be."""
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_own(folder: Path, mark: str) -> None:
    """Remove a directory that holds the file `mark`, if it exists. Raises CompressError for one that does not."""
    if folder.exists() and not (folder / mark).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CompressError(f"'{folder}' is in the way and was not written by this program: move it")
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _told(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors tells of a full disk in its own way
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise CompressError(f"'{out}' could not be written: {reason}") from error
