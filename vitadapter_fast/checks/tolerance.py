# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""How far a kernel may be from float64: the error of the reference in its dtype sets the scale."""

import math

import torch
from torch import Tensor


def max_err(got: Tensor, truth: Tensor) -> float:
    """Return the largest absolute difference; infinite where exactly one side is not finite."""
    difference = (got.double() - truth.double()).abs()
    same = (got.double() == truth.double()) | (got.isnan() & truth.isnan())
    difference = torch.where(same, 0.0, difference.nan_to_num(float("inf"), float("inf")))
    return difference.max().item() if difference.numel() else 0.0


def allowance(error: float, truth: Tensor, dtype: torch.dtype) -> float:
    """Return the error that a result may have where the reference has ``error``.

    Args:
        error: The largest absolute one of the reference, in ``dtype``.
        truth: What both should be; its peak counts.
        dtype: In which both were computed.

    Returns:
        2 x error + 4 eps x peak.
    """
    peak = truth.abs().nan_to_num(0, 0, 0).max().item() if truth.numel() else 0.0
    return 2 * error + 4 * torch.finfo(dtype).eps * peak


def budget(reference: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """Return the error that a result in ``dtype`` may have; see ``allowance``.

    A float64 reference is the truth itself and has no error to measure: pass the reference in
    float32, whose error is scaled to ``dtype``. The truth is then no more exact than the result, so
    both may be off.

    Args:
        reference: What the reference makes of the same inputs, in ``dtype`` or float32.
        truth: What it makes of them in float64.
        dtype: Of the result.
    """
    scale = torch.finfo(dtype).eps / torch.finfo(reference.dtype).eps
    one_sided = allowance(scale * max_err(reference, truth), truth, dtype)
    return 2 * one_sided if dtype == torch.float64 else one_sided


def share(got: Tensor, reference: Tensor, truth: Tensor) -> float:
    """Return the error of a result as a share of its budget; infinity where one is not finite.

    Args:
        got: The result.
        reference: See ``budget``.
        truth: See ``budget``.
    """
    error, allowed = max_err(got, truth), budget(reference, truth, got.dtype)
    if error == 0:
        return 0.0
    return error / allowed if 0 < allowed < math.inf else math.inf


def assert_close(
    got: Tensor,
    reference: Tensor,
    truth: Tensor,
    what: str,
    more: float = 0.0,
    *,
    slack: float = 1.0,
) -> None:
    """Raise unless a result is as close to the truth as it must be.

    Args:
        got: The result.
        reference: See ``budget``.
        truth: See ``budget``.
        what: Its name, for the message.
        more: What it may be off beyond its budget.
        slack: Factor of the budget.

    Raises:
        AssertionError: It is further off, or has another shape; also where Python drops asserts.
    """
    if got.shape != truth.shape:
        raise AssertionError(f"{what}: shape {tuple(got.shape)}, not {tuple(truth.shape)}")
    error = max_err(got, truth)
    allowed = slack * budget(reference, truth, got.dtype) + more
    # Not >: a NaN must fail.
    if not error <= allowed:
        raise AssertionError(f"{what}: error {error:.3g} exceeds {allowed:.3g}")
