# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A residual branch that no sample keeps is passed by, and nothing else differs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter
from vitadapter_fast.model.drop_path import DropPath, add_branch

Build = Callable[..., ViTAdapter]


class Branch(nn.Module):
    """Add a linear layer of the normalized tokens; count the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls = 0

    def forward(
        self, x: Tensor, norm: nn.Module, gamma: Tensor | None, kept: Tensor | None = None
    ) -> Tensor:
        self.calls += 1
        added = self.layer(norm(x)) * (1.0 if gamma is None else gamma)
        return x + (added if kept is None else kept * added)


class Kept(nn.Module):
    """A drop path that is told which samples to keep."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return x.new_tensor(self.factors).view(-1, 1, 1)


def parts() -> tuple[Branch, nn.LayerNorm, nn.Parameter]:
    torch.manual_seed(0)
    return Branch(), nn.LayerNorm(4), nn.Parameter(torch.rand(4))


def leaves(x: Tensor, branch: nn.Module, norm: nn.Module, gamma: Tensor) -> list[Tensor]:
    return [x, *branch.parameters(), *norm.parameters(), gamma]


@pytest.mark.parametrize(
    ("factors", "calls"), [((0.0, 0.0), 0), ((0.0, 2.0), 1), ((2.0, 0.0), 1), ((2.0, 2.0), 1)]
)
def test_a_branch_is_computed_where_a_sample_keeps_it(
    factors: tuple[float, ...], calls: int
) -> None:
    branch, norm, gamma = parts()
    x = torch.rand(2, 3, 4, requires_grad=True)
    out = add_branch(Kept(*factors), branch, x, norm, gamma)
    assert branch.calls == calls
    wanted = branch(x, norm, gamma, kept=Kept(*factors)(x))
    cotangent = torch.rand(2, 3, 4)
    got = torch.autograd.grad(out, leaves(x, branch, norm, gamma), cotangent)
    for one, other in zip(
        (out, *got),
        (wanted, *torch.autograd.grad(wanted, leaves(x, branch, norm, gamma), cotangent)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_rate_of_zero_and_eval_keep_the_branch() -> None:
    branch, norm, gamma = parts()
    add_branch(DropPath(0.0), branch, torch.rand(2, 3, 4), norm, gamma)
    add_branch(DropPath(0.999999).eval(), branch, torch.rand(2, 3, 4), norm, None)
    assert branch.calls == 2


def test_what_is_frozen_takes_no_gradient() -> None:
    branch, norm, gamma = parts()
    branch.requires_grad_(False)
    gamma.requires_grad_(False)
    add_branch(Kept(0.0), branch, torch.rand(1, 3, 4), norm, gamma).sum().backward()
    assert gamma.grad is None and all(p.grad is None for p in branch.parameters())
    assert all(p.grad is not None and not p.grad.any() for p in norm.parameters())


@pytest.mark.parametrize("kind", ["branch", "part", "norm", "backward", "everything"])
def test_a_branch_that_someone_watches_is_called(kind: str) -> None:
    branch, norm, gamma = parts()
    seen: list[str] = []

    def hook(*args: Any) -> None:
        seen.append(kind)

    handle = {
        "branch": branch.register_forward_hook,
        "part": branch.layer.register_forward_pre_hook,
        "norm": norm.register_forward_hook,
        "backward": branch.register_full_backward_hook,
        "everything": nn.modules.module.register_module_forward_hook,
    }[kind](hook)
    try:
        x = torch.rand(1, 3, 4, requires_grad=True)
        add_branch(Kept(0.0), branch, x, norm, gamma).sum().backward()
    finally:
        handle.remove()
    assert branch.calls == 1 and kind in seen


def test_a_compiler_sees_the_branch() -> None:
    branch, norm, gamma = parts()
    compiled = torch.compile(add_branch, fullgraph=True, backend="eager")
    x = torch.rand(1, 3, 4)
    assert torch.equal(compiled(Kept(0.0), branch, x, norm, gamma), x)


@pytest.mark.parametrize("with_cp", [False, True])
def test_gradients_of_a_model_are_those_of_all_branches(
    with_cp: bool, tiny: Build, image: Tensor
) -> None:
    grads = []
    for watched in (True, False):
        model = tiny(drop_path_rate=0.5, with_cp=with_cp)
        calls = count_calls(model) if watched else None
        torch.manual_seed(5)
        maps = model(image[:1])
        torch.autograd.backward(maps, [m.detach().sin() for m in maps])
        grads.append({name: p.grad for name, p in model.named_parameters()})
        assert calls is None or len(calls) >= 12  # all branches of blocks and extractors
    zeros = 0
    for name, wanted in grads[0].items():
        got = grads[1][name]
        assert (got is None) == (wanted is None), name
        if wanted is not None:
            torch.testing.assert_close(got, wanted, msg=lambda m, n=name: f"{n}: {m}")
            zeros += not wanted.any()
    assert zeros > 0  # some branch was dropped


def count_calls(model: ViTAdapter) -> list[str]:
    calls: list[str] = []
    for name, module in model.named_modules():
        if name.endswith((".attn", ".mlp", ".ffn")) and "injector" not in name:
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


def test_dropped_tokens_may_be_changed_in_place() -> None:
    branch, norm, gamma = parts()
    x = torch.rand(1, 3, 4, requires_grad=True)
    before = x.detach().clone()
    out = add_branch(Kept(0.0), branch, x, norm, gamma)
    out.mul_(2.0).sum().backward()
    assert torch.equal(x, before)
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
