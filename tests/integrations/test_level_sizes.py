# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of levels in a tensor that changes between calls, by every way there is to change one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitadapter_fast.integrations import deformable_detr
from vitadapter_fast.integrations.deformable_detr import (
    MSDeformAttn,
    MSDeformAttnFunction,
    level_hw,
)
from vitadapter_fast.native import tensors

BEFORE, AFTER = [(2, 3), (3, 4)], [(3, 4), (3, 2)]
S = 18


def assign(sizes: Tensor, new: Tensor) -> None:
    sizes[:] = new


def assign_to_a_view(sizes: Tensor, new: Tensor) -> None:
    sizes.view(-1)[:] = new.view(-1)


def assign_to_what_is_detached(sizes: Tensor, new: Tensor) -> None:
    sizes.detach()[:] = new


def copy(sizes: Tensor, new: Tensor) -> None:
    sizes.copy_(new)


def set_storage(sizes: Tensor, new: Tensor) -> None:
    sizes.set_(new)


def replace_data(sizes: Tensor, new: Tensor) -> None:
    sizes.data = new


def assign_to_data(sizes: Tensor, new: Tensor) -> None:
    sizes.data[:] = new


def assign_through_numpy(sizes: Tensor, new: Tensor) -> None:
    sizes.numpy()[:] = new.numpy()


def assign_through_dlpack(sizes: Tensor, new: Tensor) -> None:
    torch.from_dlpack(sizes)[:] = new


COUNTED = [
    assign, assign_to_a_view, assign_to_what_is_detached, copy, set_storage, replace_data
]  # fmt: skip
UNCOUNTED = [assign_to_data, assign_through_numpy, assign_through_dlpack]
Edit = Callable[[Tensor, Tensor], None]


def inputs(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(len(shape)))


VALUE, LOCATIONS, WEIGHTS = inputs(1, S, 2, 4), inputs(1, 3, 2, 2, 2, 2), inputs(1, 3, 2, 2, 2)
torch.manual_seed(0)
MODULE = MSDeformAttn(8, 2, 2, 2)


def by_function(sizes: Any) -> Tensor:
    return MSDeformAttnFunction.apply(VALUE, sizes, None, LOCATIONS, WEIGHTS)


def by_module(sizes: Any) -> Tensor:
    return MODULE(inputs(1, 3, 8), inputs(1, 3, 2, 2), inputs(1, S, 8), sizes)


def by_sample(sizes: Any) -> Tensor:
    """As mmcv, Mask2Former and OneFormer call."""
    return deformable_detr._sample_v1()(VALUE, sizes, LOCATIONS, WEIGHTS)


def by_sample_of_uneven_levels(sizes: Any) -> Tensor:
    """As RT-DETR 2 and D-FINE call, with 3 points on one level and 1 on the other."""
    sample = deformable_detr._sample_v2(lambda *args: pytest.fail("the original was called"))
    return sample(VALUE, sizes, LOCATIONS.flatten(3, 4), WEIGHTS.flatten(3), [3, 1])


DOORS = [by_function, by_module, by_sample, by_sample_of_uneven_levels]


@pytest.mark.parametrize("edit", [*COUNTED, *UNCOUNTED])
@pytest.mark.parametrize("door", DOORS)
def test_sizes_are_those_of_the_call(door: Callable[[Any], Tensor], edit: Edit) -> None:
    sizes = torch.tensor(BEFORE)
    assert torch.equal(door(sizes), door(BEFORE))
    edit(sizes, torch.tensor(AFTER))
    assert sizes.tolist() == [list(hw) for hw in AFTER]
    assert torch.equal(door(sizes), door(AFTER))
    assert not torch.allclose(door(BEFORE), door(AFTER), atol=1e-3)


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are taken for those of a device, which are not read at every call."""
    monkeypatch.setattr(tensors, "is_on_cpu", lambda tensor: False)


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("edit", COUNTED)
def test_sizes_on_a_device_are_read_again_after_torch_wrote_to_them(edit: Edit) -> None:
    sizes = torch.tensor(BEFORE)
    assert level_hw(sizes) == BEFORE
    edit(sizes, torch.tensor(AFTER))
    assert level_hw(sizes) == AFTER


@pytest.mark.usefixtures("on_a_device")
def test_sizes_on_a_device_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Tensor] = []
    read = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: reads.append(tensor) or read(tensor))
    sizes = torch.tensor(BEFORE)
    assert level_hw(sizes) == level_hw(sizes) == BEFORE
    assert len(reads) == 1


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("edit", UNCOUNTED)
def test_writes_that_torch_does_not_count_are_not_seen_on_a_device(edit: Edit) -> None:
    """As the module says; seeing them would wait for the device at every call."""
    sizes = torch.tensor(BEFORE)
    assert level_hw(sizes) == BEFORE
    edit(sizes, torch.tensor(AFTER))
    assert level_hw(sizes) == BEFORE
    assert level_hw(sizes.clone()) == AFTER


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device was found")
def test_layers_after_the_first_do_not_wait_for_the_gpu() -> None:
    sizes = torch.tensor(BEFORE, device="cuda")
    assert level_hw(sizes) == BEFORE
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert level_hw(sizes) == BEFORE
    finally:
        torch.cuda.set_sync_debug_mode("default")
    sizes.copy_(torch.tensor(AFTER))
    assert level_hw(sizes) == AFTER


def test_sizes_in_an_inference_tensor_are_those_of_the_call() -> None:
    with torch.inference_mode():
        sizes = torch.tensor(BEFORE)
        assert level_hw(sizes) == BEFORE
        sizes.copy_(torch.tensor(AFTER))
        assert level_hw(sizes) == AFTER
