# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A mapping for the ``kernels`` library: transformers' layers in, our deformable attention out.

It is transformers' own way to run a layer on other kernels: nothing of others is replaced, but in
the modules of one model. ``replace_mmcv_op`` reaches models whose sampling is a function as well.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .deformable_detr import forward_of_module


class MultiScaleDeformableAttention(nn.Module):
    """The sampling of Deformable DETR, Grounding DINO, RT-DETR and others, without weights.

    Its forward takes value [B, S, M, D], level sizes as [L, 2] and as a list of (h, w), the levels'
    first indexes, sampling locations [B, Q, M, L, P, 2], attention weights [B, Q, M, L, P] and a
    step; it returns [B, Q, M * D].
    """

    has_backward = True
    can_torch_compile = True

    forward = forward_of_module()


class _Repository:
    """Where ``kernels`` finds the layer: here, and not in a repository of the hub."""

    layer_name = MultiScaleDeformableAttention.__name__

    def load(self) -> type[nn.Module]:
        return MultiScaleDeformableAttention


_REPOSITORY = _Repository()
# For ``kernels.use_kernel_mapping`` and ``kernels.register_kernel_mapping``.
KERNEL_MAPPING: Mapping[str, Mapping[str, Any]] = {
    _Repository.layer_name: {"cpu": _REPOSITORY, "cuda": _REPOSITORY}
}
