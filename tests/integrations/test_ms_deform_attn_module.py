# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Deformable-DETR's module and function on our operator; no framework needed."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitadapter_fast.integrations.deformable_detr import (
    MSDeformAttn,
    MSDeformAttnFunction,
    level_hw,
    replace_mmcv_op,
)
from vitadapter_fast.integrations.replacement import Replacement, Target

HW = [(7, 5), (3, 4), (1, 2)]
S = sum(h * w for h, w in HW)
Q = 6


class Inputs(NamedTuple):
    query: Tensor
    points: Tensor
    boxes: Tensor
    features: Tensor
    mask: Tensor


@pytest.fixture
def module() -> MSDeformAttn:
    torch.manual_seed(0)
    module = MSDeformAttn(d_model=12, n_levels=3, n_heads=2, n_points=4).double()
    with torch.no_grad():
        for layer in (module.sampling_offsets, module.attention_weights):
            torch.nn.init.normal_(layer.weight, std=0.3)
    return module


@pytest.fixture
def inputs() -> Inputs:
    random = torch.Generator().manual_seed(1)

    def make(draw: Callable[..., Tensor], *shape: int) -> Tensor:
        return draw(*shape, dtype=torch.float64, generator=random)

    return Inputs(
        query=make(torch.randn, 2, Q, 12),
        points=make(torch.rand, 2, Q, 3, 2),
        boxes=make(torch.rand, 2, Q, 3, 4),
        features=make(torch.randn, 2, S, 12),
        mask=make(torch.rand, 2, S) < 0.3,
    )


def definition(module: MSDeformAttn, inputs: Inputs, reference: Tensor, mask: Tensor | None) -> Any:
    """Equation 3 of arXiv:2010.04159, query by query, head by head, level by level."""
    value = module.value_proj(inputs.features)
    if mask is not None:
        value = value * ~mask[..., None]
    offsets = module.sampling_offsets(inputs.query).view(2, Q, 2, 3, 4, 2)
    weights = module.attention_weights(inputs.query).view(2, Q, 2, 12).softmax(-1)
    weights = weights.view(2, Q, 2, 3, 4)
    heads = []
    for head in range(2):
        total: Any = 0
        start = 0
        for level, (h, w) in enumerate(HW):
            tokens = value[:, start : start + h * w, 6 * head : 6 * head + 6]
            start += h * w
            if reference.shape[-1] == 2:
                spread = torch.tensor([1 / w, 1 / h], dtype=torch.float64)[None, None, None]
            else:
                spread = reference[:, :, level, None, 2:] / 2 / 4
            grid = reference[:, :, level, None, :2] + offsets[:, :, head, level] * spread
            sampled = F.grid_sample(
                tokens.transpose(1, 2).reshape(2, 6, h, w), 2 * grid - 1, align_corners=False
            )
            total = total + (sampled * weights[:, None, :, head, level]).sum(-1)
        heads.append(total.transpose(1, 2))
    return module.output_proj(torch.cat(heads, dim=2))


