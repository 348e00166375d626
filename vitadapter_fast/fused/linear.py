# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens in, projected tokens out: linear layers with the norm before and the residual after them.

Layer by layer, torch keeps every intermediate for the backward pass. The functions here keep what
cannot be had again for nearly nothing: normalized tokens, activations and scaled branches are
computed anew. A LayerScale costs no pass of its own: it shares that of the residual, or is folded
into the weight. Nor does its gradient: with G = grad.T @ rows, the gradient of the weight is
gamma * G, that of gamma G . weight.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..native import gemm, half_linear, token_rows
from ..ops import int8_linear
from . import matrices
from .form import Form
from .int8_linear import Int8Linear


def norm_linear(
    form: Form, x: Tensor, norm: nn.LayerNorm, *layers: nn.Linear | Int8Linear
) -> tuple[Tensor, ...]:
    """Return the result of each of ``layers`` on ``norm(x)``, [B, N, C] each, and x.

    Whoever reads x again, as a residual does, reads this one: then its two gradients are added on
    the way, while they are in the cache.

    Args:
        form: That of the box.
        x: Tokens, [B, N, K].
        norm: Over the last dimension.
        layers: From K channels to any. One matrix product computes all of them, if all have a bias
            or none has; the results are views of it.
    """
    if len(layers) > 1 and len({(type(layer), layer.bias is None) for layer in layers}) > 1:
        results = []
        for layer in layers:
            result, x = norm_linear(form, x, norm, layer)
            results.append(result)
        return (*results, x)
    if isinstance(layers[0], Int8Linear):
        normalized = _normalized(form, x, norm)
        return (*(layer(normalized).to(form.dtype) for layer in layers), x)
    of_norm = (norm.weight, norm.bias, norm.eps)
    if len(layers) == 1:
        weight, bias = layers[0].weight, layers[0].bias
        return _NormLinear.apply(x, *of_norm, form, weight, bias)  # type: ignore[no-untyped-call,no-any-return]
    parameters = [layer.weight for layer in layers] + [layer.bias for layer in layers]
    joined, x = _NormLinear.apply(x, *of_norm, form, *parameters)  # type: ignore[no-untyped-call]
    return (*torch.split(joined, [layer.weight.shape[0] for layer in layers], dim=-1), x)


def residual_linear(
    form: Form,
    x: Tensor,
    hidden: Tensor,
    layer: nn.Linear | Int8Linear,
    *,
    activation: str = "none",
    gamma: Tensor | None = None,
    kept: Tensor | None = None,
    overwrites: bool = False,
) -> Tensor:
    """Return x + kept * gamma * layer(activation(hidden)), [B, N, C].

    Args:
        form: That of the box.
        x: Tokens, [B, N, C].
        hidden: What the layer reads, activated, [B, N, K]; for "swiglu", whose activation is
            silu(first half) * second half, [B, N, 2 * K].
        layer: From K channels to C.
        activation: "none", "gelu" (exact) or "swiglu".
        gamma: [C], or None for 1.
        kept: A factor for each sample, [B, 1, 1], without gradient; or None for 1.
        overwrites: Whether the result may come in the memory of ``x``, as it does for large images
            where no gradients are recorded.
    """
    if isinstance(layer, Int8Linear) and kept is None and not torch.is_grad_enabled():
        return _int8_residual(x, hidden, layer, activation, gamma)
    is_narrow = form.compute == torch.float16 and gamma is not None
    if is_narrow or isinstance(layer, Int8Linear):
        # In float16 small gammas times weights underflow, and sums without them overflow.
        branch = layer(_activate_by_torch(hidden, activation))
        branch = branch if kept is None else kept * branch
        total = x + branch if gamma is None else torch.addcmul(x, gamma, branch)
        return total.to(x.dtype)
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
        form,
        overwrites and not torch.is_grad_enabled(),
    )
    return result


