# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments of a public operator in, those that torch's dispatcher takes out.

What torch would refuse with a RuntimeError of its own, or read wrongly, is told here; shapes and
dtypes are each operator's own (``_call.py``), for compilers check them too.
"""

from collections.abc import Iterable
from operator import index, mul
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MAX_INT64 = 2**63 - 1


def check_types(
    op: str, backend: str | None, *, may_be_none: str = "", **tensors: Tensor | None
) -> None:
    """Raise TypeError unless these are a backend's name, or None, and dense tensors."""
    if not (backend is None or isinstance(backend, str)):
        raise TypeError(f"{op}: backend must be a name or None, got {backend!r}")
    for name, tensor in tensors.items():
        if tensor is None and name == may_be_none:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{op}: {name} must be a dense tensor, got one of {tensor.layout}")


def flat_pairs(op: str, name: str, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return h0, w0, h1, w1, ... of (h, w) pairs.

    Raises:
        TypeError: These are not pairs of integers.
        ValueError: One does not have two sizes, or a size needs more than 64 bits.
    """
    if torch.compiler.is_compiling():  # tracers have integers of their own
        return [size for pair in pairs for size in pair]
    try:
        flat = [size for h, w in pairs for size in (h, w)]
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{op}: {name} must be (h, w) pairs of positive sizes, got {pairs!r}"
        ) from None
    return integers(op, name, flat)


def check_heads(op: str, qkv: Tensor, num_tokens: str) -> None:
    """Raise ValueError unless these are queries, keys and values by heads.

    Args:
        op: Name of the op, for the message.
        qkv: [B, N, 3, M, D].
        num_tokens: N, as the op names it.
    """
    if qkv.dim() != 5 or qkv.shape[2] != 3 or qkv.shape[3] < 1 or qkv.shape[4] < 1:
        raise ValueError(
            f"{op}: qkv must be [B, {num_tokens}, 3, M, D] with a head and a channel, got "
            f"{tuple(qkv.shape)}; torch.unflatten(qkv, 2, (3, num_heads, -1)) makes it of a "
            "projection"
        )


def has_bad_sizes(flat: list[int]) -> bool:
    """Return whether these are not h0, w0, h1, w1, ... of at least one map with pixels."""
    for size in flat:  # not any(...): a generator costs more than all else of a call's checks
        if size < 1:
            return True
    return len(flat) % 2 != 0 or not flat


def num_pixels(flat: list[int]) -> int:
    """Return how many pixels maps of sizes h0, w0, h1, w1, ... have together."""
    return sum(map(mul, flat[::2], flat[1::2]))


def integers(op: str, name: str, sizes: Iterable[Any]) -> list[int]:
    """Return sizes that may be numpy's; those that a tracer gave stay as they are.

    Raises:
        TypeError: It is no integer.
        ValueError: It needs more than 64 bits.
    """
    sizes = list(sizes)
    if torch.compiler.is_compiling():
        return sizes
    if set(map(type, sizes)) == {int} and max(sizes) <= _MAX_INT64 and min(sizes) >= -_MAX_INT64:
        return sizes
    return [_integer(op, name, size) for size in sizes]


def _integer(op: str, name: str, size: Any) -> int:
    if isinstance(size, torch.SymInt):
        return size  # type: ignore[return-value]
    try:
        number = int(index(size))  # index leaves True, which torch takes for no size, as it is
    except TypeError:
        raise TypeError(f"{op}: {name} must be integers, got {size!r}") from None
    if abs(number) > _MAX_INT64:
        raise ValueError(f"{op}: {name} must be positive sizes of a tensor, got {number}")
    return number


def pairs(flat: list[int]) -> list[tuple[int, int]]:
    """Return [(h0, w0), (h1, w1), ...] from h0, w0, h1, w1, ..."""
    return list(zip(flat[::2], flat[1::2], strict=True))
