# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model in, an ONNX file out: of standard operators, or with TensorRT's attention plugin."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model import ViTAdapter
from ..model.grid import STRIDES
from ._decompositions import (
    PLUGIN,
    PLUGIN_DOMAIN,
    decompositions,
    sample_by_gather,
    sample_by_plugin,
)
from ._files import appearing
from ._parity import CHECKED_SIZES, Parity, compare
from ._program import export_program, refuse_rounded, sizes_to_check

_SAMPLES = {"gather": sample_by_gather, "plugin": sample_by_plugin}
MODES = tuple(_SAMPLES)
OPSETS = range(18, 24)


def export_onnx(
    model: ViTAdapter,
    path: str | os.PathLike[str],
    image_size: tuple[int, int] | None = None,
    *,
    batch: int = 1,
    mode: str = "gather",
    opset: int = 20,
    check_sizes: Sequence[tuple[int, int]] = CHECKED_SIZES,
) -> list[Parity]:
    """Write a model as ONNX: input ``image``, outputs ``map_4``, ``map_8``, ``map_16``, ``map_32``.

    Weights beyond 2 GiB, as those of ``vit_adapter_g``, go to ``PATH.data`` beside the file, which
    ONNX asks for. Needs torch 2.8 or newer, and ``pip install 'vitadapter_fast[export]'``.

    Args:
        model: In eval mode, float32.
        path: Ends in ``.onnx``; replaced if it exists.
        image_size: As for ``export_program``.
        batch: As for ``export_program``.
        mode: "gather" for standard operators only, of which the deformable attention gathers its
            samples; GridSample is not used. "plugin" makes each deformable attention one node of
            NVIDIA's ``MultiscaleDeformableAttnPlugin_TRT``, which TensorRT brings, in the domain
            ``trt.plugins``; all else is standard.
        opset: Version of ONNX's operators, 18 to 23.
        check_sizes: (H, W) at which a dynamic file is compared with the model, in onnxruntime on
            the CPU. The plugin's nodes are then computed by the same gather as a function of ONNX:
            TensorRT itself is not run.

    Returns:
        How far the file is from the model, for each size.

    Raises:
        ValueError: As for ``export_program``, or another argument is wrong.
        ExportError: The file disagrees with the model or cannot be written; none is left.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
    """
    import onnx
    import onnxruntime  # noqa: F401  # before the work, like onnxscript, which torch needs
    import onnxscript  # noqa: F401

    if not str(path).endswith(".onnx"):
        raise ValueError(f"export: wanted a file name that ends in .onnx, got {path}")
    if mode not in _SAMPLES:
        raise ValueError(f"export: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if opset not in OPSETS:
        raise ValueError(f"export: opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
    if (dtype := model.patch_embed.proj.weight.dtype) != torch.float32:
        raise ValueError(f"export: ONNX wants a float32 model, got {dtype}; call model.float()")
    refuse_rounded(model)
    sizes = sizes_to_check(image_size, check_sizes)
    with appearing(path) as part:
        program = export_program(model, image_size, batch=batch)
        program = program.run_decompositions(decompositions(_SAMPLES[mode]))
        names = [f"map_{stride}" for stride in STRIDES]
        written = torch.onnx.export(
            program, opset_version=opset, input_names=["image"], output_names=names, verbose=False
        )
        assert written is not None  # as it is for every ExportedProgram
        _fold_norms(written)
        for node in written.model.graph:
            node.metadata_props.clear()  # they hold paths of this machine
        if image_size is None:
            _name_sizes(written)
        written.save(part)
        onnx.checker.check_model(str(part), full_check=True)
        if mode == "gather":
            return compare(model, _runner(part), sizes, batch)
        runnable = _with_function(part, opset)
        found = compare(model, _runner(runnable), sizes, batch)
        runnable.unlink()
        return found


def _fold_norms(written: Any) -> None:
    """Compute the products of constants that torch leaves: of large weights and constant norms.

    Quantizers want weights that are constants.
    """
    from onnxscript import optimizer

    optimizer.fold_constants(written.model, should_fold=lambda node: node.op_type == "Mul")
    optimizer.remove_unused_nodes(written.model)


def _name_sizes(written: Any) -> None:
    """Give dynamic sizes their names in the file: image [batch, I, 32*cells_h, 32*cells_w]."""
    shape = written.model.graph.inputs[0].shape
    names = {0: "batch", 2: "cells_h", 3: "cells_w"}
    symbols = {str(shape[dim].value).split("*")[-1]: name for dim, name in names.items()}
    written.rename_axes(symbols)


def _runner(path: Path) -> Callable[[Tensor], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def run(image: Tensor) -> list[Tensor]:
        return [
            torch.from_numpy(each) for each in session.run(None, {"image": image.cpu().numpy()})
        ]

    return run


class _Gather(torch.nn.Module):
    forward = staticmethod(sample_by_gather)


def _with_function(path: Path, opset: int) -> Path:
    """Write the file again with a definition of the plugin's nodes, and return where.

    Beside it, since both name one file of weights.
    """
    import onnx

    B, S, M, D, Q, L, P = 2, 20, 3, 4, 5, 2, 6
    example = {
        "value": torch.empty(B, S, M, D, dtype=torch.float32),
        "level_hw": torch.tensor([[4, 4], [2, 2]], dtype=torch.int32),
        "level_start": torch.tensor([0, 16], dtype=torch.int32),
        "locations": torch.empty(B, Q, M, L, P, 2, dtype=torch.float32),
        "weights": torch.empty(B, Q, M, L, P, dtype=torch.float32),
    }
    example = {name: each.cpu() for name, each in example.items()}
    auto = torch.export.Dim.AUTO
    sizes = {name: [auto] * each.dim() for name, each in example.items()}
    sizes["level_hw"][1] = sizes["locations"][5] = torch.export.Dim.STATIC
    with torch.no_grad():
        program = torch.export.export(_Gather(), (), example, dynamic_shapes=sizes)
        written = torch.onnx.export(program, opset_version=opset, verbose=False)
    assert written is not None
    graph = written.model_proto.graph
    constants = [
        onnx.helper.make_node("Constant", [], [each.name], value=each) for each in graph.initializer
    ]
    model = onnx.load(str(path), load_external_data=False)
    model.functions.append(
        onnx.helper.make_function(
            PLUGIN_DOMAIN,
            PLUGIN,
            [each.name for each in graph.input],
            [each.name for each in graph.output],
            [*constants, *graph.node],
            [onnx.helper.make_opsetid("", opset)],
            ["plugin_version", "plugin_namespace"],
        )
    )
    target = path.with_name("checked.onnx")
    onnx.save(model, str(target))
    return target
