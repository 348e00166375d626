# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A new adapter in, its weights drawn as the original draws them."""

import math

from torch import nn

from .deform_attn import DeformAttn


def init_adapter(level_embed: nn.Parameter, *parts: nn.Module) -> None:
    """Initialize the parts beside the ViT, which keeps torch's defaults: a checkpoint follows."""
    modules = [module for part in parts for module in part.modules()]
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in modules:
        if isinstance(module, DeformAttn):
            module.reset_parameters()
    nn.init.normal_(level_embed)
