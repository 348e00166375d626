# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CPU's ways through the spatial prior and the pyramid against torch's layers, one by one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter, backend
from vitadapter_fast.fused import attention
from vitadapter_fast.native import tensors

MODES = ["train", "eval"]
Tiny = Callable[..., ViTAdapter]


def run(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return maps, gradients and statistics by name."""
    maps = model(image)
    generator = torch.Generator().manual_seed(2)
    cotangents = [torch.randn(part.shape, generator=generator).double() for part in maps]
    torch.autograd.backward(maps, cotangents)
    found = {f"map {index}": part.detach() for index, part in enumerate(maps)}
    found |= {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    return found | {name: part.clone() for name, part in model.named_buffers()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("adds_vit", [True, False], ids=["vit", "no_vit"])
def test_maps_gradients_and_statistics_are_those_of_the_layers(
    tiny: Tiny,
    mode: str,
    momentum: float | None,
    adds_vit: bool,
) -> None:
    ours = tiny(add_vit_feature=adds_vit).double().train(mode == "train")
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
    theirs = copy.deepcopy(ours)
    image = torch.randn(2, 3, 96, 160).double()
    got = [run(ours, image), run(ours, image)]  # twice: momentum None counts
    with backend("reference"):
        wanted = [run(theirs, image), run(theirs, image)]
    for one, other in zip(got, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            torch.testing.assert_close(one[name], other[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["up", "spm.fc1", "norm1", "spm.stem.1", "spm.stem.2"])
def test_a_hooked_layer_is_called(tiny: Tiny, name: str) -> None:
    model = tiny().train()
    calls = []
    model.get_submodule(name).register_forward_hook(lambda *args: calls.append(name))
    model(torch.randn(1, 3, 64, 64))
    assert calls == [name]


def test_one_number_per_channel_is_torchs_error(tiny: Tiny) -> None:
    model = tiny().train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 3, 32, 32))


@pytest.mark.thorough
@pytest.mark.parametrize("layout", [False, True], ids=["NCHW", "channels last"])
@pytest.mark.parametrize("low", [None, torch.bfloat16], ids=str)
def test_the_way_of_gpus_gives_the_same_maps(
    layout: bool, low: torch.dtype | None, tiny: Callable[..., ViTAdapter], monkeypatch: Any
) -> None:
    """Torch's layers instead of fused ones, and maps written in their layout at once."""
    image = torch.randn(2, 3, 96, 128)
    model = tiny(channels_last=layout).eval()
    with torch.no_grad(), torch.autocast("cpu", low or torch.bfloat16, enabled=low is not None):
        wanted = model(image)
        monkeypatch.setattr(tensors, "is_on_cpu", lambda tensor: False)
        got = model(image)
    for one, other in zip(got, wanted, strict=True):
        assert one.stride() == other.stride() and one.dtype == other.dtype
        assert torch.dist(one, other) < (1e-5 if low is None else 3e-2) * other.norm()


def test_a_gpu_without_triton_attends_by_torch_and_not_by_the_definition(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.randn(1, 3, 96, 128)
    wanted = run(tiny(drop_path_rate=0.0), image)
    model = tiny(drop_path_rate=0.0)
    monkeypatch.setattr(attention, "window_attention", None)  # whoever calls it fails
    monkeypatch.setattr(tensors, "is_on_cpu", lambda tensor: False)
    monkeypatch.setattr(attention.triton, "unsupported_reason", lambda call: "no Triton on Windows")
    for name, got in run(model, image).items():
        right = wanted[name].double()
        assert torch.dist(got.double(), right) <= 1e-3 * right.norm() + 1e-4, name


OTHERS: dict[str, Callable[[ViTAdapter], None]] = {
    "up of 4 x 4": lambda model: setattr(
        model, "up", nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1)
    ),
    "up in groups": lambda model: setattr(model, "up", nn.ConvTranspose2d(32, 32, 2, 2, groups=4)),
    "up without bias": lambda model: setattr(
        model, "up", nn.ConvTranspose2d(32, 32, 2, 2, bias=False)
    ),
    "fc1 of 3 x 3": lambda model: setattr(model.spm, "fc1", nn.Conv2d(8, 32, 3, padding=1)),
    "none": lambda model: None,
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(
    "is_compiled",
    [
        pytest.param(False, id="eager"),
        pytest.param(True, id="compiled", marks=pytest.mark.thorough),
    ],
)
@torch.no_grad()
def test_convolutions_of_another_kind_are_called(
    change: Callable[[ViTAdapter], None],
    is_compiled: bool,
    tiny: Tiny,
) -> None:
    """Only those of the original are matrix products."""
    model = tiny(depth=1, interaction_indexes=[[0, 0]], window_attn=False, window_size=None)
    change(model)
    model = model.double().eval()
    image = torch.randn(1, 3, 64, 96).double()
    torch.compiler.reset()
    maps = (torch.compile(model, backend="eager") if is_compiled else model)(image)
    with backend("reference"):
        wanted = model(image)
    for found, right in zip(maps, wanted, strict=True):
        torch.testing.assert_close(found, right)
