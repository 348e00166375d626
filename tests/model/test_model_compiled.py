# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The model compiled by inductor, as users compile it: maps and all gradients against eager."""

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter

Build = Callable[..., ViTAdapter]
# Inductor takes minutes where sizes are symbols, and for a whole model. Of the rest of a model,
# aot_eager shows in seconds that it is compiled rightly (test_model_forward.py).
SMALL: dict[str, Any] = {
    "depth": 1,
    "interaction_indexes": [[0, 0]],
    "window_attn": False,
    "window_size": None,
    "use_extra_extractor": False,
}
STAGES: dict[str, Any] = {"use_extra_extractor": False, "vit_features": "stages"}
# make compiled: half an hour on two cores.
ON_DEMAND = pytest.mark.skipif(
    not os.environ.get("VITADAPTER_ALL_COMPILED"), reason="make compiled runs it"
)


class Case(NamedTuple):
    """A model, how it is compiled, and what for.

    Attributes:
        settings: Of the model.
        shapes: (batch, height, width) of the images of one compiled model.
        dynamic: As for ``torch.compile``.
        low: The dtype of autocast, or None.
    """

    settings: dict[str, Any]
    shapes: tuple[tuple[int, int, int], ...]
    dynamic: bool | None = None
    low: torch.dtype | None = None


# The second size and batch compile for all; the third is one of them.
SHAPES = ((2, 64, 96), (3, 96, 128), (4, 128, 64))
TRAINED = {
    "one size": Case({**SMALL, "norm": "BN"}, SHAPES[:1]),
    "detection, BN": Case({**SMALL, "norm": "BN"}, SHAPES),
    "stages, BN": Case({**STAGES, "norm": "BN"}, SHAPES),
    "stages, GN, channels last, dynamic from the start": Case(
        {**STAGES, "norm": "GN", "channels_last": True}, SHAPES[:2], dynamic=True
    ),
    "detection, BN, autocast": Case(
        {**SMALL, "norm": "BN"}, SHAPES, dynamic=True, low=torch.bfloat16
    ),
}


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path) -> Iterator[None]:
    """Start anew, and let the C++ compiler hurry: that is most of the time."""
    fast = tmp_path / "g++"
    fast.write_text('#!/bin/sh\nexec "${CXX:-g++}" "$@" -O1\n')
    fast.chmod(0o755)
    torch.compiler.reset()
    with torch._inductor.config.patch({"cpp.cxx": (None, str(fast))}):
        yield
    torch.compiler.reset()


def images(batch: int, *hw: int) -> Tensor:
    return torch.randn(batch, 3, *hw, generator=torch.Generator().manual_seed(1))


def results(run: nn.Module, image: Tensor, low: torch.dtype | None) -> dict[str, Tensor]:
    """Return the maps of a step, and its gradients by name."""
    with torch.autocast("cpu", low or torch.bfloat16, enabled=low is not None):
        maps = run(image)
    generator = torch.Generator().manual_seed(4)
    cotangents = [torch.randn(m.shape, generator=generator, dtype=m.dtype) for m in maps]
    torch.autograd.backward(maps, cotangents)
    grads = {name: p.grad for name, p in run.named_parameters() if p.grad is not None}
    return {f"map {index}": each.detach() for index, each in enumerate(maps)} | grads


def off_by(
    found: dict[str, Tensor], truth: dict[str, Tensor], low: torch.dtype | None
) -> dict[str, float]:
    """Return the norm of each difference, over that of the truth."""
    assert len(found) == len(truth)
    pairs = zip(truth.items(), found.values(), strict=True)
    largest = max((each.double().norm().item() for each in truth.values()), default=0.0)

    def floor(wanted: Tensor) -> float:
        # A bias before a batch norm has no gradient, but the rounding errors of what is summed: in
        # bfloat16 where a compiler multiplies in it.
        is_zero = wanted.double().norm().item() <= 1e-9 * largest
        return largest * (1e-2 if is_zero and low is not None else 1e-4)

    return {
        name: (
            (got.double() - wanted.double()).norm() / (wanted.double().norm() + floor(wanted))
        ).item()
        for (name, wanted), got in pairs
    }


def assert_as_right(
    compiled: dict[str, Tensor],
    eager: dict[str, Tensor],
    truth: dict[str, Tensor],
    low: torch.dtype | None,
) -> None:
    """Raise unless what was compiled is about as near the truth as eager is."""
    # Autocast: a compiler keeps more bits than eager, and rounds elsewhere.
    limit = 1e-4 if low is None else 0.02
    by_eager = off_by(eager, truth, low)
    by_compiled = off_by(compiled, truth, low)
    worst = {
        name: (found, by_eager[name])
        for name, found in by_compiled.items()
        if not found <= 3 * by_eager[name] + limit
    }
    assert not worst, worst


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name == "one size" else ON_DEMAND)
        for name, case in TRAINED.items()
    ],
)
def test_training_has_the_gradients_of_eager(case: Case, tiny: Build) -> None:
    model = tiny(**case.settings).train()
    eager, truth = deepcopy(model), deepcopy(model).double()
    compiled = torch.compile(model, fullgraph=True, dynamic=case.dynamic)
    for shape in case.shapes:
        image = images(*shape)
        for each in (model, eager, truth):
            each.zero_grad()
        wanted = results(truth, image.double(), None)
        by_eager, by_compiled = results(eager, image, case.low), results(compiled, image, case.low)
        assert_as_right(by_compiled, by_eager, wanted, case.low)
    buffers = (dict(each.named_buffers()) for each in (model, eager, truth))
    assert_as_right(*buffers, case.low)


@ON_DEMAND
@torch.no_grad()
def test_eval_has_the_maps_of_eager(tiny: Build) -> None:
    model = tiny(**STAGES, norm="BN").eval()
    compiled = torch.compile(model, fullgraph=True)
    for shape in SHAPES:
        image = images(*shape)
        for found, wanted in zip(compiled(image), model(image), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


class Resized(nn.Module):
    """A map, and itself resized, added to others and normalized: nothing in it is ours."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(2))

    def forward(self, tokens: Tensor, *levels: Tensor) -> list[Tensor]:
        tokens = tokens + self.linear(tokens)
        small = torch.unflatten(tokens, 1, (4, 6)).permute(0, 3, 1, 2)
        large = F.interpolate(small, (8, 12), mode="bilinear", align_corners=False)
        maps = (large.add_(levels[0]), small + levels[1])
        return [norm(each.contiguous()) for norm, each in zip(self.norms, maps, strict=True)]


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the fault is torch 2.13's")
def test_torchs_compiler_still_loses_the_gradient_of_a_resize() -> None:
    """If not, ``_resized_by_products`` of model/pyramid.py is needed no longer."""
    model, found = Resized().train(), []
    shapes = ((2, 24, 32), (2, 32, 8, 12), (2, 32, 4, 6))
    given = [torch.randn(shape, requires_grad=True) for shape in shapes]
    for run in (model, torch.compile(model)):
        maps = run(*given)
        generator = torch.Generator().manual_seed(4)
        cotangents = [torch.randn(each.shape, generator=generator) for each in maps]
        found += torch.autograd.grad(maps, model.linear.weight, cotangents)
    eager, compiled = found
    assert (compiled - eager).norm() > 0.1 * eager.norm()
