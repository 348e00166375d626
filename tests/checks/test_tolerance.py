# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The one rule of how far a result may be off: what it allows, and what it never passes."""

import math

import pytest
import torch
from torch import Tensor

from vitadapter_fast.checks.tolerance import allowance, assert_close, budget, max_err, share

EPS = torch.finfo(torch.float32).eps


def float32(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_budget_is_twice_the_references_error_and_four_roundings_of_the_peak() -> None:
    truth, reference = torch.tensor([1.0, -8.0], dtype=torch.float64), float32(1.5, -8.0)
    assert budget(reference, truth, torch.float32) == 2 * 0.5 + 4 * EPS * 8
    assert allowance(0.5, truth, torch.float32) == budget(reference, truth, torch.float32)


def test_error_of_a_float32_reference_is_scaled_to_float64() -> None:
    truth = torch.tensor([0.0], dtype=torch.float64)
    scale = torch.finfo(torch.float64).eps / EPS
    assert budget(float32(1.0), truth, torch.float64) == pytest.approx(4 * scale)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_on_one_side_alone_is_infinitely_wrong(wrong: float) -> None:
    truth, got = torch.zeros(2, dtype=torch.float64), float32(0.0, wrong)
    assert max_err(got, truth) == math.inf
    assert share(got, float32(0.0, 0.0), truth) == math.inf
    assert share(float32(0.0, 1.0), got, truth) == math.inf  # a reference that says nothing
    with pytest.raises(AssertionError, match="result: error inf exceeds"):
        assert_close(got, float32(0.0, 0.0), truth, "result")


def test_exact_result_takes_no_share_even_of_nothing() -> None:
    zeros = torch.zeros(2, dtype=torch.float64)
    assert share(zeros.float(), zeros.float(), zeros) == 0
    assert share(float32(1e-30, 0.0), zeros.float(), zeros) == math.inf


def test_share_is_one_at_the_end_of_the_budget() -> None:
    truth, reference = torch.tensor([1.0], dtype=torch.float64), float32(1.25)
    allowed = budget(reference, truth, torch.float32)
    assert share(float32(1 + allowed / 2), reference, truth) == pytest.approx(0.5, rel=1e-5)


def test_another_shape_is_wrong() -> None:
    truth = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"result: shape \(1,\), not \(2,\)"):
        assert_close(float32(0.0), truth.float(), truth, "result")
