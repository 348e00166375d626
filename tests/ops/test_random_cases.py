# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Random calls, small for the interpreters: every backend agrees with the float64 reference."""

from typing import Any

import pytest
import tolerance
import torch
from cases import (
    PATCH_MODES,
    AttnCase,
    ConvCase,
    PatchCase,
    WindowCase,
    make_conv_inputs,
    make_inputs,
    make_patch_inputs,
)
from cuda_on_cpu import route
from examples import calls, lay_out, layouts
from hypothesis import given
from hypothesis import strategies as st
from test_batch_norm import NormCase, make_norm_inputs
from test_batch_norm import check as check_norm
from test_dwconv_gelu import check as check_convolution
from test_half_conv import Case as HalfConvCase
from test_half_conv import check as check_half_conv
from test_half_conv_gradient import check as check_half_conv_gradient
from test_half_linear import Case as HalfCase
from test_half_linear import check as check_half
from test_half_linear import needs_halves
from test_int8_linear import Case as Int8Case
from test_int8_linear import check as check_int8
from test_int8_linear import needs_kernel
from test_ms_deform_attn import check as check_attention
from test_patch_embed import check as check_patch_embed
from test_rope import Case as RopeCase
from test_rope import check as check_rope
from test_window_attention import check as check_windows

from vitadapter_fast.ops import _triton

SIDES = st.sampled_from([1, 2, 3, 5, 7, 11])
SMALL_SIDES = st.sampled_from([1, 2, 3, 5])
SIZES = st.tuples(SIDES, SIDES)
NARROW = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
DTYPES = NARROW | st.just(torch.float64)

attention_cases = st.builds(
    AttnCase,
    name=st.just("random"),
    batch=st.integers(0, 2),
    # Not one: tolerance scales with the largest number, of which there must be some.
    heads=st.integers(2, 3),
    channels=st.sampled_from([5, 8, 16, 17, 32]),
    points=st.integers(1, 5),
    level_hw=st.lists(SIZES, min_size=1, max_size=4).map(tuple),
    query_hw=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=2).map(tuple),
    queries=st.integers(0, 7),
)
patch_cases = st.builds(
    lambda grid, patch, rest, **sizes: PatchCase(
        name="random",
        image_hw=(grid[0] * patch[0] + rest % patch[0], grid[1] * patch[1] + rest % patch[1]),
        patch_hw=patch,
        **sizes,
    ),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    patch=st.sampled_from([(1, 1), (2, 3), (4, 4), (7, 7), (14, 14), (16, 16)]),
    rest=st.integers(0, 15),
    batch=st.integers(0, 3),
    in_chans=st.integers(1, 4),
    channels=st.sampled_from([7, 8, 16, 33]),
    pos_hw=st.tuples(SMALL_SIDES, SMALL_SIDES),
)
conv_cases = st.builds(
    ConvCase,
    name=st.just("random"),
    batch=st.integers(0, 2),
    channels=st.sampled_from([7, 8, 12, 16, 33, 40]),
    grid_hw=st.lists(SIZES, min_size=1, max_size=4).map(tuple),
    has_bias=st.booleans(),
)
window_cases = st.builds(
    WindowCase,
    name=st.just("random"),
    batch=st.integers(0, 2),
    heads=st.integers(2, 3),
    channels=st.sampled_from([5, 8, 16, 17, 32, 64]),
    # Not few tokens: the largest error of few numbers says little of what others may have.
    hw=SIZES.filter(lambda hw: hw[0] * hw[1] > 11),
    window_size=st.sampled_from([1, 2, 3, 4, 7, 14]),
)
rope_cases = st.builds(
    RopeCase,
    name=st.just("random"),
    batch=st.integers(0, 3),
    hw=SIZES,
    prefix=st.integers(0, 6),
    heads=st.integers(1, 3),
    channels=st.sampled_from([4, 8, 12, 24, 32, 40, 64]),
)
int8_cases = st.builds(
    Int8Case,
    name=st.just("random"),
    shape=st.tuples(st.integers(0, 3), st.integers(1, 70), st.integers(1, 90)),
    outputs=st.integers(1, 120),
    has_bias=st.booleans(),
    has_plus=st.booleans(),
)
half_cases = st.builds(
    HalfCase,
    name=st.just("random"),
    rows=st.integers(0, 90),
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 250),
    has_gamma=st.booleans(),
    has_bias=st.booleans(),
    has_plus=st.booleans(),
)
half_conv_cases = st.builds(
    HalfConvCase,
    name=st.just("random"),
    batch=st.integers(0, 2),
    inputs=st.sampled_from([16, 32, 48, 112]),
    height=st.integers(3, 9),
    width=st.integers(1, 20),
    outputs=st.integers(1, 90),
    stride=st.integers(1, 2),
    pads_rows=st.booleans(),
    has_bias=st.booleans(),
    has_relu=st.booleans(),
)
half_conv_gradient_cases = st.builds(
    HalfConvCase,
    name=st.just("random"),
    batch=st.integers(0, 3),
    inputs=st.integers(1, 70),
    height=st.integers(1, 9),
    width=st.integers(1, 20),
    outputs=st.integers(1, 140),
    stride=st.integers(1, 2),
)
WIDE_OR_NOT = st.sampled_from([torch.float32, torch.bfloat16])
attention = {
    "ways": layouts,
    "case": attention_cases,
    "dtype": DTYPES,
    "seed": st.integers(0, 999),
    "spread": st.floats(0.5, 9),  # at 0 the points coincide, and no gradient of a logit is left
}
patches = {
    "ways": layouts,
    "case": patch_cases,
    "mode": st.sampled_from(PATCH_MODES),
    "dtype": DTYPES,
    "has_bias": st.booleans(),
    "seed": st.integers(0, 999),
}
windows = {
    "ways": layouts,
    "case": window_cases,
    "dtype": DTYPES,
    "seed": st.integers(0, 999),
    "spread": st.just(0.0) | st.floats(1e-3, 4),  # no denormal numbers: they have few digits
}
norm_cases = st.builds(
    NormCase,
    name=st.just("random"),
    batch=st.integers(1, 3),
    num_tokens=st.integers(16, 300),
    channels=st.sampled_from([1, 7, 8, 31, 40, 96]),
    has_relu=st.booleans(),
    has_planes=st.booleans(),
    mean=st.sampled_from([0.0, 1.0, -20.0]),
)
norms = {"ways": layouts, "case": norm_cases, "dtype": DTYPES, "seed": st.integers(0, 999)}
convolutions = {"ways": layouts, "case": conv_cases, "dtype": DTYPES, "seed": st.integers(0, 999)}


