# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The model gives the original's outputs and gradients."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from vitadapter_fast import ViTAdapter, ops

DETECTION = ("tiny_ratio05_global", "tiny_ratio1_window")
STEMS = (*DETECTION, "tiny_segmentation")


class Run(NamedTuple):
    outputs: list[Tensor]
    gradients: dict[str, Tensor]


def attend_from_float32_points(
    value: Tensor,
    level_hw: Sequence[tuple[int, int]],
    query_hw: Sequence[tuple[int, int]],
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """The grid op with upstream's arithmetic: query positions are rounded to float32."""
    points = []
    for h, w in query_hw:
        y, x = torch.meshgrid(
            (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij"
        )
        points.append(torch.stack((x, y), dim=-1).view(-1, 2))
    sizes = torch.tensor([(w, h) for h, w in level_hw])
    locations = torch.cat(points)[None, :, None, None, None] + offsets / sizes[:, None]
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    return ops.ms_deform_attn(value, level_hw, locations, weights, backend="reference")


def run_model(
    golden: Any,
    stem: str,
    parameters: dict[str, Tensor],
    dtype: torch.dtype,
    has_float32_points: bool,
) -> Run:
    """Run the model of a golden file forward and backward, with these parameters."""
    model = ViTAdapter(**golden.config, vit_features="last" if stem in DETECTION else "stages")
    model.load_state_dict(parameters)
    model.to(dtype).eval()
    image = golden.tensors["input"].to(dtype, copy=True).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        if has_float32_points:
            patch.setattr(ops, "ms_deform_attn_grid", attend_from_float32_points)
        outputs = model(image)
    cotangents = [golden.tensors[f"cotangent.{i}"].to(dtype) for i in range(4)]
    torch.autograd.backward(outputs, cotangents)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return Run([out.detach() for out in outputs], {**gradients, "input": image.grad})


@pytest.fixture(scope="module")
def run(load_golden: Callable[[str], Any]) -> Callable[..., Run]:
    """Return a function that runs the model of a golden file forward and backward, once."""

    @cache
    def run(stem: str, dtype: torch.dtype, has_float32_points: bool = False) -> Run:
        golden = load_golden(stem)
        return run_model(golden, stem, golden.parameters(), dtype, has_float32_points)

    return run


def error(actual: Tensor, truth: Tensor) -> float:
    """Largest difference as a share of the largest true value."""
    truth = truth.double()
    return ((actual.double() - truth).abs().max() / truth.abs().max()).item()


def output_errors(run: Run, golden: Any) -> list[float]:
    return [error(out, golden.tensors[f"output.{i}"]) for i, out in enumerate(run.outputs)]


def gradient_errors(run: Run, golden: Any) -> dict[str, float]:
    prefix = "grad."
    truth = {k[len(prefix) :]: v for k, v in golden.tensors.items() if k.startswith(prefix)}
    assert truth.keys() == run.gradients.keys()
    return {name: error(run.gradients[name], truth[name]) for name in truth}


def over(errors: dict[str, float], bound: float) -> dict[str, float]:
    return {name: value for name, value in errors.items() if not value <= bound}


@pytest.mark.parametrize("stem", STEMS)
def test_parameter_names_are_the_originals(stem: str, load_golden: Callable[[str], Any]) -> None:
    golden = load_golden(stem)
    with torch.device("meta"):
        model = ViTAdapter(**golden.config)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in golden.parameters().items()
    }


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("stem", STEMS)
def test_outputs_are_the_originals(
    stem: str, dtype: torch.dtype, bound: float, run: Any, load_golden: Any
) -> None:
    assert max(output_errors(run(stem, dtype), load_golden(stem))) <= bound


# The original rounds query positions to float32 even in float64; with that rounding, all that is
# left of a difference is the float32 storage of the files, half an epsilon: 6e-8.
@pytest.mark.parametrize("stem", STEMS)
def test_outputs_are_the_originals_to_the_last_stored_bit(
    stem: str, run: Any, load_golden: Any
) -> None:
    assert max(output_errors(run(stem, torch.float64, True), load_golden(stem))) <= 1e-7


@pytest.mark.parametrize("stem", STEMS)
def test_every_gradient_is_the_originals_to_the_last_stored_bit(
    stem: str, run: Any, load_golden: Any
) -> None:
    errors = gradient_errors(run(stem, torch.float64, True), load_golden(stem))
    assert over(errors, 1e-7) == {}


# Without that rounding, gradients differ by the 6e-8 of a position times the grid's width (12) and
# the slope of the map between pixels: 2.8e-6 at most where a width is not a power of 2.
# In float32 (epsilon 1.2e-7), about 60 layers forward and back, and biases whose gradient is a sum
# of terms that cancel: 8e-5 at most (spm.conv4.1.bias).
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-5), (torch.float32, 3e-4)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("stem", STEMS)
def test_every_gradient_is_the_originals(
    stem: str, dtype: torch.dtype, bound: float, run: Any, load_golden: Any
) -> None:
    assert over(gradient_errors(run(stem, dtype), load_golden(stem)), bound) == {}


@pytest.mark.parametrize(
    "name",
    [
        "patch_embed.proj.weight",
        "blocks.1.attn.qkv.weight",
        "spm.stem.0.weight",
        "interactions.0.injector.attn.value_proj.weight",
        "interactions.3.extractor.ffn.dwconv.dwconv.weight",
        "up.weight",
    ],
)
def test_one_weight_that_is_off_by_a_thousandth_fails_the_comparison(
    name: str, load_golden: Any
) -> None:
    """One number of one tensor, the largest: the tests above would not pass."""
    stem = "tiny_ratio1_window"
    golden = load_golden(stem)
    parameters = {key: tensor.clone() for key, tensor in golden.parameters().items()}
    numbers = parameters[name].view(-1)
    numbers[numbers.abs().argmax()] *= 1.001
    changed = run_model(golden, stem, parameters, torch.float64, True)
    for comparison in (
        test_outputs_are_the_originals_to_the_last_stored_bit,
        test_every_gradient_is_the_originals_to_the_last_stored_bit,
    ):
        with pytest.raises(AssertionError):
            comparison(stem, lambda *_: changed, load_golden)
