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

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

import torch
from cases import AttnCase, AttnInputs, make_inputs
from stub_driver import stub_driver
from tiny import TINY
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.compile_fx import compile_fx_aot

import vitadapter_fast as vf
from vitadapter_fast.export import export_program
from vitadapter_fast.ops import _triton, dwconv_gelu, patch_embed
from vitadapter_fast.ops.ms_deform_attn import _value_gradient, cpu

CASE = AttnCase("traced", 2, 2, 32, 4, ((4, 4),), ((4, 4), (2, 2)))


# All parts of the model once: windowed and global attention, an injector, an extractor.
ONE_STAGE: dict[str, Any] = {
    **TINY,
    "depth": 2,
    "interaction_indexes": [[0, 1]],
    "use_extra_extractor": False,
    "window_attn": [True, False],
    "window_size": [3, None],
}


class Traced(Exception):
    """Ends a compilation: there is no device to compile for."""


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


def compile_until_traced(run: Any, *args: Any, **options: Any) -> None:
    try:
        torch.compile(run, fullgraph=True, **options)(*args)
    except Exception as error:
        if "Traced" not in repr(error):
            raise


def traced_with_dynamic_sizes() -> list[str]:
    """Return what the forward graph holds whose image sizes are symbols."""
    found: list[str] = []

    def keep(graph: torch.fx.GraphModule, args: Any) -> Any:
        found.extend(kernels_of(graph))
        raise Traced

    def run(value: Tensor, points: Tensor, weights: Tensor, h: int, w: int) -> Tensor:
        case = AttnCase("dynamic", 1, 2, 8, 2, ((h, w),), ((w, h),))
        return AttnInputs(case, value, points, weights).run("triton")

    inputs = make_inputs(AttnCase("", 1, 2, 8, 2, ((5, 7),), ((7, 5),)), dtype=torch.float32)
    backend = aot_autograd(fw_compiler=keep)
    compile_until_traced(run, *inputs.tensors(), 5, 7, dynamic=True, backend=backend)
    return found


def traced_with_dynamic_channels() -> list[str]:
    """Return what the graph of two operators holds all of whose sizes are symbols."""
    found: list[str] = []

    def keep(graph: torch.fx.GraphModule, args: Any) -> Any:
        found.extend(kernels_of(graph))
        raise Traced

    def run(image: Tensor, patch: Tensor, table: Tensor, taps: Tensor) -> Tensor:
        tokens = patch_embed(image, patch, None, table, (3, 3))
        return dwconv_gelu(tokens, [(tokens.shape[1], 1)], taps, None)

    shapes = (2, 3, 64, 64), (24, 3, 16, 16), (9, 24), (24, 1, 3, 3)
    tensors = [torch.empty(shape, device="meta") for shape in shapes]
    backend = aot_autograd(fw_compiler=keep)
    compile_until_traced(run, *tensors, dynamic=True, backend=backend)
    return found


def trained_with_dynamic_height() -> dict[str, list[str]]:
    """Return what both graphs of a training step of a model hold; one symbol, to be quick."""
    found = {}

    def partition(joint: torch.fx.GraphModule, inputs: Any, **kwargs: Any) -> Any:
        # As Inductor does: it needs both graphs to be cut where nothing is written.
        parts = min_cut_rematerialization_partition(joint, inputs, **kwargs)
        for name, graph in zip(("forward", "backward"), parts, strict=True):
            found[name] = kernels_of(graph)
        raise Traced

    image = torch.empty(2, 3, 96, 160, device="meta")
    torch._dynamo.mark_dynamic(image, 2)
    with torch.device("meta"):
        model = vf.ViTAdapter(**ONE_STAGE)
    backend = aot_autograd(fw_compiler=None, partition_fn=partition)
    compile_until_traced(model, image, backend=backend)
    return found


def packaged_with_dynamic_sizes() -> tuple[int, list[str]]:
    """Return how many outputs the graph has that AOTInductor compiles, and what it holds."""
    found = []

    def keep(graph: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        found.append((len(graph.graph.output_node().args[0]), kernels_of(graph)))
        raise Traced

    program = export_program(vf.ViTAdapter(**ONE_STAGE).eval())
    try:
        with torch.no_grad():
            compile_fx_aot(program.module(), list(program.example_inputs[0]), inner_compile=keep)
    except Exception as error:
        if "Traced" not in repr(error):
            raise
    return found[0]


def exported(case: AttnCase) -> list[str]:
    class Module(torch.nn.Module):
        def forward(self, value: Tensor, points: Tensor, weights: Tensor) -> Tensor:
            return AttnInputs(case, value, points, weights).run("triton")

    program = torch.export.export(Module(), make_inputs(case, dtype=torch.float32).tensors())
    return kernels_of(program.graph_module)


def main() -> None:
    found: dict[str, Any] = {}
    with (
        stub_driver(),
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
        with vf.backend("triton"):
            found["dynamic channels"] = traced_with_dynamic_channels()
            found["trained"] = trained_with_dynamic_height()
            found["packaged"] = packaged_with_dynamic_sizes()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
