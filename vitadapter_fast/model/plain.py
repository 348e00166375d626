# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A layer in; out whether its arithmetic may be done without calling it."""

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether ``module`` is just one of ``kinds``: not wrapped, hooked, pruned or sharded.

    Hooks count both ways: pruning, for one, makes the weight anew before every call.
    """
    weight = getattr(module, "weight", None)
    return (
        type(module) in kinds
        and isinstance(weight, Tensor)
        and not is_traceable_wrapper_subclass(weight)
        and not has_hooks(module)
    )


def has_hooks(module: nn.Module) -> bool:
    """Return whether someone wants to see the calls of ``module``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_watched(module: nn.Module) -> bool:
    """Return whether someone may see what goes in and out of ``module`` or a part of it."""
    return bool(
        nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
        or any(map(has_hooks, module.modules()))
    )
