# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The package's rule of how far a kernel may be off, with a factor that random calls raise."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitadapter_fast.checks import tolerance as rule
from vitadapter_fast.checks.tolerance import max_err

__all__ = ["assert_close", "assert_same_for_any_number_of_threads", "budget", "max_err", "slack"]

# On every budget. Random calls have more: where a result is few numbers, the largest error of the
# reference says little of what another order of the same sums may have.
slack = 1.0


def budget(reference: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    return slack * rule.budget(reference, truth, dtype)


def assert_close(
    got: Tensor, reference: Tensor, truth: Tensor, what: str, more: float = 0.0
) -> None:
    rule.assert_close(got, reference, truth, what, more, slack=slack)


def assert_same_for_any_number_of_threads(run: Callable[[], Mapping[str, Tensor]]) -> None:
    """Compare, bit for bit, what ``run`` returns on one thread with what it returns on more."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = run()
        for threads in (2, 3, 16):
            torch.set_num_threads(threads)
            got = run()
            assert got.keys() == wanted.keys()
            for name in wanted:
                assert torch.equal(got[name], wanted[name]), (threads, name)
    finally:
        torch.set_num_threads(before)
