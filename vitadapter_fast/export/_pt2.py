# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model in, an AOTInductor package out: machine code for one kind of device, with weights."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..model import ViTAdapter
from ._files import appearing
from ._parity import CHECKED_SIZES, Parity, compare
from ._program import export_program, refuse_rounded, sizes_to_check


def export_pt2(
    model: ViTAdapter,
    path: str | os.PathLike[str],
    image_size: tuple[int, int] | None = None,
    *,
    batch: int = 1,
    check_sizes: Sequence[tuple[int, int]] = CHECKED_SIZES,
) -> list[Parity]:
    """Compile a model for the device that it is on, and write it as one file.

    ``import vitadapter_fast`` and ``torch._inductor.aoti_load_package(path)`` give a function from
    image to maps, which needs no model, no checkpoint and no compiler. The import is needed: the
    operators of this library are called where they run, on its fastest backend. The file depends on
    the version of torch and on the processor or GPU.

    Args:
        model: In eval mode.
        path: Ends in ``.pt2``; replaced if it exists.
        image_size: As for ``export_program``.
        batch: As for ``export_program``.
        check_sizes: (H, W) at which a dynamic file is compared with the model.

    Returns:
        How far the file is from the model, for each size.

    Raises:
        ValueError: As for ``export_program``, or the path has another suffix.
        ExportError: The file disagrees with the model or cannot be written; none is left.
    """
    if not str(path).endswith(".pt2"):
        raise ValueError(f"export: wanted a file name that ends in .pt2, got {path}")
    refuse_rounded(model)
    sizes = sizes_to_check(image_size, check_sizes)
    with appearing(path) as part:
        program = export_program(model, image_size, batch=batch)
        # Prepacks weights for oneDNN, at the cost of gradients, which an inference package lacks.
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(part),
                inductor_configs={"freezing": True},
            )
        loaded = torch._inductor.aoti_load_package(str(part))

        def run(image: Tensor) -> Sequence[Tensor]:
            maps: Sequence[Tensor] = loaded(image)
            return maps

        return compare(model, run, sizes, batch)
