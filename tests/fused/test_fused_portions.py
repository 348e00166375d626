# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A batch on the CPU goes through the stages in portions: the results are the same."""

import pytest
import torch
from tiny import WINDOWED
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter, backend
from vitadapter_fast.fused import portions


def batches_seen_by(model: ViTAdapter, images: int) -> list[int]:
    seen: list[int] = []
    stages = model._interact

    def interact(x: Tensor, *args: object, **kwargs: object) -> list[Tensor]:
        seen.append(x.shape[0])
        return stages(x, *args, **kwargs)

    model._interact = interact
    try:
        with torch.no_grad():
            model(torch.rand(images, 3, 64, 64))
    finally:
        del model._interact
    return seen


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a portion have two images of 64 x 64."""
    tokens = 8 * 8 + 4 * 4 + 2 * 2
    monkeypatch.setattr(portions, "_HEAP_BYTES", 2 * tokens * WINDOWED["embed_dim"] * 4)


def test_small_batches_stay_whole() -> None:
    assert batches_seen_by(ViTAdapter(**WINDOWED), 5) == [5]


@pytest.mark.usefixtures("few_bytes")
@pytest.mark.parametrize(("images", "wanted"), [(1, [1]), (2, [2]), (4, [2, 2]), (5, [2, 2, 1])])
def test_portions_hold_as_many_images_as_fit(images: int, wanted: list[int]) -> None:
    assert batches_seen_by(ViTAdapter(**WINDOWED), images) == wanted


@pytest.mark.usefixtures("few_bytes")
@pytest.mark.parametrize("vit_features", ["last", "stages"])
def test_maps_and_gradients_are_those_of_the_whole_batch(
    vit_features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ViTAdapter(**WINDOWED, vit_features=vit_features).double()
    image = torch.rand(5, 3, 64, 64, dtype=torch.float64)

    def run() -> tuple[list[Tensor], list[Tensor]]:
        maps = model(image)
        torch.manual_seed(1)
        total = sum((level * torch.randn_like(level)).sum() for level in maps)
        used = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(total, used, allow_unused=True)
        return [level.detach() for level in maps], [g for g in grads if g is not None]

    in_portions = run()
    monkeypatch.setattr(portions, "_HEAP_BYTES", 2**40)
    whole = run()
    for ours, wanted in zip(in_portions, whole, strict=True):
        assert len(ours) == len(wanted)
        for one, other in zip(ours, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("few_bytes")
def test_hooks_see_whole_batches() -> None:
    model, seen = ViTAdapter(**WINDOWED), []
    model.interactions[1].extractor.register_forward_hook(
        lambda module, args, out: seen.append(out.shape[0])
    )
    with torch.no_grad():
        model(torch.rand(5, 3, 64, 64))
    assert seen == [5]


@pytest.mark.usefixtures("few_bytes")
def test_the_reference_takes_the_whole_batch() -> None:
    with backend("reference"):
        assert batches_seen_by(ViTAdapter(**WINDOWED), 5) == [5]


def test_other_devices_and_empty_batches_stay_whole() -> None:
    for batch, device in ((8, "meta"), (0, "cpu")):
        calls: list[int] = []

        def stages(x: Tensor, c: Tensor, calls: list[int] = calls) -> list[Tensor]:
            calls.append(x.shape[0])
            return [c, x]

        x, c = (torch.empty(batch, count, 2**20, device=device) for count in (4, 21))
        assert portions.in_portions(stages, x, c, nn.Module())[0] is c
        assert calls == [batch]
