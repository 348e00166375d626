# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Float32 products that are float32, for as long as a check takes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """Switch TF32 off in matrix products and convolutions; on leaving, all is as it was.

    TF32 rounds operands, and two right computations have different ones: with folded batch norms
    their maps differ by 1e-3. torch 2.9 has switches by operator beside the older ones, and an
    older one can raise where a newer was used. So each is set that can be read; the newer last, for
    they hold.
    """
    with ExitStack() as stack:
        for read, write, exact in _switches():
            try:
                before = read()
            except (RuntimeError, AttributeError):  # mixed by the user; an older torch
                continue
            write(exact)
            stack.callback(write, before)
        yield


def _switches() -> Iterator[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """Yield how each switch is read and written, and its value for exact products."""
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    yield _attribute(torch.backends.cudnn, "allow_tf32", False)
    for owner in ("cuda.matmul", "cudnn.conv", "cudnn.rnn"):
        module: Any = torch.backends
        for name in owner.split("."):
            module = getattr(module, name, None)
        yield _attribute(module, "fp32_precision", "ieee")


def _attribute(
    module: Any, name: str, exact: Any
) -> tuple[Callable[[], Any], Callable[[Any], None], Any]:
    return lambda: getattr(module, name), lambda value: setattr(module, name, value), exact
