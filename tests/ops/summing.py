# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The ways in which GPU backends sum the gradient of the value, and memory that nobody wrote."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from vitadapter_fast.native import extension
from vitadapter_fast.ops.ms_deform_attn import _value_gradient

HOW = ["atomics", "records", "deterministic"]


def sum_by(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum the value gradient in one of three ways, whatever the rule would choose."""
    points_per_pixel = float("inf") if how == "atomics" else 0
    monkeypatch.setattr(_value_gradient, "POINTS_PER_PIXEL", points_per_pixel)
    # Not by torch's own switch, which fills fresh memory with NaN as well.
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: how == HOW[2])


@contextmanager
def nan_filled_memory() -> Iterator[None]:
    """Fill every fresh tensor with NaN, without torch's switch: that makes all deterministic."""

    def filling(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else -(2**30))

        return filled

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            patch.setattr(owner, name, filling(getattr(owner, name)))
        patch.setattr(extension, "_is_filled", lambda: True)  # nor is other memory taken for them
        yield
