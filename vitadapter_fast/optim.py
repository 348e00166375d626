# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model with a ViTAdapter in it in, an optimizer's parameter groups with layer-wise rates out."""

import logging
import re
from typing import Any

from torch import nn

from .model import ViTAdapter

_log = logging.getLogger("vitadapter_fast")

# Of the ViT; they have no weight decay.
TOKENS = ("pos_embed", "cls_token", "register_tokens")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a parameter for the decay of learning rates.

    Args:
        name: As in ``ViTAdapter.named_parameters()``.
        depth: ViT blocks.

    Returns:
        0 for patch embedding, position table, cls and register tokens, n + 1 for block n,
        ``depth`` + 1 for the adapter and all else.
    """
    if name in (*TOKENS, "mask_token") or name.startswith("patch_embed."):
        return 0
    block = _BLOCK.match(name)
    return int(block[1]) + 1 if block else depth + 1


def layer_decay_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    num_layers: int | None = None,
) -> list[dict[str, Any]]:
    """Sort trainable parameters into groups for an optimizer: the deeper in the ViT, the slower.

    A parameter of layer l (see ``layer_of``) learns at ``lr * layer_decay ** (depth + 1 - l)``;
    what is outside the ViT at ``lr``. Vectors, biases, position table, cls and register tokens have
    no weight decay.

    Args:
        model: A ViTAdapter, or a model with one inside; wrappers such as
            DistributedDataParallel may be around either.
        lr: Learning rate outside the ViT.
        weight_decay: Of matrices and convolution kernels.
        layer_decay: Factor from one layer to the one before it, in (0, 1].
        num_layers: The ViT's depth, for configs that state it; None takes the model's.

    Returns:
        Dicts with ``params``, ``lr`` and ``weight_decay`` for the optimizer, and for reports
        ``lr_scale``, ``group_name`` and ``parameter_names``; from the first layer to the last.
        Others may stand beside them: ``AdamW([*groups, {"params": head.parameters()}])``. Of
        groups with names (``{"params": head.named_parameters()}``) torch wants all or none: for
        those, copy ``parameter_names`` to ``param_names`` in each of ours.

    Raises:
        ValueError: There is not exactly one ViTAdapter, or a number is wrong.

    Source: Bao et al. 2021, arXiv:2106.08254, and ViT-Adapter's detection code, but for its
    position table, which decays there.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(
            f"layer_decay_groups: layer_decay must be above 0 and at most 1, got {layer_decay}; "
            "1 is one rate for all layers"
        )
    prefix, backbone = _find_backbone(model)
    depth = len(backbone.blocks)
    if num_layers not in (None, depth):
        raise ValueError(
            f"layer_decay_groups: num_layers must be the ViT's depth, {depth}, got {num_layers}; "
            "leave it out to take the model's"
        )
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        local = name.removeprefix(prefix) if name.startswith(prefix) else None
        layer = depth + 1 if local is None else layer_of(local, depth)
        is_decayed = parameter.dim() > 1 and not name.endswith(".bias") and local not in TOKENS
        if (layer, is_decayed) not in groups:
            scale = layer_decay ** (depth + 1 - layer)
            groups[layer, is_decayed] = {
                "params": [],
                "lr": lr * scale,
                "weight_decay": weight_decay if is_decayed else 0.0,
                "lr_scale": scale,
                "group_name": f"layer_{layer}_{'decay' if is_decayed else 'no_decay'}",
                # Not param_names: with that key torch 2.6 takes only groups that have it, too.
                "parameter_names": [],
            }
        groups[layer, is_decayed]["params"].append(parameter)
        groups[layer, is_decayed]["parameter_names"].append(name)
    ordered = [groups[key] for key in sorted(groups)]
    for group in ordered:
        _log.debug(
            "%s: %d parameters, lr %.3g, weight decay %.3g",
            group["group_name"],
            len(group["params"]),
            group["lr"],
            group["weight_decay"],
        )
    return ordered


def _find_backbone(model: nn.Module) -> tuple[str, ViTAdapter]:
    found = [
        (name, module) for name, module in model.named_modules() if isinstance(module, ViTAdapter)
    ]
    if len(found) != 1:
        names = ", ".join(name or "the model itself" for name, _ in found)
        raise ValueError(
            f"layer_decay_groups: wanted one ViTAdapter in the {type(model).__name__}, got "
            f"{len(found)}{f' ({names})' if names else ''}; pass the part that holds one"
        )
    name, backbone = found[0]
    return f"{name}." if name else "", backbone