@pytest.mark.parametrize("has_mask", [False, True], ids=["unpadded", "padded"])
@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_module_agrees_with_the_definition(
    module: MSDeformAttn, inputs: Inputs, kind: str, has_mask: bool
) -> None:
    mask = inputs.mask if has_mask else None
    reference = getattr(inputs, kind)
    leaves = [part.requires_grad_() for part in (inputs.query, reference, inputs.features)]
    leaves += list(module.parameters())
    got = module(inputs.query, reference, inputs.features, torch.tensor(HW), None, mask)
    wanted = definition(module, inputs, reference, mask)
    torch.testing.assert_close(got, wanted)
    cotangent = torch.randn(wanted.shape, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(got, leaves, cotangent),
        torch.autograd.grad(wanted, leaves, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_parameters_have_the_names_of_deformable_detr() -> None:
    shapes = {name: tuple(p.shape) for name, p in MSDeformAttn().named_parameters()}
    assert shapes == {
        "sampling_offsets.weight": (256, 256),
        "sampling_offsets.bias": (256,),
        "attention_weights.weight": (128, 256),
        "attention_weights.bias": (128,),
        "value_proj.weight": (256, 256),
        "value_proj.bias": (256,),
        "output_proj.weight": (256, 256),
        "output_proj.bias": (256,),
    }


def test_parameters_start_as_in_deformable_detr() -> None:
    module = MSDeformAttn(16, 2, 4, 3)
    bias = module.sampling_offsets.bias.detach().view(4, 2, 3, 2)
    right_down_left_up = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for level in range(2):
        for point in range(3):
            torch.testing.assert_close(
                bias[:, level, point], right_down_left_up * (point + 1), rtol=0, atol=1e-6
            )
    for name in ("sampling_offsets.weight", "attention_weights.weight", "attention_weights.bias"):
        assert not module.get_parameter(name).any()
    bound = (6 / 32) ** 0.5
    assert 0.8 * bound < module.value_proj.weight.abs().max() <= bound


def test_ratio_narrows_the_values() -> None:
    module = MSDeformAttn(16, 1, 4, ratio=0.5)
    assert module.value_proj.weight.shape == (8, 16)
    assert module(
        torch.rand(1, 2, 16), torch.rand(1, 2, 1, 2), torch.rand(1, 4, 16), [(2, 2)]
    ).shape


def test_sizes_may_be_a_list(module: MSDeformAttn, inputs: Inputs) -> None:
    as_list = module(inputs.query, inputs.points, inputs.features, HW)
    as_tensor = module(inputs.query, inputs.points, inputs.features, torch.tensor(HW))
    assert torch.equal(as_list, as_tensor)


def test_half_precision_keeps_locations_in_float32(module: MSDeformAttn, inputs: Inputs) -> None:
    low = module.bfloat16()
    query, points, _, features, _ = (part.bfloat16() for part in inputs)
    got = low(query, points, features, HW)
    assert got.dtype == torch.bfloat16
    # The same rounded weights and inputs, computed in float64.
    rounded = Inputs(query.double(), points.double(), points, features.double(), inputs.mask)
    wanted = definition(low.double(), rounded, rounded.points, None)
    torch.testing.assert_close(got.double(), wanted, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_function_has_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    value = torch.randn(1, S, 2, 3, dtype=dtype, requires_grad=True)
    locations = torch.rand(1, Q, 2, 3, 2, 2, dtype=dtype, requires_grad=True)
    weights = torch.rand(1, Q, 2, 3, 2, dtype=dtype, requires_grad=True)
    starts = torch.tensor([0, 35, 47])
    out = MSDeformAttnFunction.apply(value, torch.tensor(HW), starts, locations, weights, 64)
    assert out.shape == (1, Q, 6)
    out.square().sum().backward()
    for leaf in (value, locations, weights):
        assert leaf.grad is not None and leaf.grad.abs().max() > 0


def test_module_compiles_without_a_graph_break() -> None:
    module = MSDeformAttn(16, 2, 2)
    torch.compiler.reset()
    args = (torch.rand(1, 3, 16), torch.rand(1, 3, 2, 2), torch.rand(1, 10, 16), [(2, 3), (2, 2)])
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*args), module(*args))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MSDeformAttn(10, 1, 4), "must divide among the heads, got 10"),
        (lambda: forward(points=(2, 3)), r"\[B, Q, 2, 2 or 4\] .* got \(1, 3, 2, 3\)"),
        (lambda: forward(points=(3, 2)), r"\[B, Q, 2, 2 or 4\] .* got \(1, 3, 3, 2\)"),
        (lambda: forward(points=(1, 2), sizes=[(2, 5)]), "n_levels=2 levels, got 1"),
        (lambda: forward(sizes=[(2, 3), (9, 9)]), r"\(9, 9\)\] must hold .* 10"),
        (lambda: level_hw(torch.ones(3)), r"\[L, 2\] as \(h, w\), got \(3,\)"),
    ],
)
def test_errors_say_what_was_wanted_and_came(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def forward(
    points: tuple[int, int] = (2, 2), sizes: Sequence[tuple[int, int]] = ((2, 3), (2, 2))
) -> Any:
    module = MSDeformAttn(16, 2, 2)
    return module(torch.rand(1, 3, 16), torch.rand(1, 3, *points), torch.rand(1, 10, 16), sizes)


def test_replacement_wants_a_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mmcv.ops.multi_scale_deform_attn", "transformers.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match="wanted mmcv .* or transformers, found neither .* install"
    ):
        replace_mmcv_op()


class Owner:
    name = "original"


def test_replacement_returns_with_the_last_handle() -> None:
    target = Target(Owner, "name", "new")
    with Replacement([target]):
        second = Replacement([target])
        assert Owner.name == "new"
    assert Owner.name == "new"
    second.undo()
    second.undo()
    assert Owner.name == "original"


def test_replacement_without_a_handle_lasts() -> None:
    """What nobody keeps is gone at once, and its address and id are the next handle's."""
    target = Target(Owner, "name", "new")
    try:
        Replacement([target])
        for _ in range(3):
            with Replacement([target]):
                pass
            assert Owner.name == "new"
    finally:
        Owner.name = "original"


def test_replacement_leaves_what_others_replaced(caplog: pytest.LogCaptureFixture) -> None:
    handle = Replacement([Target(Owner, "name", "new")])
    try:
        Owner.name = "another's"
        handle.undo()
        assert Owner.name == "another's"
        assert "replaced by someone else" in caplog.text
    finally:
        Owner.name = "original"
