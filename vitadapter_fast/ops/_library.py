# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Schemas and Python functions in, registered operators out: the only user of torch.library."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from . import _triton
from ._backends import name_of
from ._direct import Lower, Op, Operator, function

# Any: torch.library has untyped functions.
_LIBRARY: Any = cast(Any, torch.library).Library("vitadapter_fast", "DEF")
_AUTOCAST_KEYS = {
    "cpu": "AutocastCPU",
    "cuda": "AutocastCUDA",
    "mps": "AutocastMPS",
    "xpu": "AutocastXPU",
}


def define_op(schema: str, run: Op, fake: Op, chosen: Callable[..., ModuleType]) -> Operator:
    """Register ``run`` for every device and ``fake`` for tracing; return the operator.

    Where ``chosen(...)``, the backend of a call, is triton, torch.compile and AOTInductor trace
    ``run`` and see its kernels; otherwise, and for torch.export, the operator is opaque.
    """
    name = _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vitadapter_fast::{name}", fake, lib=_LIBRARY)

    # As torch.library.triton_op does, which knows no other backends: compilers functionalize what
    # they trace, so under their mode the operator decomposes.
    def decompose(mode: Any, op: Op, types: Any, args: Any, kwargs: Any) -> Any:
        with mode:  # to choose may take a view
            is_opaque = _is_exporting() or not _can_be_traced(chosen(*args, **(kwargs or {})))
        if is_opaque:
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode, _triton.traced():
            return run(*args, **(kwargs or {}))

    cast(Any, torch.library).register_torch_dispatch(
        f"vitadapter_fast::{name}", FunctionalTensorMode, decompose, lib=_LIBRARY
    )
    return Operator(getattr(torch.ops.vitadapter_fast, name).default, run)


def _can_be_traced(backend: ModuleType) -> bool:
    return name_of(backend) == "triton" and not _triton.is_interpreted()


def _is_exporting() -> bool:
    # An exported program is kept and moved: it must not hold kernels for one kind of device.
    decomposes = getattr(torch._functorch.config, "decompose_custom_triton_ops", None)
    # torch 2.6 has no such switch; there only export says that it compiles.
    return torch.compiler.is_compiling() if decomposes is None else not decomposes


def define_gradient(op: Operator, setup_context: Op, backward: Op) -> None:
    """Register the backward of ``op``; gradients of gradients are refused with a clear error.

    Only the first output has a gradient; others are what backward needs again. After the arguments
    ``ctx.needs_input_grad`` may have one entry more.
    """

    def checked_backward(ctx: Any, grad_out: Tensor, *rest: None) -> tuple[Tensor | None, ...]:
        # Whatever the cotangent: the inputs are saved, so the result would depend on them.
        if torch.is_grad_enabled():
            raise NotImplementedError(
                f"{op.overload}: second derivatives (create_graph=True) are not implemented"
            )
        return backward(ctx, grad_out)  # type: ignore[no-any-return]

    torch.library.register_autograd(
        op.overload,
        checked_backward,
        setup_context=setup_context,
        lib=_LIBRARY,
    )
    op.function = function(op.run, setup_context, checked_backward)


def define_autocast(op: Operator, lower_all: Lower) -> None:
    """Under autocast, call ``op`` on ``lower_all(dtype, args)`` with autocast switched off."""
    name = op.overload.__name__.split(".")[0]
    for device, key in _AUTOCAST_KEYS.items():

        def run(*args: Any, device: str = device, **kwargs: Any) -> Any:
            dtype = torch.get_autocast_dtype(device)
            with torch.autocast(device, enabled=False):
                return op.overload(*lower_all(dtype, args), **kwargs)

        _LIBRARY.impl(name, run, key)
    op.lower = lower_all


def lower(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast as autocast does: floating tensors, but never float64."""
    if tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype)