def _normalized(form: Form, x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return the normalized tokens, only until the next call."""
    x, weight, bias = x.to(form.wide), norm.weight.to(form.wide), norm.bias.to(form.wide)
    if form.is_ours and not torch.is_grad_enabled():
        return token_rows.normalize(x, weight, bias, norm.eps)[0]
    return F.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)


def _int8_residual(
    x: Tensor, hidden: Tensor, layer: Int8Linear, activation: str, gamma: Tensor | None
) -> Tensor:
    """Return x + gamma * layer(activation(hidden)), in one pass over each; without gradients."""
    scales, bias = layer.scales, layer.bias
    if gamma is not None:
        scales = scales * gamma.float()
        bias = None if bias is None else bias * gamma.float()
    has_gelu = activation == "gelu"
    hidden = hidden if has_gelu else _activate_by_torch(hidden, activation)
    layer.check(hidden)
    plus = x if x.dtype == hidden.dtype else None
    total = int8_linear(hidden, layer.weight, scales, bias, plus=plus, has_gelu=has_gelu)
    return total if plus is not None else (x + total).to(x.dtype)


def _activate_by_torch(hidden: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return F.gelu(hidden)
    if activation == "swiglu":
        gate, value = hidden.chunk(2, dim=-1)
        return F.silu(gate) * value
    return hidden


def _activate(
    is_ours: bool, hidden: Tensor, activation: str, grad: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the activation, only until the next call, and the gradient of ``hidden``.

    The gradient of the activation may be overwritten.
    """
    if is_ours and activation == "gelu" and hidden.is_contiguous():
        return token_rows.gelu(hidden, grad), grad
    activated = _activate_by_torch(hidden, activation)
    if grad is None or activation == "none":
        return activated, grad
    if activation == "gelu":
        return activated, torch.ops.aten.gelu_backward(grad, hidden)
    gate, value = hidden.chunk(2, dim=-1)
    grad_gate = torch.ops.aten.silu_backward(grad * value, gate)
    return activated, torch.cat([grad_gate, grad * F.silu(gate)], dim=-1)


class _NormLinear(torch.autograd.Function):
    """Keeps the tokens and two statistics of each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        form: Form,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        weight, bias = _joined(parameters, None if form.is_half else form.compute)
        if form.is_half:
            rows = x.reshape(-1, x.shape[-1])
            of_norm = norm_weight, norm_bias, eps
            out, *moments = half_linear.norm_linear(rows, *of_norm, weight, bias, dtype=form.dtype)
            mean, rstd = (each.view(*x.shape[:-1], 1) for each in moments)
        else:
            normalize = token_rows.normalize if form.is_ours else _normalize
            scale, shift = norm_weight.to(form.wide), norm_bias.to(form.wide)
            normalized, mean, rstd = normalize(x.to(form.wide), scale, shift, eps)
            rows = normalized.reshape(-1, x.shape[-1]).to(form.compute)
            out = gemm.linear(rows, weight, bias, is_suited=form.is_suited, dtype=form.dtype)
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, *parameters)
        ctx.eps, ctx.form = eps, form
        ctx.set_materialize_grads(False)
        # As torch's own products: not a view of what nobody else has, so it may be overwritten.
        return torch.ops.aten._unsafe_view(out, (*x.shape[:-1], weight.shape[0])), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, plus: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (plus, *[None] * (len(ctx.needs_input_grad) - 1))
        x, mean, rstd, norm_weight, norm_bias, *parameters = ctx.saved_tensors
        needs, form = ctx.needs_input_grad, ctx.form
        half = len(parameters) // 2
        weights = parameters[:half]
        sizes = [weight.shape[0] for weight in weights]
        grad = matrices.as_matrix(grad, form)

        grads: list[Tensor | None] = [None, None, None, None, None]
        inputs = x, norm_weight, norm_bias
        source = matrices.widened(form, x, form.wide)
        scale, shift = norm_weight.to(form.wide), norm_bias.to(form.wide)
        normalized: Tensor | None = None
        if any(needs[:3]):
            weight, _ = _joined(parameters, None if form.is_half else form.compute)
            back = matrices.multiply(form, grad, weight.t()).view(x.shape).to(source.dtype)
            if token_rows.is_ours(back, source, scale, shift):
                plus = None if plus is None else plus.to(source.dtype)
                normalized, *of_norm = token_rows.normalize_backward(
                    back, source, scale, shift, ctx.eps, plus
                )
                grads[:3] = back, *of_norm
            else:
                grads[:3] = torch.ops.aten.native_layer_norm_backward(
                    back, source, x.shape[-1:], mean, rstd, scale, shift, needs[:3]
                )
                if plus is not None and grads[0] is not None:
                    grads[0] = grads[0].to(x.dtype).add_(plus)
            grads[:3] = map(_as, grads[:3], inputs)
        grad_weights: list[Tensor | None] = [None] * half
        total: Tensor | None = None
        if any(needs[5 : 5 + half]):
            if normalized is None:
                is_ours = token_rows.is_ours(source, scale, shift)
                normalize = token_rows.normalize if is_ours else _normalize
                normalized = normalize(source, scale, shift, ctx.eps)[0]
            product, total = matrices.weight_gradient(
                form, grad, matrices.as_matrix(normalized, form)
            )
            grad_weights = list(torch.split(product.to(weights[0].dtype), sizes))
        grad_biases: list[Tensor | None] = [None] * half
        if any(needs[5 + half :]):
            total = grad.sum(0, dtype=form.wide) if total is None else total
            grad_biases = list(torch.split(total.to(weights[0].dtype), sizes))
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
        form: Form,
        overwrites: bool,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, gamma, kept)
        ctx.activation, ctx.form, dtype = activation, form, form.compute
        plus = x.reshape(-1, x.shape[-1]) if kept is None else None
        if form.is_half:
            has_gelu = activation == "gelu"
            rows = hidden if has_gelu else _activate_by_torch(hidden, activation)
            total = half_linear.linear(
                rows.reshape(-1, weight.shape[1]),
                weight,
                bias,
                gamma=gamma,
                plus=plus,
                has_gelu=has_gelu,
                dtype=dtype if plus is None else x.dtype,
            ).view(x.shape)
            return total if kept is None else _added(x, total, kept)
        activated = hidden.to(dtype)
        if activation != "none":
            activated, _ = _activate(form.is_suited, activated, activation)
        rows = activated.reshape(-1, weight.shape[1])
        if plus is not None and torch.promote_types(x.dtype, dtype) == dtype:
            # In the pass that adds x, gamma costs nothing; folded into the weight, one over that.
            total = gemm.linear(
                rows,
                weight if weight.dtype is dtype else matrices.as_wide(weight, dtype),
                None if bias is None else bias.to(dtype),
                gamma=gamma,
                plus=plus,
                overwrites=overwrites,
                is_suited=form.is_suited,
                dtype=x.dtype,
            )
            return total.view(x.shape)
        is_wide = weight.dtype is form.wide
        scaled = weight if is_wide else matrices.as_wide(weight, form.wide)
        shift = None if bias is None else bias.to(form.wide)
        if gamma is not None:
            scaled = torch.mul(gamma[:, None], scaled, out=None if is_wide else scaled)
            shift = None if shift is None else gamma * shift
        scaled, shift = scaled.to(dtype), None if shift is None else shift.to(dtype)
        branch = gemm.linear(rows, scaled, shift, is_suited=form.is_suited).view(x.shape)
        return _added(x, branch, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, narrow, bias, gamma, kept = ctx.saved_tensors
        needs_x, needs_hidden, needs_weight, needs_bias, needs_gamma = ctx.needs_input_grad[:5]
        form, dtype, wide = ctx.form, ctx.form.compute, ctx.form.wide
        rows = matrices.as_matrix(grad if kept is None else grad * kept, form)
        weight = narrow.to(wide)

        back = grad_weight = grad_bias = grad_gamma = None
        if needs_hidden:
            scaled, factor = weight, rows
            if gamma is not None and rows.shape[0] < weight.shape[1]:
                factor = matrices.as_matrix(rows * gamma, form)  # fewer numbers
            else:
                scaled = matrices.scaled(weight, gamma)
            back = matrices.multiply(form, factor, scaled.to(dtype).t())
            back = back.view(*grad.shape[:-1], weight.shape[1])
        source = matrices.widened(form, hidden, dtype)
        activated, back = _activate(token_rows.is_ours(source), source, ctx.activation, back)
        product = total = None
        if needs_weight or needs_gamma:
            product, total = matrices.weight_gradient(
                form, rows, matrices.as_matrix(activated, form)
            )
        if needs_bias or needs_gamma:
            total = rows.sum(0, dtype=wide) if total is None else total
            grad_bias = total if gamma is None else gamma * total
        if product is not None:
            grad_weight = product.to(wide)
            if gamma is not None:
                if needs_gamma:
                    grad_gamma = torch.linalg.vecdot(grad_weight, weight)
                    grad_gamma = grad_gamma if bias is None else grad_gamma + bias * total
                grad_weight = matrices.scaled(grad_weight, gamma)
        return (
            grad if needs_x else None,
            _as(back, hidden),
            _as(grad_weight, narrow) if needs_weight else None,
            _as(grad_bias, bias) if needs_bias else None,
            _as(grad_gamma, gamma),
            None,
            None,
            None,
            None,
        )


def _added(x: Tensor, branch: Tensor, kept: Tensor | None) -> Tensor:
    total = x + branch if kept is None else torch.addcmul(x, kept.to(x.dtype), branch)
    return total.to(x.dtype)


def _as(grad: Tensor | None, like: Tensor | None) -> Tensor | None:
    """Return a gradient in the dtype of its tensor."""
    return grad if grad is None or like is None else grad.to(like.dtype)


def _normalize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalized tokens, mean and 1 / deviation, by torch."""
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)


def _joined(
    parameters: Sequence[Tensor | None], dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """Return weights and biases of layers, which come in this order, as those of one layer.

    In a dtype, or in their own.
    """
    half = len(parameters) // 2
    weight, bias = parameters[0], parameters[half]
    assert weight is not None
    if half > 1:
        weight = torch.cat([part for part in parameters[:half] if part is not None])
        biases = [part for part in parameters[half:] if part is not None]
        bias = torch.cat(biases) if biases else None
    if dtype is None:
        return weight, bias
    weight = weight if weight.dtype is dtype else matrices.as_wide(weight, dtype)
    return weight, None if bias is None else bias.to(dtype)
