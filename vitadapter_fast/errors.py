# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Errors that callers may want to catch by type."""


class BackendUnavailable(RuntimeError):
    """A backend was named, but cannot run this call here; the message says why."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, recognized or loaded; the message lists every reason."""


class CommandError(Exception):
    """A request that cannot be met; the message is for the person at the terminal."""


class ExportError(RuntimeError):
    """A model cannot be exported, or the file written disagrees with it; the message says why."""
