# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Addresses, strides and sizes on a device: a processor forgives what a GPU does not."""

from collections.abc import Callable

import pytest
import torch
from cases import AWKWARD, REAL, AttnCase, ConvCase, ConvInputs, make_conv_inputs, make_inputs
from test_cuda_device import DEVICE, assert_same, how, on_device
from test_dwconv_gelu import cotangent_of as conv_cotangent
from test_dwconv_gelu import results as conv_results
from test_ms_deform_attn import DTYPES, case_id, check, cotangent_of, dtype_id, results
from torch import Tensor

from vitadapter_fast.native import cuda_device

__all__ = ["how"]  # a fixture

pytestmark = pytest.mark.cuda
FORMS: dict[str, Callable[[AttnCase], AttnCase]] = {
    "grid": lambda case: case,
    "classic": AttnCase.classic,
}


def moved_by(elements: int, tensor: Tensor) -> Tensor:
    """Return a copy that starts some elements after the beginning of its memory."""
    room = torch.empty(tensor.numel() + elements, dtype=tensor.dtype, device=tensor.device)
    return room[elements:].view_as(tensor).copy_(tensor)


def widened(tensor: Tensor, by: int) -> Tensor:
    """Return a view of the same numbers whose tokens lie ``by`` elements further apart."""
    B, N = tensor.shape[:2]
    row = tensor[0, 0].numel()
    room = torch.full((B, N, row + by), float("nan"), dtype=tensor.dtype, device=tensor.device)
    view = room[..., :row].unflatten(2, tensor.shape[2:])
    return view.copy_(tensor)


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("elements", [1, 4])
@pytest.mark.parametrize("name", ["value", "points", "weights"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=dtype_id)
def test_any_address(backend: str, dtype: torch.dtype, form: str, name: str, elements: int) -> None:
    inputs = on_device(FORMS[form](AWKWARD[2]), dtype)
    cotangent = cotangent_of(inputs).to(DEVICE)
    wanted = results(inputs, backend, cotangent)
    setattr(inputs, name, moved_by(elements, getattr(inputs, name)))
    got = results(inputs, backend, cotangent)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2  # another kernel may have run
    for key in wanted:
        torch.testing.assert_close(got[key], wanted[key], rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("by", [1, 8])
@pytest.mark.parametrize("name", ["value", "points", "weights"])
@pytest.mark.parametrize("form", FORMS)
def test_any_stride(backend: str, form: str, name: str, by: int) -> None:
    inputs = on_device(FORMS[form](AWKWARD[2]))
    cotangent = cotangent_of(inputs).to(DEVICE)
    wanted = results(inputs, backend, cotangent)
    setattr(inputs, name, widened(getattr(inputs, name), by))
    assert_same(results(inputs, backend, cotangent), wanted)


@pytest.mark.parametrize("elements", [1, 3])
def test_any_address_of_the_cotangent(backend: str, elements: int) -> None:
    inputs = on_device(REAL[1])
    cotangent = cotangent_of(inputs).to(DEVICE)
    wanted = results(inputs, backend, cotangent)
    assert_same(results(inputs, backend, moved_by(elements, cotangent)), wanted)


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("wide", ["points", "weights"])
def test_mixed_dtypes_at_specialized_sizes(backend: str, wide: str) -> None:
    inputs = make_inputs(AWKWARD[2], dtype=torch.bfloat16)
    setattr(inputs, wide, getattr(inputs, wide).float() + 1e-3)
    check(inputs, backend, DEVICE)


# Launches have at most 65,535 blocks along their second and third axis.
MANY = [
    AttnCase("images", 65_537, 1, 16, 4, ((1, 2),), ((1, 1),)),
    AttnCase("tiles", 1, 1, 16, 4, ((2, 2),), ((1, 1_100_000),)),
    AttnCase("grids", 1, 1, 16, 4, ((2, 2),), ((1_400_000, 1), (2, 2))),
]


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("case", MANY, ids=case_id)
def test_more_tiles_and_images_than_a_launch_has_blocks(case: AttnCase) -> None:
    if (reason := cuda_device.cuda_unavailable_reason()) is not None:
        pytest.skip(reason)
    inputs = make_inputs(case, dtype=torch.float32)
    cotangent = cotangent_of(inputs)
    # On the CPU: torch's own sampling has no deterministic gradient on a GPU.
    wanted = results(inputs, "reference", cotangent)
    got = results(inputs.map(lambda tensor: tensor.to(DEVICE)), "cuda", cotangent)
    for name in wanted:
        torch.testing.assert_close(got[name].cpu(), wanted[name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("elements", [1, 2, 4])
@pytest.mark.parametrize("name", ["tokens", "weight", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_convolution_at_any_address(
    backend: str, dtype: torch.dtype, name: str, elements: int
) -> None:
    case = ConvCase("moved", 2, 64, ((9, 7), (4, 5)))
    inputs = make_conv_inputs(case, dtype=dtype, device=DEVICE)
    cotangent = conv_cotangent(inputs).to(DEVICE)
    wanted = conv_results(inputs, backend, cotangent)
    tensors = {each: getattr(inputs, each) for each in ("tokens", "weight", "bias")}
    tensors[name] = moved_by(elements, tensors[name])
    got = conv_results(ConvInputs(case, **tensors), backend, cotangent)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for key in wanted:
        torch.testing.assert_close(got[key], wanted[key], rtol=tolerance, atol=tolerance, msg=key)
