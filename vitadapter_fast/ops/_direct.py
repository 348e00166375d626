# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments of an operator in; out whether torch's dispatcher may be passed by, and how.

Its way to a Python function costs 20 us a call, 40 with autocast, 50 where gradients are recorded
(torch 2.13, AMD EPYC): at batch 1 more than what a GPU has to do. Where nobody listens there, the
function is called at once. Listeners are compilers, tracers, modes, transforms, profilers, which
show operators by name, and tensors that are more than memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_C: Any = torch._C
_PLAIN = (Tensor, torch.nn.Parameter)
_CONSTANTS = (list, int, float, bool, str, type(None))
_DEVICES = ("CPU", "CUDA")

Op = Callable[..., Any]
Lower = Callable[[torch.dtype, Sequence[Any]], Sequence[Any]]


def _plain_keys() -> int:
    """Return the dispatch keys that a tensor may have, as bits; 0 where torch no longer tells."""
    try:
        keys = _C._dispatch_keys(torch.empty(0, dtype=torch.float32, device="cpu"))
        names = [f"{kind}{device}" for device in _DEVICES for kind in ("", "Autograd", "Autocast")]
        for name in ("ADInplaceOrView", *names):
            keys = keys.add(getattr(_C.DispatchKey, name))
        # All that is_allowed asks.
        _ = _C._get_tracing_state(), _C._is_torch_function_mode_enabled()
        _ = _C._len_torch_dispatch_stack(), _C._functorch.maybe_current_level()
        _ = _C._autograd._profiler_enabled()
        return int(keys.raw_repr())
    except (AttributeError, TypeError):
        return 0


_PLAIN_KEYS = _plain_keys()


def is_allowed(args: Sequence[Any]) -> bool:
    """Return whether nobody listens to a call with these arguments; not while compiling."""
    if (
        not _PLAIN_KEYS
        or _C._len_torch_dispatch_stack()
        or _C._is_torch_function_mode_enabled()
        or _C._functorch.maybe_current_level() is not None
        or _C._get_tracing_state() is not None
        or _C._autograd._profiler_enabled()
    ):
        return False
    for arg in args:
        kind = type(arg)  # not isinstance, which asks torch's metaclass
        if kind in _PLAIN:
            # Bits, since sets of keys cannot be compared.
            if _C._dispatch_keys(arg).raw_repr() & ~_PLAIN_KEYS:
                return False
        elif kind not in _CONSTANTS:
            return False
    return True


def is_recorded(args: Sequence[Any]) -> bool:
    """Return whether a call with these arguments, which ``is_allowed``, has gradients."""
    return torch.is_grad_enabled() and any(
        type(arg) in _PLAIN and arg.requires_grad for arg in args
    )


def autocast(tensor: Tensor) -> tuple[str, torch.dtype] | None:
    """Return the device and dtype of the autocast that is on for this tensor, or None."""
    device = "cpu" if tensor.is_cpu else "cuda"
    if not torch.is_autocast_enabled(device):
        return None
    return device, torch.get_autocast_dtype(device)


@contextmanager
def without_autocast(device: str) -> Iterator[None]:
    """Switch autocast off in the block; torch's own context manager takes four times as long."""
    torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, True)


class Operator:
    """An operator of torch.ops.vitadapter_fast; called, it takes the shortest way that is right.

    Attributes:
        overload: What torch's dispatcher knows: for compilers, tracers, modes and subclasses.
        run: The function itself.
        lower: Casts arguments for autocast, or None where there is no rule.
        function: Records gradients without the dispatcher, or None where there are none.
    """

    def __init__(self, overload: Any, run: Op) -> None:
        """Start with an operator without gradient and without a rule for autocast."""
        self.overload = overload
        self.run = run
        self.lower: Lower | None = None
        self.function: type[torch.autograd.Function] | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return the operator's result; options are its keyword arguments."""
        if torch.compiler.is_compiling() or not is_allowed(args):
            return self.overload(*args, **options)
        if self.lower is not None and (lowered := autocast(args[0])) is not None:
            device, dtype = lowered
            with without_autocast(device):
                return self._call(self.lower(dtype, args), options)
        return self._call(args, options)

    def _call(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        if self.function is None or not is_recorded(args):
            return self.run(*args, **options)
        return self.function.apply(*args, options)  # type: ignore[no-untyped-call]


def function(
    run: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """Return what records gradients of ``run``: as torch.library does, by torch's own means.

    Args:
        run: Takes the operator's arguments, and its options by name.
        setup_context: As for ``torch.library.register_autograd``.
        backward: Likewise.
    """

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *inputs, options = args
            output = run(*inputs, **options)
            setup_context(ctx, tuple(inputs), {"backend": None, **options}, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
            return (*backward(ctx, *grads), None)

    return Recorded
