# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model in, a callable that replays one CUDA graph of it out: no Python between its kernels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_WARM_UPS = 3


def capture(
    model: nn.Module, image_shape: tuple[int, int, int, int], dtype: torch.dtype
) -> Callable[[Tensor], list[Tensor]]:
    """Return a function of images of one shape that replays what ``model`` launches for them.

    Args:
        model: In eval mode, on a CUDA device.
        image_shape: (B, I, H, W).
        dtype: Of the images.

    Returns:
        The function: images [B, I, H, W] of ``dtype`` to the maps of ``model``, in memory that its
        next call overwrites. It raises ValueError for another shape or dtype, and RuntimeError once
        a parameter or buffer of the model lies in other memory.

    Raises:
        ValueError: The model is in training, or not on a CUDA device.
    """
    device = next(model.parameters()).device
    if model.training:
        raise ValueError("captured: the model must be in eval mode; call .eval() first")
    if device.type != "cuda":
        raise ValueError(
            f"captured: the model must be on a CUDA device, got {device}; call .cuda() first"
        )
    # Not inference mode, whose tensors nobody may write to outside of it.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.cuda.device(device),
        _uncached_autocast(),
    ):
        image = torch.zeros(image_shape, dtype=dtype, device=device)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):  # libraries choose their kernels, Triton compiles its own
                model(image)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            maps: list[Tensor] = model(image)

    places = _places(model)
    addresses = _addresses(places)

    def replay(images: Tensor) -> list[Tensor]:
        # In place, as optimizers and load_state_dict do, weights may change.
        if _addresses(places) != addresses:
            raise RuntimeError(
                "captured: the model's parameters or buffers were moved or replaced, and the graph "
                "would read what they were; capture it again"
            )
        if images.shape != image.shape or images.dtype != dtype:
            raise ValueError(
                f"captured: images must be {tuple(image.shape)} of {dtype}, as captured, got "
                f"{tuple(images.shape)} of {images.dtype}; capture each shape by itself"
            )
        with torch.no_grad(), torch.cuda.device(device):
            # From pinned memory as well it waits: the caller may fill it anew.
            image.copy_(images)
            graph.replay()
        return list(maps)

    return replay


def _places(model: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Return where each parameter and buffer is found: those that come to lie there are seen."""
    holders = [part for module in model.modules() for part in (module._parameters, module._buffers)]
    return [(part, name) for part in holders for name, found in part.items() if found is not None]


def _addresses(places: list[tuple[dict[str, Any], str]]) -> list[int]:
    # For S 0.1 ms, while the GPU is busy with the call before (AMD EPYC).
    return [0 if (each := part.get(name)) is None else each.data_ptr() for part, name in places]


@contextmanager
def _uncached_autocast() -> Iterator[None]:
    """Cast weights inside the graph: autocast's copies are freed when its own block ends."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
