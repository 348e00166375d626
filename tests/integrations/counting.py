# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Count how often our operator runs, and compare a model before and after a replacement."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Counts the operators of vitadapter_fast that are called in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "vitadapter_fast":
            self.counts[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def outputs_and_gradients(
    model: nn.Module, run: Callable[[], list[Tensor]]
) -> tuple[list[Tensor], dict[str, Tensor], Counter[str]]:
    """Run forward and backward; return outputs, gradients by parameter, and our calls."""
    model.zero_grad()
    with Calls() as calls:
        outputs = run()
        random = torch.Generator().manual_seed(3)
        cotangents = [torch.randn(out.shape, dtype=out.dtype, generator=random) for out in outputs]
        torch.autograd.backward(outputs, cotangents)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [out.detach() for out in outputs], gradients, calls.counts


def perturb_deformable_attention(model: nn.Module) -> None:
    """Give every deformable attention offsets and weights that depend on the query."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            nn.init.normal_(parameter, std=0.1)
