# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A residual branch that no sample keeps is passed by, and nothing else differs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter, backend
from vitadapter_fast.fused import block, drop_path, extractor
from vitadapter_fast.model.drop_path import DropPath

Build = Callable[..., ViTAdapter]


def kept(*factors: float) -> Tensor:
    return torch.tensor(factors).view(-1, 1, 1)


@pytest.mark.parametrize(
    ("factors", "wanted"),
    [((0.0, 0.0), True), ((0.0, 2.0), False), ((2.0,), False), ((0.0,), True)],
)
def test_a_branch_is_dropped_where_no_sample_keeps_it(
    factors: tuple[float, ...], wanted: bool
) -> None:
    assert drop_path.is_dropped(kept(*factors)) == wanted


def test_a_rate_of_zero_and_eval_keep_the_branch() -> None:
    x = torch.rand(2, 3, 4)
    assert DropPath(0.0).factors(x) is None
    assert DropPath(0.999999).eval().factors(x) is None
    assert DropPath(0.999999).eval()(x) is x


def test_what_is_frozen_takes_no_gradient() -> None:
    branch, norm, gamma = nn.Linear(4, 4), nn.LayerNorm(4), nn.Parameter(torch.rand(4))
    branch.requires_grad_(False)
    gamma.requires_grad_(False)
    drop_path.pass_by(torch.rand(1, 3, 4), norm, branch, gamma).sum().backward()
    assert gamma.grad is None and all(p.grad is None for p in branch.parameters())
    assert all(p.grad is not None and not p.grad.any() for p in norm.parameters())


def test_dropped_tokens_may_be_changed_in_place() -> None:
    x = torch.rand(1, 3, 4, requires_grad=True)
    before = x.detach().clone()
    out = drop_path.pass_by(x, nn.LayerNorm(4), nn.Linear(4, 4))
    out.mul_(2.0).sum().backward()
    assert torch.equal(x, before)
    assert torch.equal(x.grad, torch.full_like(x, 2.0))


@pytest.mark.parametrize("with_cp", [False, True])
def test_gradients_of_a_model_are_those_of_all_branches(
    with_cp: bool, tiny: Build, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[Any] = []

    def counted(*args: Any) -> Tensor:
        passed.append(args)
        return drop_path.pass_by(*args)

    monkeypatch.setattr(block, "pass_by", counted)
    monkeypatch.setattr(extractor, "pass_by", counted)
    model = tiny(drop_path_rate=0.5, with_cp=with_cp).double()

    def gradients() -> dict[str, Tensor | None]:
        model.zero_grad()
        torch.manual_seed(5)
        maps = model(image[:1].double())
        torch.autograd.backward(maps, [m.detach().sin() for m in maps])
        return {name: p.grad for name, p in model.named_parameters()}

    ours = gradients()
    count = len(passed)
    assert count > 0
    with backend("reference"):
        theirs = gradients()
    assert len(passed) == count
    for name, wanted in theirs.items():
        assert (ours[name] is None) == (wanted is None), name
        if wanted is not None:
            torch.testing.assert_close(ours[name], wanted, msg=lambda m, n=name: f"{n}: {m}")
