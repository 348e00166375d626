# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What Python a call runs through: calls of the package's functions, changes of file, questions."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import vitadapter_fast

_ROOT = str(Path(vitadapter_fast.__file__).parent)


class Calls(NamedTuple):
    """What was counted.

    Attributes:
        calls: Of functions of the package, by file and name.
        changes: How often the next such call was in another file.
        questions: Calls of what answers with yes or no, or with a reason.
    """

    calls: Counter[str]
    changes: int
    questions: int


def count(run: Callable[[], object]) -> Calls:
    """Run and count."""
    calls: Counter[str] = Counter()
    files: list[str] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(_ROOT):
            calls[f"{name.removeprefix(_ROOT)} {frame.f_code.co_name}"] += 1
            files.append(name)

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    changes = sum(one != other for one, other in zip(files, files[1:], strict=False))
    questions = sum(number for name, number in calls.items() if _asks(name.rpartition(" ")[2]))
    return Calls(calls, changes, questions)


def _asks(name: str) -> bool:
    name = name.lstrip("_")
    return name.endswith("reason") or name.startswith(
        (
            "is_",
            "has_",
            "runs",
            "suits_",
            "take",
            "sums_",
            "beats_",
            "writes_",
            "can_",
            "fused_dtype",
        )
    )
