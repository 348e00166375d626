# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Calls with wrong, odd or absurd arguments: an error of ours that names the operator, or a result.

A result is that of the reference in float64, forward and in every gradient.
"""

import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cuda_on_cpu import route
from examples import LAYOUTS, calls
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitadapter_fast import BackendUnavailable
from vitadapter_fast.ops import (
    _triton,
    batch_norm,
    dwconv_gelu,
    int8_linear,
    ms_deform_attn,
    ms_deform_attn_grid,
    patch_embed,
    rope,
    window_attention,
)

HUGE = 2**45  # elements: beyond every address space
LEVELS = [(3, 4), (1, 2)]


class Op(NamedTuple):
    run: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    others: dict[str, Any]
    has_cuda: bool = True
    has_triton: bool = True
    constants: tuple[str, ...] = ()  # tensors without gradients


OPS = {
    "ms_deform_attn": Op(
        ms_deform_attn,
        {"value": (2, 14, 2, 8), "locations": (2, 5, 2, 2, 3, 2), "weights": (2, 5, 2, 2, 3)},
        {"level_hw": LEVELS},
    ),
    "ms_deform_attn_grid": Op(
        ms_deform_attn_grid,
        {"value": (2, 14, 2, 8), "offsets": (2, 5, 2, 2, 3, 2), "logits": (2, 5, 2, 2, 3)},
        {"level_hw": LEVELS, "query_hw": [(2, 2), (1, 1)]},
    ),
    "patch_embed": Op(
        patch_embed,
        {"image": (2, 3, 8, 9), "weight": (6, 3, 4, 4), "bias": (6,), "pos_embed": (6, 6)},
        {"pos_hw": (2, 3), "mode": "bicubic"},
    ),
    "dwconv_gelu": Op(
        dwconv_gelu,
        {"tokens": (2, 14, 6), "weight": (6, 1, 3, 3), "bias": (6,)},
        {"grid_hw": LEVELS},
    ),
    "int8_linear": Op(
        int8_linear,
        {"x": (2, 7, 10), "scales": (21,), "bias": (21,), "plus": (2, 7, 21)},
        {"weight": torch.ones(2, 3, 16, 4, dtype=torch.int8), "has_gelu": False},
        has_cuda=False,
        has_triton=False,
        constants=("scales", "bias"),
    ),
    "rope": Op(
        rope,
        {"qkv": (2, 14, 3, 2, 8), "tables": (7, 2, 2)},
        {"hw": (3, 4), "is_inverse": False},
        constants=("tables",),
    ),
    "window_attention": Op(
        window_attention,
        {"qkv": (2, 12, 3, 2, 4)},
        {"hw": (3, 4), "window_size": 2},
        has_cuda=False,
    ),
    "batch_norm": Op(
        batch_norm,
        {"tokens": (2, 12, 6), "weight": (6,), "bias": (6,)},
        {"eps": 1e-5, "has_relu": False, "has_planes": False},
        has_cuda=False,
        has_triton=False,
    ),
}

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.uint8,
    torch.bool,
]
NUMBERS = [
    -1,
    0,
    1,
    2,
    3,
    7,
    100,
    2**15,
    2**24,
    *(s * 2**n for n in (31, 32, 63, 70) for s in (1, -1)),
]
ODDITIES = [
    *NUMBERS,
    2**31 - 1,
    2**63 - 1,
    1.5,
    2.0,
    float("nan"),
    None,
    "2",
    True,
    (2, 2),
    [],
    b"",
]
# float64's largest is not among them: its products overflow to infinity in some order, not in all.
SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-41, -1e-310, 3e4, -1e30]


def select(tensor: Tensor, dim: int) -> Tensor:
    return tensor.select(dim % tensor.dim(), 0) if tensor.dim() else tensor


def resized(tensor: Tensor, dim: int, size: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim % len(shape)] = size
    return tensor.new_zeros(1).expand(shape) if size > 2**20 else tensor.new_ones(shape)


TENSOR_CHANGES: dict[str, Callable[[Tensor, int], Any]] = {
    "dtype": lambda tensor, n: tensor.to(DTYPES[n % len(DTYPES)]),
    "fewer_dims": select,
    "more_dims": lambda tensor, n: tensor.unsqueeze(n % (tensor.dim() + 1)),
    "empty": lambda tensor, n: resized(tensor, n, 0),
    "longer": lambda tensor, n: resized(tensor, n, 13),
    "huge": lambda tensor, n: resized(tensor, n, HUGE),
    "permuted": lambda tensor, n: tensor.movedim(n % tensor.dim(), 0),
    "scalar": lambda tensor, n: torch.tensor(1.0),
    "sparse": lambda tensor, n: tensor.to_sparse(),
    "meta": lambda tensor, n: tensor.to("meta"),
    "complex": lambda tensor, n: torch.complex(tensor, tensor).conj(),
    "array": lambda tensor, n: tensor.resolve_neg().numpy(),
    "list": lambda tensor, n: tensor.tolist(),
    "nothing": lambda tensor, n: None,
    "number": lambda tensor, n: n,
    "layout": lambda tensor, n: LAYOUTS[sorted(LAYOUTS)[n % len(LAYOUTS)]](tensor),
    "special": lambda tensor, n: tensor.index_fill(
        0, torch.tensor([n % tensor.shape[0]]), SPECIAL[n % len(SPECIAL)]
    ),
    "float16": lambda tensor, n: tensor.half(),
    "float64": lambda tensor, n: tensor.double(),
}


def one_size(value: Any, n: int) -> Any:
    """Replace one number of nested sizes."""
    if not isinstance(value, (list, tuple)) or not value:
        return ODDITIES[n % len(ODDITIES)]
    items = list(value)
    items[n % len(items)] = one_size(items[n % len(items)], n // len(items))
    return items


OTHER_CHANGES: dict[str, Callable[[Any, int], Any]] = {
    "one": one_size,
    "whole": lambda value, n: ODDITIES[n % len(ODDITIES)],
    "shorter": lambda value, n: value[:-1] if isinstance(value, (list, tuple, str)) else value,
    "longer": lambda value, n: value * 2 if isinstance(value, (list, tuple, str)) else value,
    "nested": lambda value, n: [value],
    "flag": lambda value, n: bool(n % 2),
    "mode": lambda value, n: "bicubic_antialias",
}

changes = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.sampled_from(sorted(TENSOR_CHANGES)),
        st.sampled_from(sorted(OTHER_CHANGES)),
        st.integers(0, 10**4),
    ),
    min_size=1,
    max_size=3,
)


def is_plain(tensor: Tensor) -> bool:
    """Whether a change can still be made of it, at no cost."""
    return (
        (tensor.layout, tensor.dtype, tensor.is_meta) == (torch.strided, torch.float32, False)
        and tensor.dim() > 0
        and 0 < tensor.numel() < 10**5
    )


def changed_call(op: Op, seed: int, some: list[tuple[int, str, str, int]]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    call: dict[str, Any] = {
        name: torch.rand(shape, generator=generator) for name, shape in op.shapes.items()
    } | op.others
    for which, change_tensor, change_other, n in some:
        name = sorted(call)[which % len(call)]
        value = call[name]
        if not isinstance(value, Tensor):
            if name in op.others:
                call[name] = OTHER_CHANGES[change_other](value, n)
        elif is_plain(value):
            call[name] = TENSOR_CHANGES[change_tensor](value, n)
    return call


def results(op: Op, call: dict[str, Any], backend: str | None) -> dict[str, Tensor]:
    """Return the output and, where there are tensors on the CPU, all gradients."""
    leaves = {}
    for name in op.shapes.keys() - op.constants:
        if isinstance(call[name], Tensor) and call[name].is_floating_point():
            leaves[name] = call[name].detach().requires_grad_()
    out = op.run(**(call | leaves), backend=backend)
    out = out[0] if isinstance(out, tuple) else out
    assert out.is_meta == any(leaf.is_meta for leaf in leaves.values())
    grads = torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def check_error(error: Exception, name: str) -> None:
    """Fail unless the error is one of ours, of Python's for arguments, or of no memory."""
    by_torch = ("can't allocate memory", "std::bad_alloc", "invalid for input of size")
    if any(told in str(error) for told in by_torch):
        return
    ours = (ValueError, TypeError, BackendUnavailable, MemoryError)
    assert isinstance(error, ours), repr(error)


