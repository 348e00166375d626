# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The boxes of a small model in; whether each runs fused here, and how far from its plain form."""

import copy
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import fused
from ..fused._choice import plain_reason
from ..model import ViTAdapter
from ..model.grid import grids_of
from ..model.pyramid import feature_pyramid
from ..ops import backend
from .tolerance import share

_GRIDS = grids_of(torch.empty(1, 3, 64, 64, dtype=torch.float32, device="meta"))


class Box(NamedTuple):
    """A small real call of one box.

    Attributes:
        form: Its file in ``fused``.
        part: Finds its module in a model.
        shapes: Of the tensors of a call.
        call: Calls the module: module and tensors in, results out.
        asks_of_tensors: Whether ``unsupported_reason`` takes them.
    """

    form: ModuleType
    part: Callable[[Any], nn.Module]
    shapes: Sequence[tuple[int, ...]]
    call: Callable[..., Any]
    asks_of_tensors: bool = True


_X, _C, _IMAGE, _AT_4 = (1, 16, 64), (1, 84, 64), (1, 3, 64, 64), (1, 64, 16, 16)


def boxes() -> dict[str, Box]:
    """Return one call for every box, by the name of its file in ``fused``."""

    def on_grids(module: Any, *tokens: Tensor) -> Any:
        return module(*tokens, _GRIDS)

    def pyramid(model: Any, at_4: Tensor, c: Tensor, x: Tensor) -> list[Tensor]:
        return feature_pyramid(model, _channels_last(at_4), c, [x], _GRIDS)

    return {
        "block": Box(
            fused.block, lambda model: model.blocks[0], [_X], lambda block, x: block(x, (4, 4))
        ),
        "injector": Box(
            fused.injector, lambda model: model.interactions[0].injector, [_X, _C], on_grids
        ),
        "extractor": Box(
            fused.extractor, lambda model: model.interactions[0].extractor, [_C, _X], on_grids
        ),
        "spatial_prior": Box(
            fused.spatial_prior, lambda model: model.spm, [_IMAGE], lambda spm, image: spm(image)
        ),
        "pyramid": Box(
            fused.pyramid, lambda model: model, [_AT_4, _C, _X], pyramid, asks_of_tensors=False
        ),
    }


def _channels_last(level: Tensor) -> Tensor:
    return level.contiguous(memory_format=torch.channels_last).clone()


def _model() -> ViTAdapter:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        return ViTAdapter(
            interaction_indexes=[[0, 0]],
            pretrain_size=64,
            img_size=64,
            embed_dim=64,
            depth=1,
            num_heads=2,
            deform_num_heads=2,
            conv_inplane=8,
            init_values=1.0,
        ).double()


def _inputs(box: Box) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        for shape in box.shapes
    ]


def box_reason(box: Box, *, is_training: bool) -> str | None:
    """Return why a box calls its modules one by one on this machine's device, or None."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model().to(device, torch.float32).train(is_training)
    with torch.set_grad_enabled(is_training):
        inputs = [tensor.to(device, torch.float32) for tensor in _inputs(box)]
        return plain_reason(box.form, box.part(model), *(inputs if box.asks_of_tensors else ()))


def check_box(box: Box, *, is_training: bool) -> float:
    """Return the worst error of a box in float32, as a share of what ``tolerance`` allows.

    Of its results, in training also of the gradients of inputs and parameters; at most 1 where it
    is right. Its plain form in float32 and in float64 is what it is compared with.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = _model().train(is_training)

    def results(dtype: torch.dtype) -> list[Tensor]:
        model = copy.deepcopy(base).to(device, dtype)
        inputs = [each.float().to(device, dtype) for each in _inputs(box)]
        inputs = [each.requires_grad_(is_training) for each in inputs]
        with torch.set_grad_enabled(is_training):
            out = box.call(box.part(model), *inputs)
        outs = list(out) if isinstance(out, (tuple, list)) else [out]
        if not is_training:
            return outs
        generator = torch.Generator().manual_seed(1)
        cotangents = [
            torch.randn(each.shape, generator=generator, dtype=torch.float32).to(each)
            for each in outs
        ]
        leaves = [*inputs, *(each for each in model.parameters())]
        grads = torch.autograd.grad(outs, leaves, cotangents, allow_unused=True)
        return [each.detach() for each in (*outs, *grads) if each is not None]

    got = results(torch.float32)
    with backend("reference"):
        near, exact = results(torch.float32), results(torch.float64)
    # A bias before a norm in training has no gradient but rounding errors.
    triples = [each for each in zip(got, near, exact, strict=True) if each[2].abs().max() > 1e-10]
    return max(share(*each) for each in triples)