@pytest.fixture(autouse=True)
def slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerance, "slack", 4.0)


@pytest.fixture(params=["cpu", "cuda"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cuda":
        route(monkeypatch)
    return str(request.param)


# The interpreter takes a second for a call.
interpreted = pytest.mark.skipif(
    not _triton.is_interpreted(), reason="Triton runs on the device here: see test_cuda_device.py"
)


@calls(200)
@given(**attention)
def test_attention(backend: str, case: AttnCase, ways: list[str], **how: Any) -> None:
    check_attention(make_inputs(case, **how).map(lay_out(ways)), backend)


@calls(200)
@given(**patches)
def test_patch_embed(backend: str, case: PatchCase, mode: str, ways: list[str], **how: Any) -> None:
    check_patch_embed(make_patch_inputs(case, mode, **how).map(lay_out(ways)), backend)


@calls(200)
@given(**convolutions)
def test_convolution(backend: str, case: ConvCase, ways: list[str], **how: Any) -> None:
    check_convolution(make_conv_inputs(case, **how).map(lay_out(ways)), backend)


@calls(200)
@given(**norms)
def test_batch_norm(case: NormCase, ways: list[str], **how: Any) -> None:
    check_norm(make_norm_inputs(case, **how).map(lay_out(ways)), "cpu")


@calls(200)
@given(**windows)
def test_windows(case: WindowCase, ways: list[str], **how: Any) -> None:
    check_windows(case, backend="cpu", change=lay_out(ways), **how)


@calls(200)
@given(case=rope_cases, ways=layouts, dtype=DTYPES)
def test_rope(case: RopeCase, ways: list[str], dtype: torch.dtype) -> None:
    check_rope(case, dtype, "cpu", change=lay_out(ways))


@needs_kernel
@calls(200)
@given(case=int8_cases, ways=layouts, dtype=NARROW, has_gelu=st.booleans())
def test_int8_linear(case: Int8Case, ways: list[str], **how: Any) -> None:
    check_int8(case, change=lay_out(ways), **how)


@needs_halves
@calls(200)
@given(
    case=half_cases, ways=layouts, dtype=WIDE_OR_NOT, out_dtype=WIDE_OR_NOT, has_gelu=st.booleans()
)
def test_half_linear(case: HalfCase, ways: list[str], **how: Any) -> None:
    check_half(case, change=lay_out(ways), **how)


@needs_halves
@calls(200)
@given(case=half_conv_cases, ways=layouts, dtype=WIDE_OR_NOT, out_dtype=WIDE_OR_NOT)
def test_half_conv(case: HalfConvCase, ways: list[str], **how: Any) -> None:
    check_half_conv(case, change=lay_out(ways), **how)


@needs_halves
@calls(200)
@given(case=half_conv_gradient_cases, ways=layouts, dtype=WIDE_OR_NOT, grad_dtype=WIDE_OR_NOT)
def test_half_conv_gradient(case: HalfConvCase, ways: list[str], **how: Any) -> None:
    check_half_conv_gradient(case, change=lay_out(ways), **how)


@interpreted
@calls(4)
@given(case=rope_cases, ways=layouts, dtype=DTYPES)
def test_rope_in_triton(case: RopeCase, ways: list[str], dtype: torch.dtype) -> None:
    check_rope(case, dtype, "triton", change=lay_out(ways))


@interpreted
@calls(4)
@given(**attention)
def test_attention_in_triton(case: AttnCase, ways: list[str], **how: Any) -> None:
    check_attention(make_inputs(case, **how).map(lay_out(ways)), "triton")


@interpreted
@calls(4)
@given(**patches)
def test_patch_embed_in_triton(case: PatchCase, mode: str, ways: list[str], **how: Any) -> None:
    check_patch_embed(make_patch_inputs(case, mode, **how).map(lay_out(ways)), "triton")


@interpreted
@calls(4)
@given(**convolutions)
def test_convolution_in_triton(case: ConvCase, ways: list[str], **how: Any) -> None:
    check_convolution(make_conv_inputs(case, **how).map(lay_out(ways)), "triton")


@interpreted
@calls(4)
@given(**windows)
def test_windows_in_triton(case: WindowCase, ways: list[str], **how: Any) -> None:
    check_windows(case, backend="triton", change=lay_out(ways), **how)
