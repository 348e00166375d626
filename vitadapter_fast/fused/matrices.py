# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens and weights in; matrices and their products in the form of a box out."""

import torch
from torch import Tensor

from ..native import gemm, half_linear, tensors, token_rows
from .form import Form


def as_matrix(tokens: Tensor, form: Form) -> Tensor:
    """Return tokens as rows of what a product reads."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    return rows if form.is_half else rows.to(form.compute)


def widened(form: Form, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Return tokens in what norms and activations read, ``dtype``, only until the next call."""
    return as_wide(tokens, dtype) if form.is_half else tokens.to(dtype)


def multiply(form: Form, rows: Tensor, weight: Tensor) -> Tensor:
    """Return ``rows @ weight.T``, [N, C]."""
    if form.is_half:
        return half_linear.linear(rows, weight, dtype=form.compute)
    return gemm.linear(rows, weight)


def weight_gradient(form: Form, grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of a weight, and that of its bias where it comes for nothing."""
    if form.is_half:
        return half_linear.weight_gradient(grad, rows, dtype=form.compute)
    return gemm.weight_gradient(grad, rows), None


def as_wide(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype: one of 16 bits in float32 on the CPU only until the next call."""
    if tensor.dtype in gemm.LOW and dtype is torch.float32 and tensors.is_on_cpu(tensor):
        return token_rows.widened(tensor)
    return tensor.to(dtype)


def scaled(weight: Tensor, gamma: Tensor | None) -> Tensor:
    """Return a weight, [C, K], times gamma, [C] or None for 1."""
    return weight if gamma is None else gamma[:, None] * weight
