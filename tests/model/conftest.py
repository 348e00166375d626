# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Small models and the golden files, shared by the tests of this folder."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from tiny import WINDOWED
from torch import Tensor

from vitadapter_fast import ViTAdapter

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


class Golden(NamedTuple):
    """One golden file: the original's settings and its tensors by name."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors under ``param.``, without that prefix."""
        prefix = "param."
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def load_golden() -> Callable[[str], Golden]:
    """Return a reader of golden files by stem."""

    @cache
    def load(stem: str) -> Golden:
        with safe_open(GOLDEN / f"{stem}.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Golden(json.loads(file.metadata()["config"]), tensors)

    return load


@pytest.fixture
def tiny() -> Callable[..., ViTAdapter]:
    """Return a builder of a small model whose every part has an effect, from a fixed seed."""

    def build(**overrides: Any) -> ViTAdapter:
        torch.manual_seed(0)
        model = ViTAdapter(**{**WINDOWED, "init_values": 1.0, **overrides})
        with torch.no_grad():
            torch.nn.init.normal_(model.pos_embed, std=0.5)
            for name, parameter in model.named_parameters():
                if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                    torch.nn.init.normal_(parameter, std=0.1)
        return model

    return build


@pytest.fixture
def image() -> Tensor:
    """Return two images of 64 x 96."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
