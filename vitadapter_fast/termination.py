# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands do when they are told to stop: no half-written file stays behind."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def tidy_termination() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, so that what cleans up runs.

    Outside the main thread, which alone may handle signals, and where the program has a handler of
    its own, nothing changes.

    Raises:
        SystemExit: SIGTERM came; the status is 143, as shells have it.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
