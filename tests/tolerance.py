# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""How far a kernel may be from float64: the error of the reference in its dtype sets the scale."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# On every budget. Random calls have more: where a result is few numbers, the largest error of the
# reference says little of what another order of the same sums may have.
slack = 1.0


def max_err(got: Tensor, truth: Tensor) -> float:
    """Largest absolute difference; infinite where exactly one side is not finite."""
    difference = (got.double() - truth.double()).abs()
    same = (got.double() == truth.double()) | (got.isnan() & truth.isnan())
    difference = torch.where(same, 0.0, difference.nan_to_num(float("inf"), float("inf")))
    return difference.max().item() if difference.numel() else 0.0


def budget(reference: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """Return the error that a kernel may have: 2 x the reference's + 4 eps x the truth's peak.

    A float64 reference is the truth itself and has no error to measure: pass the reference in
    float32, whose error is scaled to ``dtype``. The truth is then no more exact than the kernel, so
    both may be off.
    """
    peak = truth.abs().nan_to_num(0, 0, 0).max().item() if truth.numel() else 0.0
    eps = torch.finfo(dtype).eps
    scale = eps / torch.finfo(reference.dtype).eps
    one_sided = 2 * scale * max_err(reference, truth) + 4 * eps * peak
    return slack * (2 * one_sided if dtype == torch.float64 else one_sided)


def assert_close(
    got: Tensor, reference: Tensor, truth: Tensor, what: str, more: float = 0.0
) -> None:
    """Fail unless ``got`` is within its budget of ``truth``, and some more."""
    assert got.shape == truth.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(truth.shape)}"
    error = max_err(got, truth)
    allowed = budget(reference, truth, got.dtype) + more
    assert error <= allowed, f"{what}: error {error:.3g} exceeds {allowed:.3g}"


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
