# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A CPU model where torch's default device or dtype is another, as torch.set_default_* makes it."""

import ast
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vitadapter_fast
from vitadapter_fast import ViTAdapter, info
from vitadapter_fast.native import token_rows


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


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Return another default dtype, and leave float32 behind."""
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_another_default_dtype_changes_nothing(
    dtype: torch.dtype,
    is_training: bool,
    tiny: Callable[..., ViTAdapter],
    default_dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = [tiny().to(dtype) for _ in range(2)]
    image = torch.randn(2, 3, 96, 128, dtype=dtype)
    wanted = results(models[0], image, is_training=is_training)
    torch.set_default_dtype(default_dtype)
    monkeypatch.setattr(token_rows, "_buffers", threading.local())  # none is left from before
    got = results(models[1], image, is_training=is_training)
    assert len(got) == len(wanted) and all(map(torch.equal, got, wanted))


def test_a_model_is_made_in_the_default_dtype(
    tiny: Callable[..., ViTAdapter], default_dtype: torch.dtype
) -> None:
    torch.set_default_dtype(default_dtype)
    model = tiny()
    assert {each.dtype for each in model.parameters()} == {default_dtype}
    maps = results(model, torch.rand(1, 3, 64, 96), is_training=True)
    assert all(each.dtype == default_dtype and each.isfinite().all() for each in maps)


def test_self_test_in_another_default_dtype(default_dtype: torch.dtype) -> None:
    torch.set_default_dtype(default_dtype)
    for name, probe in info.probes().items():
        assert info.check(probe, "cpu", torch.float32) <= 1, name


PACKAGE = Path(vitadapter_fast.__file__).parent
FACTORIES = {"empty", "zeros", "ones", "full", "tensor", "rand", "randn", "linspace", "eye"}
# What they make are parameters, whose dtype is the default, and the numbers that fill them.
PARAMETERS = {"injector.py", "vit.py", "trunk.py", "vit_adapter.py", "deform_attn.py"}


def test_whatever_is_no_parameter_is_made_in_a_dtype_that_is_told() -> None:
    found, untold = 0, []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name == "model" and path.name in PARAMETERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "torch"
                and node.func.attr in FACTORIES
            ):
                found += 1
                if not any(each.arg == "dtype" for each in node.keywords):
                    untold.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found > 20 and not untold
