# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What an op is made of in, its registered operators out: the only user of torch.library."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from . import _flops, _triton
from ._backends import checked_choice, choose, name_of, requested
from ._direct import Lower, Op, Operator, function

# Any: torch.library has untyped functions.
_LIBRARY: Any = cast(Any, torch.library).Library("vitadapter_fast", "DEF")
_AUTOCAST_KEYS = {
    "cpu": "AutocastCPU",
    "cuda": "AutocastCUDA",
    "mps": "AutocastMPS",
    "xpu": "AutocastXPU",
}


def define_forward(
    op: str,
    inputs: str,
    outputs: str,
    *,
    call_of: Callable[..., Any],
    check: Callable[[Any], None],
    new_outputs: Callable[[Any], Any],
    flops: Callable[[Any], int],
    backends: Sequence[ModuleType],
    order: Callable[[Any, bool], Sequence[ModuleType]] | None = None,
    lower_all: Lower | None = None,
) -> Operator:
    """Register an op without a gradient: choice, fake, autocast; arguments as for ``define``."""

    def choose_forward(call: Any, backend: str | None) -> ModuleType:
        return choose(op, order(call, False) if order else backends, call, backend)

    def chosen(*args: Any, backend: str | None = None) -> ModuleType:
        return choose_forward(call_of(*args), backend)

    def run(*args: Any, backend: str | None = None) -> Any:
        call = call_of(*args)
        return checked_choice(check, choose_forward, call, backend).forward(call)

    def fake(*args: Any, backend: str | None = None) -> Any:
        call = call_of(*args)
        check(call)
        return new_outputs(call)

    def count(*args: Any, backend: str | None = None, out_val: Any = None) -> int:
        return flops(call_of(*args))

    schema = f"{op}({inputs}, *, str? backend=None) -> {outputs}"
    forward = _operator(schema, run, fake, chosen, count)
    if lower_all is not None:
        _register_autocast(forward, lower_all)
    return forward


