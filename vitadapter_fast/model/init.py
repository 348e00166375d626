# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A new adapter in, its weights drawn as the original draws them."""

import math

from torch import nn

from .deform_attn import DeformAttn

# Where tensors start that no layer of torch draws; an injector's gamma has a setting of its own.
_STARTS = dict.fromkeys(("gamma1", "gamma2", "weight", "running_var"), 1.0) | dict.fromkeys(
    ("pos_embed", "cls_token", "register_tokens", "bias", "running_mean", "num_batches_tracked"),
    0.0,
)


def init_adapter(level_embed: nn.Parameter, *parts: nn.Module) -> None:
    """Initialize the parts beside the ViT, which keeps torch's defaults: a checkpoint follows."""
    modules = [module for part in parts for module in part.modules()]
    for module in modules:
        _draw_layer(module)
    for module in modules:
        if isinstance(module, DeformAttn):
            module.reset_parameters()
    nn.init.normal_(level_embed)


def draw(module: nn.Module, *, is_adapter: bool) -> None:
    """Draw the tensors that one module of a model holds itself, as those of a new model.

    It is for models built without memory, on torch's meta device, of whose tensors a file has only
    some. A ``DeformAttn`` draws its four layers together, after which none of them is drawn alone.

    Args:
        module: Changed in place, but for tensors of other names than a model has.
        is_adapter: Whether it stands beside the ViT, whose layers start as torch's own.
    """
    if is_adapter and _draw_layer(module):
        return
    if isinstance(module, (DeformAttn, nn.Linear, nn.Conv2d, nn.LayerNorm)):
        module.reset_parameters()
        return
    tensors = dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
    for name, tensor in tensors.items():
        if name == "level_embed":
            nn.init.normal_(tensor)
        elif name == "gamma":
            nn.init.constant_(tensor, module.init_value)  # type: ignore[arg-type]
        elif name in _STARTS:
            nn.init.constant_(tensor, _STARTS[name])


def _draw_layer(module: nn.Module) -> bool:
    """Draw a linear layer or a convolution of the adapter; return whether it is one."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        return False
    return True
