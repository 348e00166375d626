# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model in, its graph as torch.export sees it out."""

from collections.abc import Sequence

import torch
from torch.export import Dim, ExportedProgram

from ..fused import Int8Linear
from ..images import is_whole
from ..model import ViTAdapter
from ..model.grid import SIZE_MULTIPLE
from ..model.vit import Attention
from ._decompositions import decompositions, sample_by_gather

MIN_DYNAMIC_SIZE = 2 * SIZE_MULTIPLE
_TRACED_BATCH = 2
_TRACED_CELLS = 33  # of 32 pixels


def export_program(
    model: ViTAdapter,
    image_size: tuple[int, int] | None = None,
    *,
    batch: int = 1,
    decompose: bool = False,
) -> ExportedProgram:
    """Trace a model with ``torch.export``; it may be on the meta device.

    The operators of this library stay whole: ``import vitadapter_fast`` before
    ``torch.export.load``, and they run on the fastest backend where the program runs. Others than
    torch do not know them; they take programs with ``decompose``.

    Args:
        model: In eval mode.
        image_size: (H, W), multiples of 32, of the only images the program takes. None leaves
            batch, H and W dynamic: any batch, H and W any multiples of 32 from 64 up.
        batch: Images in the batch where ``image_size`` is given.
        decompose: Whether torch's operators take the place of this library's, as in ONNX files;
            then the program is slower, and runs without this library.

    Returns:
        A program from image, [B, I, H, W] in the dtype and on the device of the model, to four maps
        [B, C, H / s, W / s] for s = 4, 8, 16, 32.

    Raises:
        ValueError: The model is in training mode, a size or the batch is wrong, or the model was
            quantized and ``decompose`` is asked for.
    """
    if model.training:
        raise ValueError("export: wanted a model in eval mode; call model.eval() first")
    if not is_whole(batch) or batch < 1:
        raise ValueError(f"export: batch must be a whole number, at least 1, got {batch!r}")
    is_dynamic = image_size is None
    hw = _traced_hw(model) if image_size is None else check_size(image_size)
    if decompose:
        refuse_rounded(model)
    weight = model.patch_embed.proj.weight
    B = _TRACED_BATCH if is_dynamic else batch
    image = torch.empty(B, model.in_chans, *hw, dtype=weight.dtype, device=weight.device)
    cells = [SIZE_MULTIPLE * Dim(name, min=2) for name in ("cells_h", "cells_w")]
    sizes = ({0: Dim("batch", min=1), 2: cells[0], 3: cells[1]},)
    with torch.no_grad():
        program = torch.export.export(model, (image,), dynamic_shapes=sizes if is_dynamic else None)
    return program.run_decompositions(decompositions(sample_by_gather)) if decompose else program


def refuse_rounded(model: ViTAdapter) -> None:
    """Raise ValueError where a model was quantized: only this library knows its layers."""
    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise ValueError(
            "export: the model was quantized, and its layers need this library; export the model "
            "before vitadapter_fast.quantize, and let the runtime quantize the file"
        )


def check_size(image_size: Sequence[int]) -> tuple[int, int]:
    """Return (H, W).

    Raises:
        ValueError: They are not two multiples of 32.
    """
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (image_size,)
    if len(sides) != 2 or not all(map(is_whole, sides)):
        raise ValueError(f"export: image_size must be (H, W) in pixels, got {image_size!r}")
    H, W = sides
    if H < SIZE_MULTIPLE or W < SIZE_MULTIPLE or H % SIZE_MULTIPLE or W % SIZE_MULTIPLE:
        raise ValueError(
            f"export: image_size must be positive multiples of {SIZE_MULTIPLE}, got {H} x {W}; pad "
            "images on the right and bottom with zeros, as the model does"
        )
    return H, W


def sizes_to_check(
    image_size: tuple[int, int] | None, check_sizes: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return the sizes at which a file is compared: its own, or those asked for if it has none.

    Raises:
        ValueError: There is none, or the file would not take one.
    """
    if image_size is not None:
        return [check_size(image_size)]
    sizes = [check_size(each) for each in check_sizes]
    if not sizes or min(map(min, sizes)) < MIN_DYNAMIC_SIZE:
        raise ValueError(
            f"export: check_sizes must be one or more (H, W) from {MIN_DYNAMIC_SIZE} up where "
            f"sizes are dynamic, got {list(check_sizes)}"
        )
    return sizes


def _traced_hw(model: ViTAdapter) -> tuple[int, int]:
    """Return (H, W) at which no grid, and no number of windows, is 1 and no two grids are equal.

    torch.export and decompositions take such a chance for a rule, and say nothing. Tracing computes
    nothing, so a large image costs no more.
    """
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    largest = max(attention.window_size or 0 for attention in attentions)
    cells = max(_TRACED_CELLS, largest + 1)  # a cell is two tokens wide
    return cells * SIZE_MULTIPLE, (cells + 4) * SIZE_MULTIPLE
