# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A module and its inputs in, its outputs out: training computes its activations a second time."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, *args: Any) -> Any:
    """Return ``module(*args)``; training runs it again for its activations."""
    if not (module.training and torch.is_grad_enabled()):
        return module(*args)
    if torch.compiler.is_compiling():
        # A compiler cannot tell a second run from a first, which moves the running statistics.
        if any(_updated_norms(module)):
            return module(*args)
        return checkpoint(module, *args, use_reentrant=False)
    contexts = partial(_contexts, module)
    return checkpoint(module, *args, use_reentrant=False, context_fn=contexts)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), keep_statistics(module)


def _updated_norms(module: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    for part in module.modules():
        if not isinstance(part, nn.modules.batchnorm._BatchNorm):
            continue
        if part.track_running_stats and part.training:
            yield part


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Let the batch norms of ``module`` normalize without updating their running statistics.

    For a forward pass that repeats one, as checkpointing does.
    """
    updating = list(_updated_norms(module))
    momenta = [norm.momentum for norm in updating]
    # Without tracking they would keep fewer tensors than at first, which checkpointing refuses.
    for norm in updating:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(updating, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
