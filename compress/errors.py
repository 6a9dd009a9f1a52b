"""The errors that a user of this library causes, and those that a damaged file causes in others."""

from __future__ import annotations

from safetensors import SafetensorError


class CompressError(Exception):
    """A user's mistake or a bad file: one sentence that names the value and the choices, and holds no data."""


class Unsupported(CompressError):
    """Nothing is wrong, but this model, adapter or installation is more than what was asked can do; the message says why."""


# What Python, torch and safetensors raise over a damaged file.
BROKEN = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, ArithmeticError)
BROKEN += (AssertionError, EOFError, RecursionError, SafetensorError)
