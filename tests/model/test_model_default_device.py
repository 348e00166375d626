# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A CPU model where torch's default device is another, as torch.set_default_device makes it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from vitadapter_fast import ViTAdapter, info


@pytest.fixture
def default_meta() -> Iterator[Callable[[], None]]:
    """Return a function that makes "meta" the default: memory there has no address to write to."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


def results(model: ViTAdapter, image: Tensor, *, is_training: bool) -> list[Tensor]:
    torch.manual_seed(1)
    if not is_training:
        with torch.no_grad():
            return model.eval()(image)
    maps = model.train()(image)
    cotangents = [torch.full_like(each, 0.1).cumsum(-1) for each in maps]
    torch.autograd.backward(maps, cotangents)
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    return [*(each.detach() for each in maps), *gradients]


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_model_stays_on_the_cpu(
    batch: int,
    dtype: torch.dtype,
    is_training: bool,
    tiny: Callable[..., ViTAdapter],
    default_meta: Callable[[], None],
) -> None:
    models = [tiny().to(dtype) for _ in range(2)]
    image = torch.randn(batch, 3, 96, 128, dtype=dtype)
    wanted = results(models[0], image, is_training=is_training)
    default_meta()
    got = results(models[1], image, is_training=is_training)
    assert len(got) == len(wanted) and all(map(torch.equal, got, wanted))


def test_self_test_stays_on_the_cpu(default_meta: Callable[[], None]) -> None:
    default_meta()
    for name, probe in info.probes().items():
        assert info.check(probe, "cpu", torch.float32) <= 1, name
