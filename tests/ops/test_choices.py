# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Checks and choices are made once for calls of the same facts, and anew for every other fact."""

import logging
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from vitadapter_fast import backend
from vitadapter_fast.ops import _backends
from vitadapter_fast.ops._backends import checked_choice

FOUND = ModuleType("found")


class Call(NamedTuple):
    rows: Tensor
    sizes: list[int]
    bias: Tensor | None
    mode: str


class Asked:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.checks = self.choices = 0

    def check(self, call: Call) -> None:
        self.checks += 1
        if call.mode == "wrong":
            raise ValueError("wrong")

    def choose(self, call: Call, argument: str | None) -> ModuleType:
        self.choices += 1
        return FOUND

    def __call__(self, call: Any, argument: str | None = None) -> bool:
        """Return whether this call was checked and chosen for."""
        before = self.checks, self.choices
        assert checked_choice(self.check, self.choose, call, argument) is FOUND
        after = self.checks, self.choices
        assert after in (before, (before[0] + 1, before[1] + 1))
        return after != before


def rows(*, offset: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    memory = torch.zeros(64, dtype=dtype)
    return memory[offset : offset + 12].view(3, 4)


CALL = Call(rows(), [3, 4], None, "right")
OTHERS = {
    "shape": CALL._replace(rows=rows().view(4, 3)),
    "strides": CALL._replace(rows=torch.zeros(4, 3).t()),
    "dtype": CALL._replace(rows=rows(dtype=torch.bfloat16)),
    "device": CALL._replace(rows=rows().to("meta")),
    "alignment": CALL._replace(rows=rows(offset=1)),
    "sizes": CALL._replace(sizes=[4, 3]),
    "a tensor for none": CALL._replace(bias=rows()),
    "a word": CALL._replace(mode="left"),
}


def test_calls_of_the_same_facts_are_checked_once() -> None:
    ask = Asked()
    assert ask(CALL)
    assert not ask(CALL)
    assert not ask(CALL._replace(rows=rows() + 1, sizes=[3, 4]))
    assert not ask(CALL._replace(rows=torch.nn.Parameter(rows())))


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_any_other_fact_is_asked_about(other: Call) -> None:
    ask = Asked()
    assert ask(CALL) and ask(other)
    assert not ask(CALL) and not ask(other)


def test_what_was_asked_for_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Asked()
    assert ask(CALL)
    assert ask(CALL, "reference")  # by argument, which an operator without the backend refuses
    with backend("reference"):
        assert ask(CALL)
    monkeypatch.setenv("VITADAPTER_BACKEND", "triton")
    assert ask(CALL)
    monkeypatch.delenv("VITADAPTER_BACKEND")
    assert not ask(CALL)


def test_what_was_refused_is_refused_again() -> None:
    ask = Asked()
    for _ in range(2):
        with pytest.raises(ValueError, match="wrong"):
            ask(CALL._replace(mode="wrong"))
    assert ask.checks == 2 and ask.choices == 0


def test_two_operators_do_not_share_a_choice() -> None:
    assert Asked()(CALL) and Asked()(CALL)


def test_each_choice_is_logged_where_somebody_reads(caplog: pytest.LogCaptureFixture) -> None:
    ask = Asked()
    with caplog.at_level(logging.DEBUG, "vitadapter_fast"):
        assert ask(CALL) and ask(CALL)


def test_tensors_that_stand_for_others_are_never_known() -> None:
    class Wrapped(Tensor):
        pass

    ask = Asked()
    call = CALL._replace(rows=rows().as_subclass(Wrapped))
    assert ask(call) and ask(call)
    assert not _backends._choices


def test_choices_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends, "_MOST_CHOICES", 8)
    ask = Asked()
    for size in range(30):
        ask(CALL._replace(sizes=[size]))
        assert len(_backends._choices) <= 8
