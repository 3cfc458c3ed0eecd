"""The errors that a user can cause, each said in one sentence.

The command line prints the message of a `FastganError` without a traceback; anything else is a
defect of fastgan and keeps its traceback. Messages name the argument, the value that came, what is
allowed, and how to go on.
"""

from __future__ import annotations


class FastganError(Exception):
    """Base of every error that fastgan raises on purpose."""


class ConfigError(FastganError, ValueError):
    """A setting has a value that is not allowed."""


class DataError(FastganError):
    """A source of images cannot be opened, decoded or packed."""


class CheckpointError(FastganError):
    """A run folder or a checkpoint is missing, foreign or damaged."""


class RunError(FastganError):
    """A run cannot go on: its folder cannot be written, or it has diverged."""


class BackendError(FastganError, RuntimeError):
    """A forced implementation cannot serve the call; the message says why."""


class NativeBuildError(FastganError, RuntimeError):
    """The compiled extension is required and could not be built or loaded."""


class MissingExtraError(FastganError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""
