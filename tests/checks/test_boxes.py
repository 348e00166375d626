# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Every box of the model is listed with its reason, and a wrong one is found."""

import pytest
import torch
from torch import Tensor

from vitadapter_fast import backend, checks, fused

BOXES = checks.boxes()


def test_every_box_is_listed() -> None:
    assert {box.form for box in BOXES.values()} == set(fused.BOXES)


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("name", BOXES)
def test_boxes_run_here_and_are_right(name: str, is_training: bool) -> None:
    if not torch.cuda.is_available():
        assert checks.box_reason(BOXES[name], is_training=is_training) is None
    assert checks.check_box(BOXES[name], is_training=is_training) <= 1
    with backend("reference"):
        reason = checks.box_reason(BOXES[name], is_training=is_training)
    assert reason == "the reference was asked for"


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("name", BOXES)
def test_a_wrong_box_is_found(
    name: str, is_training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = BOXES[name].form.forward

    def wrong(*args: object) -> object:
        out = right(*args)
        return out * 1.001 if isinstance(out, Tensor) else [each * 1.001 for each in out]

    monkeypatch.setattr(BOXES[name].form, "forward", wrong)
    assert checks.check_box(BOXES[name], is_training=is_training) > 1
