# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The golden files, and the small models, shared by the tests of this folder."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors import safe_open
from tiny import image, tiny  # noqa: F401
from torch import Tensor

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
