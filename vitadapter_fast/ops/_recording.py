# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A block of a reference's backward in; its gradients recorded out, wherever it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_C: Any = torch._C


@contextmanager
def recording() -> Iterator[None]:
    """Record gradients in the block.

    Also where a dispatch mode, as torch's FLOP counter, calls the operator: it does so below
    autograd, where ``torch.enable_grad`` alone records nothing.
    """
    key = _C.DispatchKey.AutogradFunctionality
    with torch.enable_grad(), _C._SetExcludeDispatchKeyGuard(key, False):
        yield
