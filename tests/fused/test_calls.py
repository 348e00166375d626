# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""How much Python a forward pass is, and that the reference calls no kernel of ours."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from calls import count
from torch import Tensor

import vitadapter_fast
from vitadapter_fast import ViTAdapter
from vitadapter_fast.native import extension, gemm

Tiny = Callable[..., ViTAdapter]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel of the extension and oneDNN's product was called."""
    calls: Counter[str] = Counter()
    launch, product = extension.launch, gemm._by_onednn

    def counted_launch(name: str, **arguments: Any) -> None:
        calls[name] += 1
        launch(name, **arguments)

    def counted_product(*args: Any) -> Tensor:
        calls["oneDNN"] += 1
        return product(*args)

    monkeypatch.setattr(extension, "launch", counted_launch)
    monkeypatch.setattr(gemm, "_by_onednn", counted_product)
    monkeypatch.setattr(gemm, "_has_onednn", True)  # elsewhere torch multiplies
    return calls


def step(model: ViTAdapter) -> None:
    """A training step and a forward pass without gradients."""
    images = torch.randn(2, 3, 64, 96)
    sum(level.sum() for level in model.train()(images)).backward()
    with torch.no_grad():
        model.eval()(images)


def test_the_reference_is_plain_torch(
    tiny: Tiny, launched: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with vitadapter_fast.backend("reference"):
        step(tiny())
    assert not launched
    monkeypatch.setenv("VITADAPTER_BACKEND", "reference")
    step(tiny())
    assert not launched
    monkeypatch.delenv("VITADAPTER_BACKEND")
    step(tiny())
    assert launched["oneDNN"] > 0 and launched["normalize_rows_cpu"] > 0


# Of S at 256 x 256 before the fused forms had a folder: 5,479 calls, 1,966 changes of file and
# 1,092 questions, and 188 calls in a block.
def test_a_forward_pass_is_little_python() -> None:
    model, image = vitadapter_fast.vit_adapter_s().eval(), torch.rand(1, 3, 256, 256)
    tokens = torch.rand(1, 256, 384)
    with torch.no_grad():
        model(image)
        whole = count(lambda: model(image))
        block = count(lambda: model.blocks[0](tokens, (16, 16)))
    assert whole.calls.total() <= 2100
    assert whole.changes <= 1020
    assert whole.questions <= 400
    assert block.calls.total() <= 75
