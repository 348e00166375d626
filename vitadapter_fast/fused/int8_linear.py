# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens in, projected tokens out, by weights of 8 bits: the layer that ``quantize`` puts in."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..ops import int8_linear, int8_weight


class Int8Linear(nn.Module):
    """What a ``torch.nn.Linear`` does, for inference, with a fourth of its memory.

    Attributes:
        weight: Int8, [ceil(C / 16), ceil(K / 4), 16, 4], as ``ops.int8_weight`` returns it.
        scales: What a weight of 1 stands for in each channel, float32, [C].
        bias: float32, [C], or None.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        """Round the weight of a layer, which stays as it is.

        Raises:
            ValueError: A weight is not finite.
        """
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scales = int8_weight(layer.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        bias = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., C] in the dtype of ``x``, [..., K]."""
        self.check(x)
        return int8_linear(x, self.weight, self.scales, self.bias)

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless tokens have as many channels as the layer takes."""
        if x.shape[-1] != self.in_features:  # the rounded weight tells whole groups of them alone
            raise ValueError(
                f"Int8Linear: tokens must have {self.in_features} channels, got {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        """Return the sizes, as ``torch.nn.Linear`` does."""
        has_bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={has_bias}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # All keep their dtypes whatever the model is moved to, and are not rounded on the way.
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in kept.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                setattr(self, name, tensor.to(moved.device))
        return self