def check(name: str, backend: str | None, seed: int, some: list[tuple[int, str, str, int]]) -> None:
    op = OPS[name]
    call = changed_call(op, seed, some)
    window = call.get("window_size")
    if isinstance(window, int) and window > 32 and backend != "cpu":
        return  # the reference pads
    tensors = [value for value in call.values() if isinstance(value, Tensor)]
    if backend == "reference" and any(tensor.numel() > 2**20 for tensor in tensors):
        return  # torch sums for hours before it finds that there is no memory
    try:
        got = results(op, call, backend)
    except Exception as error:
        check_error(error, name)
        return
    if got["out"].is_meta or (isinstance(window, int) and window > 32):
        return
    if any(name in call and not call[name].isfinite().all() for name in ("value", "weights")):
        # What is outside reads 0 times a pixel inside: which, is each backend's own choice.
        return
    if name == "dwconv_gelu" and not call["weight"].isfinite().all():
        return  # likewise: padding times infinity is NaN, or is left out
    wanted = results(op, call, "reference")
    large = float("inf") if name != "dwconv_gelu" else 1e18  # GELU's slope ends at -9e-18, not at 0
    if any((tensor.abs() >= large).any() for tensor in tensors if tensor.is_floating_point()):
        got = {"out": got["out"]}  # gradients are 0 x infinity, or not, with the order of products
    sizes = [tensor.abs().nan_to_num(0, 0, 0).max().item() for tensor in tensors if tensor.numel()]
    scale = max([1.0, *sizes])  # sums of large numbers may cancel
    for which, tensor in got.items():
        if name in ("patch_embed", "dwconv_gelu"):
            # torch's convolution on the CPU makes NaN of an infinite bias, and of pixels that no
            # kernel of NaN covers.
            tensor = tensor.where(~wanted[which].isnan(), float("nan"))
        narrow = tensor.dtype in (torch.float16, torch.bfloat16)
        torch.testing.assert_close(
            tensor,
            wanted[which],
            rtol=0.05 if narrow else 1e-3,
            atol=scale * (0.05 if narrow else 1e-3),
            equal_nan=True,
        )


hostile = {"name": st.sampled_from(sorted(OPS)), "seed": st.integers(0, 999), "some": changes}


@pytest.fixture(autouse=True, scope="module")
def few_gigabytes() -> Iterator[None]:
    """Let a call that asks for much more memory fail, not the machine."""
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("backend", ["cpu", "reference", None])
@calls(200)
@given(**hostile)
def test_call_gives_a_result_or_an_error_of_ours(backend: str | None, **how: Any) -> None:
    check(backend=backend, **how)


@calls(200)
@given(**hostile)
def test_call_of_the_cuda_kernels_gives_a_result_or_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, **how: Any
) -> None:
    route(monkeypatch)
    check(backend="cuda", **how)


@pytest.mark.skipif(not _triton.is_interpreted(), reason="Triton runs on the device here")
@calls(40)
@given(**hostile)
def test_call_in_triton_gives_a_result_or_an_error_of_ours(**how: Any) -> None:
    check(backend="triton", **how)
