# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Which GPU backend takes a call of the deformable attention: seen without a device."""

import logging
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import AttnCase, make_inputs
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from vitadapter_fast import _C
from vitadapter_fast.native import extension
from vitadapter_fast.ops._backends import choose, name_of
from vitadapter_fast.ops.ms_deform_attn import _order, cuda, triton
from vitadapter_fast.ops.ms_deform_attn._call import Call, classic_call, grid_call

# As in csrc/build_info.h.
BUILD: dict[str, Any] = {
    "head_channels": [16, 32, 64, 128],
    "levels": [1, 2, 3, 4, 5],
    "points": 4,
    "generic_backward": [(4, 16, levels) for levels in (2, 3, 4, 5)]
    + [(4, channels, 5) for channels in (32, 64, 128)],
}
SIZES = ((4, 6), (3, 3), (2, 2), (1, 2), (1, 1), (2, 1))


@pytest.fixture(autouse=True)
def specialized(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An extension whose kernels run, and a Triton that does."""
    monkeypatch.setattr(extension, "build_info", lambda: BUILD)
    for backend in (cuda, triton):
        monkeypatch.setattr(backend, "unsupported_reason", lambda call: None)
    cuda._specialized.cache_clear()
    yield
    cuda._specialized.cache_clear()


def call_of(
    levels: int = 3,
    channels: int = 32,
    points: int = 4,
    dtype: torch.dtype = torch.bfloat16,
    *,
    is_grid: bool = True,
) -> Call:
    case = AttnCase("", 2, 2, channels, points, SIZES[:levels], ((3, 5),))
    inputs = make_inputs(case if is_grid else case.classic(), dtype=dtype)
    value, offsets, weights = inputs.tensors()
    level_hw = [size for hw in case.level_hw for size in hw]
    if is_grid:
        return grid_call(value, level_hw, [3, 5], offsets, weights)
    return classic_call(value, level_hw, offsets, weights)


def on_gpu(call: Call) -> Call:
    """Return the call with tensors that say that they are on a GPU, and have no memory."""

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")

    with FakeTensorMode():
        value, points, weights = map(fake, (call.value, call.points, call.weights))
    return call._replace(value=value, points=points, weights=weights)


def chosen(call: Call, backend: str | None, is_backward: bool = False) -> ModuleType:
    return choose(call.op, _order(call, is_backward), call, backend)


def backends(call: Call) -> list[str]:
    """Return the backends that forward and backward of a call on a GPU take."""
    return [name_of(chosen(on_gpu(call), None, is_backward)) for is_backward in (False, True)]


@pytest.mark.parametrize("is_grid", [True, False], ids=["grid", "classic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_specialized_calls_take_cuda(levels: int, dtype: torch.dtype, is_grid: bool) -> None:
    for channels in (32, 64, 128):
        call = call_of(levels, channels, dtype=dtype, is_grid=is_grid)
        assert cuda.generic_reason(call) is None
        is_wide = levels == 5 and dtype == torch.float32  # a backward beyond a lane's registers
        assert backends(call) == ["cuda", "triton" if is_wide else "cuda"]


OTHERS: dict[str, tuple[Call, str]] = {
    "six levels": (call_of(6), "32 channels with 6 levels of 4 points"),
    "three points": (call_of(points=3), "with 3 levels of 3 points"),
    "heads of DINOv3's adapter": (call_of(channels=24), "heads of 24 channels"),
    "float64": (call_of(dtype=torch.float64), "torch.float64"),
    "logits of float32": (
        (lambda call: call._replace(weights=call.weights.float()))(call_of()),
        "torch.bfloat16, torch.bfloat16 and torch.float32",
    ),
}


@pytest.mark.parametrize(("call", "reason"), OTHERS.values(), ids=OTHERS)
def test_other_calls_take_triton_and_say_why(
    call: Call, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "vitadapter_fast"):
        assert backends(call) == ["triton", "triton"]
    assert reason in str(cuda.generic_reason(call))
    assert f"triton before cuda: {cuda.generic_reason(call)}" in caplog.text


def test_other_calls_take_cuda_where_triton_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "unsupported_reason", lambda call: "it is Sunday")
    assert backends(call_of(points=3)) == ["cuda", "cuda"]


def test_compilers_may_ask() -> None:
    """They show tensors without an address, and sizes that are symbols."""
    call = call_of()
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 4)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        value = mode.from_tensor(call.value.contiguous(), symbolic_context=context)
        points, weights = mode.from_tensor(call.points), mode.from_tensor(call.weights)
    fake = call._replace(value=value, points=points, weights=weights)
    assert isinstance(value.shape[3], torch.SymInt)
    for is_backward in (False, True):
        assert cuda.generic_reason(fake, is_backward=is_backward) is None
    with FunctionalTensorMode():
        traced = [FunctionalTensor.to_functional(each) for each in (call.value, call.points)]
    functional = call._replace(value=traced[0], points=traced[1])
    assert cuda.generic_reason(functional) is None


def test_a_named_backend_takes_whatever_it_can_run() -> None:
    assert chosen(on_gpu(call_of(points=3)), "cuda") is cuda
    assert chosen(on_gpu(call_of()), "triton") is triton


def test_these_facts_are_those_of_the_build() -> None:
    info = _C.build_info()
    assert {name: sorted(info[name]) for name in BUILD if name != "points"} == {
        name: sorted(facts) for name, facts in BUILD.items() if name != "points"
    }
    assert info["points"] == BUILD["points"]


def test_float32_heads_of_16_channels_and_many_levels_have_a_backward_in_triton() -> None:
    assert backends(call_of(3, 16, dtype=torch.float32)) == ["cuda", "triton"]
    assert backends(call_of(1, 16, dtype=torch.float32)) == ["cuda", "cuda"]


def test_unaligned_and_strided_values_take_triton() -> None:
    call = call_of(dtype=torch.float32)
    shifted = torch.empty(call.value.numel() + 1)[1:].view_as(call.value)
    assert shifted.data_ptr() % 16
    assert "not aligned" in str(cuda.generic_reason(call._replace(value=shifted)))
    B, S, M, D = call.value.shape
    for width, reason in ((M * D + 4, None), (M * D + 1, "not aligned")):
        strided = torch.empty(B, S, width)[..., : M * D].unflatten(2, (M, D))
        assert reason is None or reason in str(cuda.generic_reason(call._replace(value=strided)))
        assert reason is not None or cuda.generic_reason(call._replace(value=strided)) is None


def test_a_build_without_cuda_kernels_leaves_the_choice_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extension, "build_info", dict)
    cuda._specialized.cache_clear()
    monkeypatch.setattr(cuda, "unsupported_reason", lambda call: "built without CUDA kernels")
    assert backends(call_of()) == ["triton", "triton"]
