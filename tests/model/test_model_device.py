# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The whole model on a CUDA device, against the CPU: what no operator's test can show."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitadapter_fast import ViTAdapter

DEVICE = "cuda"

pytestmark = [
    pytest.mark.usefixtures("exact_products"),
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device was found"),
]
Build = Callable[..., ViTAdapter]


def images(batch: int = 2, hw: tuple[int, int] = (96, 160), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *hw, generator=generator)


def results(
    model: Any, image: Tensor, *, autocast: torch.dtype | None = None, training: bool = True
) -> list[Tensor]:
    """Return maps and, in training, gradients of all parameters, on the CPU in float64."""
    device = image.device.type
    with (
        torch.set_grad_enabled(training),
        torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None),
    ):
        maps = model(image)
    found = [each.detach() for each in maps]
    if training:
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(each.shape, generator=generator) for each in maps]
        torch.autograd.backward(maps, [c.to(m) for c, m in zip(cotangents, maps, strict=True)])
        found += [each.grad for each in model.parameters() if each.grad is not None]
    return [each.cpu().double() for each in found]


def distance(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the length of the difference as a share of what was wanted, over all tensors."""
    assert len(got) == len(wanted)
    difference = sum((a - b).square().sum().item() for a, b in zip(got, wanted, strict=True))
    return float((difference / sum(b.square().sum().item() for b in wanted)) ** 0.5)


NORM_FREE: dict[str, Any] = {"norm": "GN", "drop_path_rate": 0.0}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("norm", ["BN", "GN"])
@pytest.mark.parametrize("vit_features", ["last", "stages"])
def test_float32_equals_the_cpu(tiny: Build, norm: str, vit_features: str, training: bool) -> None:
    kwargs = {"norm": norm, "vit_features": vit_features, "drop_path_rate": 0.0}
    wanted = results(tiny(**kwargs).train(training), images(), training=training)
    model = tiny(**kwargs).train(training).to(DEVICE)
    assert distance(results(model, images().to(DEVICE), training=training), wanted) < 1e-3


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_as_near_to_float32_as_on_the_cpu(
    tiny: Build, low: torch.dtype, training: bool
) -> None:
    truth = results(tiny(**NORM_FREE).train(training), images(), training=training)
    there = results(tiny(**NORM_FREE).train(training), images(), autocast=low, training=training)
    model = tiny(**NORM_FREE).train(training).to(DEVICE)
    here = results(model, images().to(DEVICE), autocast=low, training=training)
    assert distance(here, truth) < 2 * distance(there, truth) + 1e-4


def test_channels_last_and_strided_images_give_the_same(tiny: Build) -> None:
    model = tiny().eval().to(DEVICE)
    image = images().to(DEVICE)
    wide = torch.nn.functional.pad(image, (3, 5, 1, 2), value=float("nan"))
    forms = {
        "channels last": image.contiguous(memory_format=torch.channels_last),
        "strided": wide[:, :, 1:-2, 3:-5],
        "transposed": image.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": image[:1].expand(2, -1, -1, -1),
    }
    for name, form in forms.items():
        torch.testing.assert_close(form, image if name != "expanded" else form)
        wanted = results(model, form.contiguous(), training=False)
        assert distance(results(model, form, training=False), wanted) < 1e-5, name


def test_training_in_bfloat16_with_stochastic_depth_moves_every_parameter(tiny: Build) -> None:
    model = tiny(drop_path_rate=0.5, norm="BN").train().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {name: each.clone() for name, each in model.named_parameters()}
    for seed in range(4):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        found = results(model, images(8, seed=seed).to(DEVICE), autocast=torch.bfloat16)
        assert all(each.isfinite().all() for each in found)
        optimizer.step()
    still = [name for name, each in model.named_parameters() if torch.equal(each, before[name])]
    assert not still


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_compiled_model_equals_eager_at_two_sizes(tiny: Build, training: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(tiny(**NORM_FREE).train(training).to(DEVICE), fullgraph=True)
    for hw in ((96, 160), (160, 96)):
        image = images(2, hw).to(DEVICE)
        wanted = results(tiny(**NORM_FREE).train(training).to(DEVICE), image, training=training)
        compiled.zero_grad()
        assert distance(results(compiled, image, training=training), wanted) < 1e-3, hw


SWITCHES = """
import torch
from tiny import WINDOWED
from vitadapter_fast import ViTAdapter
{switch}
model = ViTAdapter(**WINDOWED).cuda().eval()
image = torch.randn(1, 3, 96, 96, device="cuda")
with torch.no_grad():
    assert all(each.isfinite().all() for each in model(image))
    with torch.autocast("cuda", torch.bfloat16):
        assert all(each.isfinite().all() for each in model(image))
"""


@pytest.mark.parametrize(
    "switch",
    [
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.set_float32_matmul_precision('high')",
    ],
)
def test_model_runs_under_each_spelling_of_tf32(switch: str) -> None:
    """In a process of its own: the two interfaces must not be mixed."""
    if "fp32_precision" in switch and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has no such switch")
    folder = Path(__file__).parents[1] / "helpers"
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n" + SWITCHES.format(switch=switch)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_captured_model_replays_other_images_and_other_weights(tiny: Build) -> None:
    model = tiny().eval().to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        run = model.captured((96, 160), batch=2)
    for seed in range(3):
        image = images(seed=seed).to(DEVICE)
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
            wanted = model(image)
        for got, right in zip(run(image), wanted, strict=True):
            torch.testing.assert_close(got, right)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)


def test_model_never_waits_for_the_device(tiny: Build) -> None:
    model, image = tiny(drop_path_rate=0.3).to(DEVICE), images().to(DEVICE)
    for training in (True, False):
        model.train(training)
        for mode in ("default", "error"):  # the first call compiles, and may wait
            torch.cuda.set_sync_debug_mode(mode)
            try:
                with torch.set_grad_enabled(training):
                    maps = model(image)
                if training:
                    torch.autograd.backward(maps, [torch.ones_like(each) for each in maps])
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs a second CUDA device")
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_model_on_the_second_device_leaves_the_first_alone(
    tiny: Build, autocast: torch.dtype | None
) -> None:
    torch.cuda.set_device(0)

    def allocations() -> int:
        return int(torch.cuda.memory_stats(0).get("allocation.all.allocated", 0))

    wanted = results(tiny(**NORM_FREE), images())
    before = allocations()
    model = tiny(**NORM_FREE).to("cuda:1")
    got = results(model, images().to("cuda:1"), autocast=autocast)
    assert distance(got, wanted) < (1e-3 if autocast is None else 0.1)
    assert torch.cuda.current_device() == 0 and allocations() == before
