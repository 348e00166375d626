# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The public ViT-Adapter code, from a checkout of github.com/czczup/ViT-Adapter, as a peer.

Its compiled operator is replaced by its own PyTorch fallback, and what it imports from mmcv, mmdet
and timm by stand-ins, so that torch is all it needs.
"""

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vitadapter_fast.presets import PRESETS


def load(checkout: Path, preset: str) -> nn.Module:
    """Return the original of a preset, with random weights under the names of ours.

    Args:
        checkout: Folder that holds ``detection/``.
        preset: "s", "b" or "l"; the original has no ViT-g.

    Raises:
        FileNotFoundError: There is no such code in the folder.
    """
    detection = checkout / "detection"
    backbones = detection / "mmdet_custom" / "models" / "backbones"
    if not (backbones / "vit_adapter.py").exists():
        raise FileNotFoundError(
            f"{checkout} must be a checkout of github.com/czczup/ViT-Adapter: it has no "
            f"{backbones.relative_to(checkout)}/vit_adapter.py"
        )
    _stand_in(backbones)
    sys.path.insert(0, str(detection))
    import ops.modules.ms_deform_attn as attention
    from ops.functions.ms_deform_attn_func import ms_deform_attn_core_pytorch as fallback
    from original_backbones import vit_adapter

    class Fallback:
        @staticmethod
        def apply(
            value: Tensor, hw: Tensor, starts: Tensor, points: Tensor, weights: Tensor, step: int
        ) -> Tensor:
            result: Tensor = fallback(value, hw.tolist(), points, weights)
            return result

    attention.MSDeformAttnFunction = Fallback
    kwargs = PRESETS[preset].model_kwargs()
    del kwargs["ffn"]
    model: nn.Module = vit_adapter.ViTAdapter(layer_scale=True, **kwargs)
    return model


def _stand_in(backbones: Path) -> None:
    """Put modules in place of those that the original imports and a backbone does not need."""

    class Registry:
        def register_module(self) -> Any:
            return lambda kind: kind

    class DropPath(nn.Module):
        def __init__(self, rate: float = 0.0) -> None:
            super().__init__()
            self.rate = rate

        def forward(self, x: Tensor) -> Tensor:
            if self.rate == 0.0 or not self.training:
                return x
            keep = 1 - self.rate
            return x * x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep).div_(keep)

    class Mlp(nn.Module):
        def __init__(
            self, in_features: int, hidden_features: int, act_layer: Any, drop: float
        ) -> None:
            super().__init__()
            self.fc1 = nn.Linear(in_features, hidden_features)
            self.act = act_layer()
            self.fc2 = nn.Linear(hidden_features, in_features)
            self.drop = nn.Dropout(drop)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
            return result

    class BaseModule(nn.Module):
        def __init__(self, init_cfg: object = None) -> None:
            super().__init__()

    # SyncBatchNorm refuses CPU tensors.
    torch.nn.SyncBatchNorm = torch.nn.BatchNorm2d  # type: ignore[assignment,misc]
    modules: dict[str, dict[str, Any]] = {
        "mmdet": {},
        "mmdet.models": {},
        "mmdet.models.builder": {"BACKBONES": Registry()},
        "mmdet.utils": {"get_root_logger": logging.getLogger},
        "mmcv": {},
        "mmcv.runner": {"BaseModule": BaseModule},
        "mmcv_custom": {"my_load_checkpoint": None},
        "timm": {},
        "timm.models": {},
        "timm.models.layers": {
            "DropPath": DropPath,
            "Mlp": Mlp,
            "to_2tuple": lambda x: x if isinstance(x, tuple) else (x, x),
            "trunc_normal_": nn.init.trunc_normal_,
        },
        "MultiScaleDeformableAttention": {},
        # Not as mmdet_custom, which imports every other backbone as well.
        "original_backbones": {"__path__": [str(backbones)]},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module
