# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""torch.jit.trace records the model, saves and loads it; torch's older ONNX exporter names ours."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitadapter_fast import ViTAdapter

Build = Callable[..., ViTAdapter]

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_gradients", [False, True], ids=["no_grad", "grad"])
def test_a_trace_is_saved_and_computes_what_the_model_does(
    dtype: torch.dtype, has_gradients: bool, tiny: Build, image: Tensor, tmp_path: Path
) -> None:
    model = tiny(norm="BN").eval().to(dtype)
    image = image.to(dtype)
    with torch.set_grad_enabled(has_gradients):
        traced = torch.jit.trace(model, torch.zeros_like(image), check_trace=False)
        traced.save(tmp_path / "model.pt")
        maps = torch.jit.load(tmp_path / "model.pt")(image)
        rtol = 0.1 if dtype == torch.bfloat16 else 1e-4
        for found, wanted in zip(maps, model(image), strict=True):
            scale = wanted.abs().max().item()
            torch.testing.assert_close(found, wanted, rtol=0.0, atol=rtol * scale)


def test_a_trace_in_training_has_the_gradients(tiny: Build, image: Tensor) -> None:
    model = tiny(norm="GN").train()
    traced = torch.jit.trace(model, image, check_trace=False)
    found = []
    for run in (traced, model):
        model.zero_grad()
        sum(each.sin().sum() for each in run(image)).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_the_older_onnx_exporter_names_ours(tiny: Build, image: Tensor, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="python -m vitadapter_fast export"):
        torch.onnx.export(tiny().eval(), (image,), tmp_path / "model.onnx", dynamo=False)
    assert not list(tmp_path.iterdir())