def define(
    op: str,
    inputs: str,
    outputs: str,
    *,
    call_of: Callable[..., Any],
    check: Callable[[Any], None],
    new_outputs: Callable[[Any], Any],
    flops: Callable[[Any], int],
    backward_flops: Callable[[Any, Sequence[bool]], int],
    backends: Sequence[ModuleType],
    order: Callable[[Any, bool], Sequence[ModuleType]] | None = None,
    saved: Sequence[int] = (),
    lower_all: Lower | None = None,
) -> Operator:
    """Register an op and its backward: choice, fakes, gradients, autocast; return the forward.

    Every tensor among the inputs has a gradient, of the outputs only the first: others are what
    backward needs again.

    Args:
        op: Its name in ``torch.ops.vitadapter_fast``; its backward's is ``{op}_backward``.
        inputs: Schema of the inputs.
        outputs: Schema of what it returns.
        call_of: The inputs in; out the call, on which all that follows works.
        check: Raises ValueError where a call is wrong.
        new_outputs: Memory for the outputs of a call.
        flops: Floating-point operations of a call, as ``_flops`` counts them.
        backward_flops: Those of backward, of a call and of which tensors a gradient is wanted.
        backends: Modules in the order in which they are tried. ``forward(call)`` returns the
            outputs; ``backward(call, grad_out, needs, *saved)`` a gradient or None for each tensor
            among the inputs, in the shape that it has in the call and any layout.
        order: Another order for a call and whether it is backward.
        saved: Which outputs are kept for backward, beside the inputs.
        lower_all: Casts the inputs for autocast, ``(dtype, inputs)``; None: there is no rule.
    """
    names = [name_of(module) for module in backends]

    def choose_backward(call: Any, backend: str | None) -> ModuleType:
        return choose(op, order(call, True) if order else backends, call, backend)

    def chosen_backward(
        grad_out: Tensor, *args: Any, needs: Sequence[bool], backend: str | None = None
    ) -> ModuleType:
        return choose_backward(call_of(*args[len(saved) :]), backend)

    def run_backward(
        grad_out: Tensor, *args: Any, needs: Sequence[bool], backend: str | None = None
    ) -> list[Tensor]:
        kept, args = args[: len(saved)], args[len(saved) :]
        call = call_of(*args)
        module = checked_choice(check, choose_backward, call, backend)
        grads = module.backward(call, grad_out, needs, *kept)
        return [
            # Dense, as the fake tells compilers: a backend may hand back a transposed view. An
            # operator cannot return None: an empty tensor stands for what nobody asked for.
            grad.contiguous().view(args[i].shape) if need else grad_out.new_empty(0)
            for i, grad, need in zip(tensors, grads, needs, strict=True)
        ]

    def fake_backward(
        grad_out: Tensor, *args: Any, needs: Sequence[bool], backend: str | None = None
    ) -> list[Tensor]:
        args = args[len(saved) :]
        return [
            args[i].new_empty(args[i].shape) if need else grad_out.new_empty(0)
            for i, need in zip(tensors, needs, strict=True)
        ]

    def count_backward(
        grad_out: Tensor,
        *args: Any,
        needs: Sequence[bool],
        backend: str | None = None,
        out_val: Any = None,
    ) -> int:
        return backward_flops(call_of(*args[len(saved) :]), needs)

    def save(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
        ctx.sizes = [value for i, value in enumerate(inputs) if i not in tensors]
        # Autograd may run backward in another thread, which does not see the caller's with block.
        name = requested(keyword_only_inputs["backend"])
        ctx.backend = name if name in names else None
        if saved:
            ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*(inputs[i] for i in tensors), *(output[i] for i in saved))

    def gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        values, sizes = list(ctx.saved_tensors), iter(ctx.sizes)
        kept = values[len(tensors) :]
        args = [values[tensors.index(i)] if i in tensors else next(sizes) for i in range(count)]
        needs = [ctx.needs_input_grad[i] and args[i] is not None for i in tensors]
        grads = backward(grad_out, *kept, *args, needs=needs, backend=ctx.backend)
        result: list[Tensor | None] = [None] * count
        for i, grad, need in zip(tensors, grads, needs, strict=True):
            result[i] = grad if need else None
        return tuple(result)

    forward = define_forward(
        op,
        inputs,
        outputs,
        call_of=call_of,
        check=check,
        new_outputs=new_outputs,
        flops=flops,
        backends=backends,
        order=order,
        lower_all=lower_all,
    )
    others = "".join(f"Tensor saved{i}, " for i in saved)
    backward = _operator(
        f"{op}_backward(Tensor grad_out, {others}{inputs}, *, bool[] needs, str? backend=None)"
        " -> Tensor[]",
        run_backward,
        fake_backward,
        chosen_backward,
        count_backward,
    )
    arguments = [a for a in forward.overload._schema.arguments if not a.kwarg_only]
    count = len(arguments)
    tensors = [i for i, a in enumerate(arguments) if "Tensor" in str(a.type)]
    define_gradient(forward, save, gradient)
    return forward


def lower_tensors(dtype: torch.dtype, inputs: Sequence[Any]) -> Sequence[Any]:
    """Cast all tensors among the inputs of an op as autocast does."""
    return [lower(value, dtype) if isinstance(value, Tensor) else value for value in inputs]


def lower(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast as autocast does: floating tensors, but never float64."""
    if tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype)


def _operator(
    schema: str, run: Op, fake: Op, chosen: Callable[..., ModuleType], count: _flops.Formula
) -> Operator:
    """Register ``run`` for every device, ``fake`` for tracing, ``count``; return the operator.

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
    packet = getattr(torch.ops.vitadapter_fast, name)
    _flops.register(packet, count)
    return Operator(packet.default, run)


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


def _register_autocast(op: Operator, lower_all: Lower) -> None:
    """Under autocast, call ``op`` on ``lower_all(dtype, args)`` with autocast switched off."""
    name = op.overload.__name__.split(".")[0]
    for device, key in _AUTOCAST_KEYS.items():

        def run(*args: Any, device: str = device, **kwargs: Any) -> Any:
            dtype = torch.get_autocast_dtype(device)
            with torch.autocast(device, enabled=False):
                return op.overload(*lower_all(dtype, args), **kwargs)

        _LIBRARY.impl(name, run, key)
    op.lower = lower_all
