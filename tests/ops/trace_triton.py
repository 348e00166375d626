# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Trace the operators as compilers do where triton is chosen, on fake tensors and without a GPU.

    python trace_triton.py    prints {call: what its graph holds} as JSON

In a process of its own: interpreted kernels cannot be traced.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import triton
from cases import AttnCase, AttnInputs, make_inputs
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import aot_export_joint_simple
from triton.backends.compiler import GPUTarget

from vitadapter_fast.ops import _triton
from vitadapter_fast.ops.ms_deform_attn import _value_gradient, cpu

CASE = AttnCase("traced", 2, 2, 32, 4, ((4, 4),), ((4, 4), (2, 2)))


class Driver:
    """Stands for a device's driver, which torch asks what to compile for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_benchmarker(self) -> None:
        """Return None: nothing is timed."""


def kernels_of(graph: torch.fx.GraphModule) -> list[str]:
    """Return our operators, and for every kernel its name and the tensors that it writes."""
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    found = []
    for node in graph.graph.nodes:
        if "triton_kernel_wrapper" in str(node.target):
            kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            kernel = getattr(kernel, "fn", kernel)  # in an autotuner that holds the launch
            written = node.kwargs.get("tensors_to_clone", [])
            name = getattr(kernel, "__name__", None) or kernel.fn.__name__
            found.append(f"{name}: {', '.join(sorted(written))}")
        elif "vitadapter_fast" in str(node.target):
            found.append(str(node.target))
    return found


def traced(case: AttnCase, backend: str | None) -> list[str]:
    inputs = make_inputs(case, dtype=torch.float32).requires_grad()

    def run(value: Tensor, points: Tensor, weights: Tensor) -> tuple[Tensor]:
        return (AttnInputs(case, value, points, weights).run(backend),)

    return kernels_of(aot_export_joint_simple(run, inputs.tensors(), trace_joint=True))


def traced_with_dynamic_sizes() -> list[str]:
    """Return what the forward graph holds whose image sizes are symbols."""
    found: list[str] = []

    class Traced(Exception):
        """Ends the compilation: there is no device to compile for."""

    def keep(graph: torch.fx.GraphModule, args: Any) -> Any:
        found.extend(kernels_of(graph))
        raise Traced

    def run(value: Tensor, points: Tensor, weights: Tensor, h: int, w: int) -> Tensor:
        case = AttnCase("dynamic", 1, 2, 8, 2, ((h, w),), ((w, h),))
        return AttnInputs(case, value, points, weights).run("triton")

    backend = aot_autograd(fw_compiler=keep)
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=backend)
    inputs = make_inputs(AttnCase("", 1, 2, 8, 2, ((5, 7),), ((7, 5),)), dtype=torch.float32)
    try:
        compiled(*inputs.tensors(), 5, 7)
    except Exception as error:
        if "Traced" not in repr(error):
            raise
    return found


def exported(case: AttnCase) -> list[str]:
    class Module(torch.nn.Module):
        def forward(self, value: Tensor, points: Tensor, weights: Tensor) -> Tensor:
            return AttnInputs(case, value, points, weights).run("triton")

    program = torch.export.export(Module(), make_inputs(case, dtype=torch.float32).tensors())
    return kernels_of(program.graph_module)


def main() -> None:
    triton.runtime.driver.set_active(Driver())
    found: dict[str, Any] = {}
    with (
        mock.patch.object(_triton, "unsupported_reason", lambda tensor: None),
        mock.patch.object(cpu, "unsupported_reason", lambda call: "another backend is tested"),
    ):
        found["by rule"] = traced(CASE, None)
        found["classic"] = traced(CASE.classic(), "triton")
        with mock.patch.object(_value_gradient, "POINTS_PER_PIXEL", 0):
            found["records"] = traced(CASE, "triton")
        found["reference"] = traced(CASE, "reference")
        found["dynamic"] = traced_with_dynamic_sizes()
        found["exported"] = exported(CASE)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
