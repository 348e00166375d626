# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""An operator and its floating-point operations in; torch's counter, that knows them, out.

A multiply-add is 2. Counted are the sums over many terms: matrix products, convolutions, attention,
sampling. Biases, activations, norms, softmax and resizing are not: they cost bytes, not arithmetic.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# Takes what the operator takes, and ``out_val``, its result.
Formula = Callable[..., int]

_COUNTER = "torch.utils.flop_counter"
_formulas: dict[Any, Formula] = {}


def register(operator: Any, formula: Formula) -> None:
    """Let torch's counter count an operator, an ``OpOverloadPacket``, as soon as it is imported."""
    _formulas[operator] = formula
    if (counter := sys.modules.get(_COUNTER)) is not None:
        _tell(counter)


def none(call: Any, needs: Sequence[bool] = ()) -> int:
    """Return 0, for norms and rotations: what they cost is bytes, as torch's."""
    return 0


def _tell(counter: ModuleType) -> None:
    aten, known = torch.ops.aten, counter.flop_registry
    attention = "_scaled_dot_product_flash_attention"
    for end in ("", "_backward"):  # it knows those of GPUs
        of_cpu = getattr(aten, f"{attention}_for_cpu{end}")
        _formulas[of_cpu] = known[getattr(aten, f"{attention}{end}")]
    for operator, formula in _formulas.items():
        if operator not in known:
            counter.register_flop_formula(operator, get_raw=True)(formula)


def _linear(rows: Tensor, weight: Tensor, *rest: Any, out_val: Any = None) -> int:
    return 2 * rows.numel() * weight.shape[0]


class _CounterFinder(MetaPathFinder):
    """Tells the counter when it is imported; not before, since it imports triton."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _COUNTER else None
        if spec is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _tell(module)

        loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _CounterFinder())
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    register(torch.ops.mkldnn._linear_pointwise, _linear)
