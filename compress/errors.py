"""The one error that a user of this library causes."""

from __future__ import annotations


class CompressError(Exception):
    """A user's mistake or a bad file: one sentence that names the value and the choices, and holds no data."""
