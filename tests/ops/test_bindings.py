# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The extension's functions with absurd arguments: they refuse, or compute, but never crash.

Addresses, strides and sizes beyond the memory behind an address are the caller's word; all else
that could corrupt memory is checked. tests/fuzz/bindings.py runs the same under a fuzzer.
"""

import os
from contextlib import suppress
from typing import Any, NamedTuple

import cuda_on_cpu
import pytest
import torch
from examples import calls
from hypothesis import given
from hypothesis import strategies as st

from vitadapter_fast import _C

# Room for four times as many elements as any tensor of the calls below has, in float64.
MEMORY = torch.zeros(8 * 4096, dtype=torch.float64)
RESULTS = torch.zeros(8 * 4096, dtype=torch.float64)


class Launcher(NamedTuple):
    """Arguments of a small call; ``bounded`` are sizes, at most what they are here or absurd."""

    names: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bounded: dict[str, Any]
    free: dict[str, Any]
    fixed: dict[str, Any] = {}


LAUNCHERS = [
    Launcher(
        ("ms_deform_attn_forward_cpu", "ms_deform_attn_backward_cpu"),
        ("value", "points", "weights", "grad_out"),
        ("out", "grad_value", "grad_points", "grad_weights"),
        {"value_shape": [2, 14, 2, 8], "queries": 5, "num_points": 3},
        {
            "value_dtype": 0,
            "points_dtype": 0,
            "weights_dtype": 0,
            "level_hw": [3, 4, 1, 2],
            "query_hw": [2, 2, 1, 1],
        },
        {
            "value_strides": (224, 16),
            "points_strides": (120, 24),
            "weights_strides": (60, 12),
            "grad_out_strides": (80, 16),
        },
    ),
    Launcher(
        ("dwconv_gelu_forward_cpu", "dwconv_gelu_backward_cpu"),
        ("tokens", "weight", "bias", "grad_out"),
        ("out", "grad_tokens", "grad_weight", "grad_bias"),
        {"tokens_shape": [2, 14, 40]},
        {"dtype": 0, "grid_hw": [3, 4, 1, 2]},
        {"tokens_strides": (560, 40), "grad_out_strides": (560, 40)},
    ),
    Launcher(
        ("window_attention_forward_cpu", "window_attention_backward_cpu"),
        ("qkv", "grad_out"),
        ("out", "logsumexp", "grad_qkv"),
        {"batch": 2, "heads": 2, "channels": 8, "hw": (3, 4)},
        {"dtype": 0, "window_size": 2},
        {"qkv_strides": (576, 48), "grad_out_strides": (192, 16)},
    ),
    Launcher(
        ("batch_norm_forward_cpu", "batch_norm_backward_cpu"),
        ("tokens", "weight", "bias", "grad_out"),
        ("mean", "variance", "out", "grad_tokens", "grad_weight", "grad_bias"),
        {"tokens_shape": (2, 14, 24)},
        {"dtype": 0, "eps": 1e-5, "has_relu": True, "has_planes": False},
        {"tokens_strides": (336, 24), "grad_out_strides": (336, 24)},
    ),
    Launcher(
        ("patch_embed_resize_add_cpu",),
        ("source", "tokens", "bias"),
        ("out",),
        {"batch": 2, "channels": 24},
        {
            "source_dtype": 0,
            "tokens_dtype": 0,
            "out_dtype": 0,
            "y": (3, 5, 3, 5, 5, 2, 4),
            "x": (4, 4, 4, 4, 4, 2, 2),
            "is_antialiased": False,
            "is_transposed": False,
        },
    ),
    Launcher(
        ("normalize_rows_cpu",),
        ("rows", "weight", "bias", "plus"),
        ("out", "mean", "rstd", "grad", "grad_weight", "grad_bias"),
        {"shape": (14, 24)},
        {"eps": 1e-5},
    ),
    Launcher(
        ("transpose_rows_cpu",),
        ("rows",),
        ("out",),
        {"shape": (14, 24)},
        {"out_dtype": 0},
        {"stride": 24},
    ),
    Launcher(("gelu_rows_cpu",), ("rows",), ("out", "grad"), {"count": 300}, {}),
    Launcher(
        ("rope_cpu",),
        ("qkv", "tables"),
        ("out",),
        {"qkv_shape": [2, 14, 2, 8], "hw": (3, 4)},
        {"dtype": 0, "is_inverse": False},
        {"qkv_strides": (672, 48), "out_strides": (672, 48)},
    ),
]
if _C.has_int8_products():
    LAUNCHERS.append(
        Launcher(
            ("int8_linear_cpu",),
            ("x", "weight", "scales", "bias", "plus"),
            ("steps", "out"),
            {"shape": [14, 24, 40]},
            {"has_gelu": True},
        )
    )
HALVES = len(LAUNCHERS)
if _C.has_half_products():
    dtypes = dict.fromkeys(("x_dtype", "weight_dtype", "out_dtype"), 0)
    strides = {"x_strides": (24, 1), "weight_strides": (1, 40)}
    LAUNCHERS += [
        Launcher(
            ("half_linear_cpu",),
            ("x", "weight", "gamma", "bias", "plus"),
            ("sums", "halves", "out"),
            {"shape": [14, 24, 40]},
            {"has_gelu": True, **dtypes},
            strides,
        ),
        Launcher(
            ("half_linear_cpu",),
            ("x", "weight", "bias", "norm_weight", "norm_bias"),
            ("mean", "rstd", "halves", "out"),
            {"shape": [14, 24, 40]},
            {"has_gelu": False, "eps": 1e-5, **dtypes},
            strides,
        ),
        Launcher(
            ("half_conv_cpu",),
            ("x", "weight", "bias"),
            ("halves", "out"),
            {"channels": [2, 16, 20], "hw": (3, 4)},
            {"x_dtype": 0, "out_dtype": 0, "stride": 1, "pads_rows": True, "has_relu": True},
            {"x_strides": (192, 64), "halves_bytes": 40000},
        ),
        Launcher(
            ("half_conv_gradient_cpu",),
            ("x", "grad"),
            ("parts", "out"),
            {"channels": [2, 16, 20], "hw": (3, 4)},
            {"x_dtype": 0, "grad_dtype": 0, "stride": 1},
            {"x_strides": (192, 64), "grad_strides": (240, 80), "parts_bytes": 40000},
        ),
    ]

INTEGERS = [
    *range(-3, 9),
    2**24,
    *(sign * (2**n - k) for n in (31, 32, 63, 64) for sign in (1, -1) for k in (0, 1)),
]
ODDITIES = [*INTEGERS, None, 1.5, float("nan"), "2", True, (), [1], {}]
ABSURD = [-1, -(2**31), -(2**63), 0, 2**49, 2**62, 2**63 - 1, 2**64, 1.5, None, "2"]
numbers = st.integers(0, 10**4)
hostile = {
    "launcher": st.sampled_from(LAUNCHERS),
    "which": numbers,
    "num_threads": st.sampled_from([1, 2, 3]) | st.sampled_from(INTEGERS),
    "some": st.lists(st.tuples(numbers, numbers), max_size=3),
}


def extension() -> Any:
    """Return the installed extension, or the sanitized one."""
    return cuda_on_cpu.load() if "VITADAPTER_TEST_CUDA_FLAGS" in os.environ else _C


def replaced(value: Any, n: int, bounded: bool) -> Any:
    """Replace a number; one that bounds memory becomes smaller, or absurd."""
    if isinstance(value, (tuple, list)) and (bounded or n % 7):
        items = list(value)
        at = n % len(items)
        # An axis is (inputs, outputs, ...): the rest is free.
        items[at] = replaced(items[at], n // len(items), bounded or (len(items) == 7 and at < 2))
        return type(value)(items)
    if bounded:
        smaller = list(range(value)) if isinstance(value, int) else []
        options = smaller + ABSURD
        return options[n % len(options)]
    return ODDITIES[n % len(ODDITIES)]


def check(launcher: Launcher, which: int, num_threads: int, some: list[tuple[int, int]]) -> None:
    addresses = dict.fromkeys(launcher.inputs, MEMORY.data_ptr())
    addresses |= dict.fromkeys(launcher.outputs, RESULTS.data_ptr())
    call = {**addresses, **launcher.bounded, **launcher.free, **launcher.fixed}
    call |= {"num_threads": num_threads}
    names = sorted(addresses | launcher.bounded | launcher.free)
    for where, n in some:
        name = names[where % len(names)]
        if name in addresses:
            call[name] = 0 if n % 2 else ODDITIES[-1 - n % 8]
        elif name in call and name not in launcher.fixed:
            call[name] = replaced(call[name], n, name in launcher.bounded)
        if n % 31 == 0:
            del call[name]
        if n % 37 == 0:
            call["unknown"] = n
        names.remove(name)
    run = getattr(extension(), launcher.names[which % len(launcher.names)])
    with suppress(ValueError, TypeError, MemoryError):
        run(**call)


@calls(500)
@given(**hostile)
def test_absurd_arguments_are_refused_or_harmless(**how: Any) -> None:
    check(**how)


REFUSED: dict[str, tuple[int, dict[str, Any], str]] = {
    "negative": (1, {"tokens_shape": [-2, 14, 40]}, "a size is negative"),
    "overflow": (1, {"tokens_shape": [2**40, 14, 2**40]}, "larger than any memory"),
    "sum": (1, {"grid_hw": [2**31 - 1] * 8}, "grids do not add up"),
    "dtype": (1, {"dtype": 4}, "unknown dtype code"),
    "no_threads": (0, {"num_threads": 0}, "num_threads must be 1 or more"),
    "no_address": (2, {"qkv": 0}, "the address of a tensor is missing"),
    "radius": (4, {"y": (3, 5, 3, 5, 5, 2**30, 4)}, "a radius does not fit"),
    "unit": (4, {"x": (4, 4, 4, 4, 3, 2, 2)}, "the unit is of neither side"),
    "level": (0, {"level_hw": []}, "there must be a level"),
    "norm": (5, {"shape": (3, 0)}, "there must be a channel"),
    "rows": (6, {"shape": (0, 2**31)}, "rows are too long"),
    "rounded": (6, {"out_dtype": 1}, "must be float32 or bfloat16"),
    "count": (7, {"count": -1}, "a size is negative"),
    "grid": (8, {"hw": (3, 5)}, "the grid has more tokens than there are"),
    "channels": (8, {"qkv_shape": [2, 14, 2, 6]}, "channels must divide by 4"),
}
if _C.has_int8_products():
    REFUSED["inputs"] = (9, {"shape": [14, 0, 40]}, "there must be 1 to 65536 inputs")
    REFUSED["long"] = (9, {"shape": [0, 65537, 40]}, "there must be 1 to 65536 inputs")
if _C.has_half_products():
    REFUSED["no_inputs"] = (HALVES, {"shape": [14, 0, 40]}, "there must be inputs")
    REFUSED["float16"] = (HALVES, {"weight_dtype": 1}, "must be float32 or bfloat16")
    REFUSED["result"] = (HALVES, {"out_dtype": 3}, "must be float32 or bfloat16")
    REFUSED["strides"] = (HALVES, {"weight_strides": (2, 40)}, "one of the strides must be 1")
    REFUSED["gelu"] = (HALVES, {"x_strides": (1, 14)}, "GELU and the norm want dense rows")
    REFUSED["rows_of_norm"] = (HALVES + 1, {"x_strides": (1, 14)}, "want dense rows")
    REFUSED["both"] = (HALVES + 1, {"has_gelu": True}, "either GELU or the norm")
    REFUSED["no_mean"] = (HALVES + 1, {"mean": 0}, "the address of a tensor is missing")
    conv = HALVES + 2
    REFUSED["map"] = (conv, {"hw": (2, 4), "pads_rows": False}, "the map is too small")
    REFUSED["inputs_of_map"] = (conv, {"channels": [2, 8, 20]}, "must divide by 16")
    REFUSED["stride"] = (conv, {"stride": 3}, "the stride must be 1 or 2")
    REFUSED["halves"] = (conv, {"halves_bytes": 9999}, "too little memory for halves")
    REFUSED["map_dtype"] = (conv, {"x_dtype": 1}, "must be float32 or bfloat16")
    REFUSED["map_strides"] = (conv, {"x_strides": (-1, 64)}, "a stride is negative")
    REFUSED["images"] = (conv, {"channels": [2**40, 16, 20]}, "larger than any memory")
    of_weight = HALVES + 3
    REFUSED["no_map"] = (of_weight, {"hw": (0, 4)}, "the map is empty")
    REFUSED["no_channels"] = (of_weight, {"channels": [2, 0, 20]}, "there must be channels")
    REFUSED["stride_of_map"] = (of_weight, {"stride": 0}, "the stride must be 1 or 2")
    REFUSED["parts"] = (of_weight, {"parts_bytes": 9999}, "too little memory for sums")
    REFUSED["grad_dtype"] = (of_weight, {"grad_dtype": 1}, "must be float32 or bfloat16")
    REFUSED["grad_strides"] = (of_weight, {"grad_strides": (240, -1)}, "a stride is negative")
    REFUSED["no_images"] = (of_weight, {"channels": [0, 2**40, 2**40]}, "larger than any memory")
    REFUSED["no_out"] = (of_weight, {"out": 0}, "the address of a tensor is missing")


@pytest.mark.parametrize(("which", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_could_corrupt_memory_is_refused(
    which: int, change: dict[str, Any], message: str
) -> None:
    launcher = LAUNCHERS[which]
    call: dict[str, Any] = dict.fromkeys(launcher.inputs, MEMORY.data_ptr())
    call |= dict.fromkeys(launcher.outputs, RESULTS.data_ptr())
    call |= {**launcher.bounded, **launcher.free, **launcher.fixed}
    for name in launcher.names:
        run = getattr(extension(), name)
        run(**call)
        with pytest.raises(ValueError, match=message):
            run(**(call | change))


def test_more_threads_than_a_process_can_have_are_not_started() -> None:
    launcher = LAUNCHERS[1]
    call: dict[str, Any] = dict.fromkeys(launcher.inputs, MEMORY.data_ptr())
    call |= dict.fromkeys(launcher.outputs, RESULTS.data_ptr())
    call |= {**launcher.bounded, **launcher.free, **launcher.fixed, "num_threads": 2**31 - 1}
    extension().dwconv_gelu_forward_cpu(**call)
