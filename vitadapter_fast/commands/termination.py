# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What keeps a command from ending badly: told to stop it cleans up, and it can write any text."""

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import NoReturn


@contextmanager
def tidy_termination() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, and no text that is written end it at all.

    SIGTERM runs what cleans up. Outside the main thread, which alone may handle signals, and where
    the program has a handler of its own, it is left as it is. For text see ``any_text``.

    Raises:
        SystemExit: SIGTERM came; the status is 143, as shells have it.
    """
    with any_text():
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            yield
            return
        signal.signal(signal.SIGTERM, _exit)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def any_text() -> Iterator[None]:
    r"""Let stdout and stderr take any text inside the block, whatever their encoding.

    What an encoding lacks comes out as ``\xe9`` or ``\u5199``, a byte of a file name that is no
    text as ``\udcff``; a stream that the process was started without takes all and keeps nothing.
    """
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                sink = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.callback(setattr, sys, name, None)
                setattr(sys, name, sink)
            elif isinstance(stream, io.TextIOWrapper):
                stack.callback(_reconfigure, stream, stream.errors or "strict")
                _reconfigure(stream, "backslashreplace")
        yield


def output_failed(error: OSError) -> int:
    """Tell that stdout takes no more, as on a full disk or where its reader has gone.

    Args:
        error: What writing raised; files have errors of their own.

    Returns:
        Exit status 1.

    Raises:
        OSError: ``error``, if it is of another kind.
    """
    if error.errno not in (errno.ENOSPC, errno.EPIPE):
        raise error
    sys.stderr.write(f"error: the output cannot be written: {error.strerror}\n")
    # Python would try and fail once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _reconfigure(stream: io.TextIOWrapper, errors: str) -> None:
    # It flushes, which fails on a full disk or a closed stream, and is told where that matters.
    with suppress(OSError, ValueError):
        stream.reconfigure(errors=errors)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
