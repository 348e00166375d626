# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""How many random examples a test runs, and the ways in which the same numbers lie in memory.

VITADAPTER_FUZZ=N in the environment makes every test run N times as many; if that is more, other
ones each time.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from torch import Tensor

FACTOR = float(os.environ.get("VITADAPTER_FUZZ", "1"))
RUNS: Counter[str] = Counter()  # by test

# Hypothesis draws numbers that it finds in the source of modules beside the test, if they have been
# imported before: the examples would depend on which tests ran first.
providers.is_local_module_file = lambda path: False


def calls(count: int) -> Callable[[Any], Any]:
    """Run a ``given`` test on ``count`` examples, the same in every run, and count them."""
    limits = settings(
        max_examples=max(1, round(count * FACTOR)),
        deadline=None,
        derandomize=FACTOR <= 1,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )

    def decorate(test: Any) -> Any:
        inner = test.hypothesis.inner_test

        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> None:
            RUNS[test.__name__] += 1
            inner(*args, **kwargs)

        test.hypothesis.inner_test = counted
        return limits(test)

    return decorate


def _offset(tensor: Tensor) -> Tensor:
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return memory[1:].view(tensor.shape).copy_(tensor)


def _reversed(tensor: Tensor) -> Tensor:
    dims = tuple(reversed(range(tensor.dim())))
    return tensor.permute(dims).contiguous().permute(dims)


def _every_second(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, torch.full_like(tensor, float("nan"))), -1)[..., 0]


def _rows_of_wider(tensor: Tensor) -> Tensor:
    """A slice of the second dimension's rows, as from a projection that makes several tensors."""
    if tensor.dim() < 3:
        return _offset(tensor)
    beside = torch.full_like(tensor, float("nan"))
    return torch.cat((beside, tensor), 2)[:, :, tensor.shape[2] :]


def _expanded(tensor: Tensor) -> Tensor:
    """Other numbers: the first of the first dimension, for all."""
    return tensor[:1].expand(tensor.shape) if tensor.shape[0] > 1 else tensor


def _negated(tensor: Tensor) -> Tensor:
    """A view whose numbers lie in memory with the other sign."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return tensor
    return torch.complex(tensor, -tensor).conj().imag


LAYOUTS = {
    "dense": lambda tensor: tensor,
    "offset": _offset,
    "reversed": _reversed,
    "every_second": _every_second,
    "rows_of_wider": _rows_of_wider,
    "expanded": _expanded,
    "negated": _negated,
}
layouts = st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=4, max_size=4)


def lay_out(names: list[str]) -> Callable[[Tensor], Tensor]:
    """Return a function that lays its first tensor out in the first way, the second in the ..."""
    queue = iter(names * 2)
    return lambda tensor: LAYOUTS[next(queue)](tensor)
