# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens in, projected tokens out: linear layers with the norm before and the residual after them.

Layer by layer, torch keeps every intermediate for the backward pass. The functions here keep what
cannot be had again for nearly nothing: normalized tokens, activations and scaled branches are
computed anew. A LayerScale costs no pass at all, since it is folded into the weight, and so is its
gradient: with G = grad.T @ rows, the gradient of the weight is gamma * G, that of gamma G . weight.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..native import gemm, tensors, token_rows
from .plain import is_plain


def norm_linear(x: Tensor, norm: nn.LayerNorm, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Return the result of each of ``layers`` on ``norm(x)``, [B, N, C] each, and x.

    Whoever reads x again, as a residual does, reads this one: then its two gradients are added on
    the way, while they are in the cache.

    Args:
        x: Tokens, [B, N, K].
        norm: Over the last dimension.
        layers: From K channels to any. Where one matrix product computes them all, the results are
            views of it.
    """
    dtype = _fused_dtype(x, norm, *layers)
    if dtype is None or len({layer.bias is None for layer in layers}) > 1:
        normalized = norm(x)
        return (*[layer(normalized) for layer in layers], x)
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers]
    joined, x = _NormLinear.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.bias, norm.eps, dtype, *weights, *biases
    )
    if len(layers) == 1:
        return joined, x
    return (*torch.split(joined, [weight.shape[0] for weight in weights], dim=-1), x)


def residual_linear(
    x: Tensor,
    hidden: Tensor,
    layer: nn.Linear,
    *,
    activation: str = "none",
    gamma: Tensor | None = None,
    kept: Tensor | None = None,
    drop: float = 0.0,
    overwrites: bool = False,
) -> Tensor:
    """Return x + kept * gamma * layer(activation(hidden)), [B, N, C].

    Args:
        x: Tokens, [B, N, C].
        hidden: [B, N, K]; for "swiglu", whose activation is silu(first half) * second half,
            [B, N, 2 * K].
        layer: From K channels to C.
        activation: "none", "gelu" (exact) or "swiglu".
        gamma: [C], or None for 1.
        kept: A factor for each sample, [B, 1, 1], without gradient; or None for 1.
        drop: Dropout rate of the layer's result; 0 outside of training.
        overwrites: Whether the result may come in the memory of ``x``, as it does for large images
            where no gradients are recorded.
    """
    dtype = _fused_dtype(x, layer) if drop == 0.0 else None
    if dtype == torch.float16 and gamma is not None:
        # Small gammas times weights are no numbers of float16, nor are sums without them.
        dtype = None
    if dtype is None:
        branch = layer(activate(hidden, activation))
        if drop > 0.0:
            branch = F.dropout(branch, drop)
        # Small factors first: then the tokens are read and written once instead of three times.
        scale = gamma if kept is None else kept if gamma is None else kept * gamma
        return x + branch if scale is None else torch.addcmul(x, scale, branch)
    if kept is not None and x.shape[0] == 1:
        # The factor of the only image is one of the weight as well, where it costs no pass.
        gamma = kept.flatten().expand(x.shape[2]) if gamma is None else gamma * kept.flatten()
        kept = None
    result: Tensor = _ResidualLinear.apply(  # type: ignore[no-untyped-call]
        x,
        hidden,
        layer.weight,
        layer.bias,
        gamma,
        kept,
        activation,
        dtype,
        overwrites and not torch.is_grad_enabled(),
    )
    return result


def activate(hidden: Tensor, activation: str) -> Tensor:
    """Return the activation of ``residual_linear``."""
    if activation == "gelu":
        return F.gelu(hidden)
    if activation == "swiglu":
        gate, value = hidden.chunk(2, dim=-1)
        return F.silu(gate) * value
    return hidden


def _activate(
    hidden: Tensor, activation: str, grad: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the activation, only until the next call, and the gradient of ``hidden``.

    The gradient of the activation may be overwritten.
    """
    if activation == "gelu" and hidden.is_contiguous() and token_rows.is_ours(hidden):
        return token_rows.gelu(hidden, grad), grad
    activated = activate(hidden, activation)
    if grad is None or activation == "none":
        return activated, grad
    if activation == "gelu":
        return activated, torch.ops.aten.gelu_backward(grad, hidden)
    gate, value = hidden.chunk(2, dim=-1)
    grad_gate = torch.ops.aten.silu_backward(grad * value, gate)
    return activated, torch.cat([grad_gate, grad * F.silu(gate)], dim=-1)


def _fused_dtype(x: Tensor, *modules: nn.Module) -> torch.dtype | None:
    """Return the dtype of the matrix product, or None where torch's layers have to be called.

    A compiler fuses them itself. Layers that someone has wrapped, hooked or sharded are theirs. And
    on GPUs nothing is gained where nothing is kept for a backward pass: folding LayerScale into the
    weights is more work then, for Python too, than one pass over the tokens.
    """
    if tensors.is_recorded() or not (torch.is_grad_enabled() or tensors.is_on_cpu(x)):
        return None
    if not all(is_plain(module, nn.Linear, nn.LayerNorm) for module in modules):
        return None
    weights = [module.weight for module in modules]
    if any(weight.dtype != weights[0].dtype for weight in weights):
        return None
    device, wanted = x.device.type, weights[0].dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        return low if wanted == torch.float32 and x.dtype in (low, wanted) else None
    return x.dtype if x.dtype == wanted else None


class _NormLinear(torch.autograd.Function):
    """Keeps the tokens and two statistics of each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        dtype: torch.dtype,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        normalized, mean, rstd = _normalize(x, norm_weight, norm_bias, eps)
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, *parameters)
        ctx.eps, ctx.dtype = eps, dtype
        half = len(parameters) // 2
        weight, bias = _join(parameters[:half], dtype), _join(parameters[half:], dtype)
        assert weight is not None
        rows = _rows(normalized, dtype)
        ctx.set_materialize_grads(False)
        return gemm.linear(rows, weight, bias).view(*x.shape[:-1], weight.shape[0]), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, plus: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (plus, *[None] * (len(ctx.needs_input_grad) - 1))
        x, mean, rstd, norm_weight, norm_bias, *parameters = ctx.saved_tensors
        needs = ctx.needs_input_grad
        half = len(parameters) // 2
        weights = parameters[:half]
        sizes = [weight.shape[0] for weight in weights]
        grad = _rows(grad, ctx.dtype)

        grads: list[Tensor | None] = [None, None, None, None, None]
        normalized: Tensor | None = None
        if any(needs[:3]):
            weight = _join(weights, ctx.dtype)
            assert weight is not None
            source = x.to(norm_weight.dtype)
            back = gemm.linear(grad, weight.t()).view(x.shape).to(source.dtype)
            if token_rows.is_ours(back, x, norm_weight, norm_bias):
                normalized, *of_norm = token_rows.normalize_backward(
                    back, x, norm_weight, norm_bias, ctx.eps, plus
                )
                grads[:3] = back, *of_norm
            else:
                grads[:3] = torch.ops.aten.native_layer_norm_backward(
                    back, source, x.shape[-1:], mean, rstd, norm_weight, norm_bias, needs[:3]
                )
                grads[0] = None if grads[0] is None else grads[0].to(x.dtype)
                if plus is not None and grads[0] is not None:
                    grads[0] += plus
        grad_weights: list[Tensor | None] = [None] * half
        if any(needs[5 : 5 + half]):
            if normalized is None:
                normalized = _normalize(x, norm_weight, norm_bias, ctx.eps)[0]
            product = gemm.weight_gradient(grad, _rows(normalized, ctx.dtype))
            grad_weights = list(torch.split(product.to(weights[0].dtype), sizes))
        grad_biases: list[Tensor | None] = [None] * half
        if any(needs[5 + half :]):
            grad_biases = list(torch.split(grad.sum(0, dtype=weights[0].dtype), sizes))
        return (*grads, *grad_weights, *grad_biases)


class _ResidualLinear(torch.autograd.Function):
    """Keeps what the activation reads."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        kept: Tensor | None,
        activation: str,
        dtype: torch.dtype,
        overwrites: bool,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, gamma, kept)
        ctx.activation, ctx.dtype = activation, dtype
        rows = _rows(_activate(hidden, activation)[0], dtype)
        scaled = _scaled(weight, gamma).to(dtype)
        shift = None if bias is None else (bias if gamma is None else gamma * bias).to(dtype)
        if kept is None and x.dtype == dtype:
            total = gemm.linear(rows, scaled, shift, plus=_rows(x, dtype), overwrites=overwrites)
            return total.view(x.shape)
        branch = gemm.linear(rows, scaled, shift).view(x.shape)
        return x + branch if kept is None else torch.addcmul(x, kept.to(x.dtype), branch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, gamma, kept = ctx.saved_tensors
        needs_x, needs_hidden, needs_weight, needs_bias, needs_gamma = ctx.needs_input_grad[:5]
        rows = _rows(grad if kept is None else grad * kept, ctx.dtype)

        back = grad_weight = grad_bias = grad_gamma = None
        if needs_hidden:
            scaled = _scaled(weight, gamma).to(ctx.dtype)
            back = gemm.linear(rows, scaled.t()).view(*grad.shape[:-1], weight.shape[1])
            back = back.to(hidden.dtype)
        activated, grad_hidden = _activate(hidden, ctx.activation, back)
        if needs_bias or needs_gamma:
            total = rows.sum(0, dtype=weight.dtype)
            grad_bias = total if gamma is None else gamma * total
        if needs_weight or needs_gamma:
            product = gemm.weight_gradient(rows, _rows(activated, ctx.dtype))
            grad_weight = product.to(weight.dtype)
            if gamma is not None:
                if needs_gamma:
                    grad_gamma = torch.linalg.vecdot(grad_weight, weight)
                    grad_gamma = grad_gamma if bias is None else grad_gamma + bias * total
                grad_weight = _scaled(grad_weight, gamma)
        return (
            grad if needs_x else None,
            grad_hidden,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            grad_gamma,
            None,
            None,
            None,
            None,
        )


def _normalize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalized tokens, mean and 1 / deviation; the first only until the next call."""
    if token_rows.is_ours(x, weight, bias):
        return token_rows.normalize(x, weight, bias, eps)
    return torch.native_layer_norm(x.to(weight.dtype), x.shape[-1:], weight, bias, eps)


def _rows(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return tokens.reshape(-1, tokens.shape[-1]).to(dtype)


def _join(parts: tuple[Tensor | None, ...] | list[Tensor], dtype: torch.dtype) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    if len(tensors) < 2:
        return tensors[0].to(dtype) if tensors else None
    return torch.cat(tensors).to(dtype)


def _scaled(weight: Tensor, gamma: Tensor | None) -> Tensor:
    return weight if gamma is None else gamma[:, None] * weight
