# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports triton, which decides at its import: kernels then run on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """Fill every fresh tensor with NaN, so that an output nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.empty(7).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
