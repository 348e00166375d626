# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Layer-wise decay of learning rates: which parameter gets which rate and weight decay."""

from typing import Any

import pytest
import torch
from tiny import TINY
from torch import nn

from vitadapter_fast import ViTAdapter
from vitadapter_fast.optim import layer_decay_groups, layer_of

DEPTH = 4


class Detector(nn.Module):
    def __init__(self, **overrides: Any) -> None:
        super().__init__()
        self.backbone = ViTAdapter(**{**TINY, **overrides})
        self.head = nn.Conv2d(32, 5, 1)


def settings_of(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of every parameter by name."""
    groups = layer_decay_groups(model, lr=1.0, weight_decay=0.05, layer_decay=0.5)
    return {
        name: (group["lr"], group["weight_decay"])
        for group in groups
        for name in group["param_names"]
    }


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("pos_embed", 0),
        ("patch_embed.proj.weight", 0),
        ("blocks.0.attn.qkv.weight", 1),
        ("blocks.11.gamma1", 12),
        ("level_embed", 13),
        ("interactions.0.injector.gamma", 13),
        ("norm1.weight", 13),
    ],
)
def test_layer_of_parameter(name: str, layer: int) -> None:
    assert layer_of(name, 12) == layer


def test_rate_halves_with_every_layer() -> None:
    settings = settings_of(Detector())
    assert settings["head.weight"] == (1.0, 0.05)
    assert settings["backbone.spm.stem.0.weight"] == (1.0, 0.05)
    for block in range(DEPTH):
        rate, decay = settings[f"backbone.blocks.{block}.mlp.fc1.weight"]
        assert (rate, decay) == (0.5 ** (DEPTH - block), 0.05)
    assert settings["backbone.patch_embed.proj.weight"] == (0.5**5, 0.05)


def test_position_table_vectors_and_biases_do_not_decay() -> None:
    settings = settings_of(Detector())
    assert settings["backbone.pos_embed"] == (0.5**5, 0.0)
    for name in ("head.bias", "backbone.blocks.1.gamma1", "backbone.norm1.weight"):
        assert settings[name][1] == 0.0


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = Detector(frozen_vit=True)
    groups = layer_decay_groups(model, lr=1.0, weight_decay=0.05, layer_decay=0.5)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert not any("blocks" in name for group in groups for name in group["param_names"])


def test_optimizer_takes_the_groups_of_a_backbone_alone() -> None:
    model = ViTAdapter(**TINY)
    groups = layer_decay_groups(model, lr=1e-4, weight_decay=0.05, layer_decay=0.7, num_layers=4)
    optimizer = torch.optim.AdamW(groups)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * 0.7**5)
    assert optimizer.param_groups[-1]["lr"] == 1e-4


def test_model_without_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted one ViTAdapter in the Linear, got 0"):
        layer_decay_groups(nn.Linear(2, 2), lr=1.0, weight_decay=0.0, layer_decay=0.5)


def test_two_backbones_are_refused() -> None:
    both = nn.ModuleDict({"left": ViTAdapter(**TINY), "right": ViTAdapter(**TINY)})
    with pytest.raises(ValueError, match=r"got 2 \(left, right\); pass the part"):
        layer_decay_groups(both, lr=1.0, weight_decay=0.0, layer_decay=0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1, got 0.0"),
        ({"layer_decay": 1.5}, "got 1.5"),
        ({"num_layers": 12}, "num_layers must be the ViT's depth, 4, got 12"),
    ],
)
def test_wrong_number_is_refused(wrong: dict[str, Any], message: str) -> None:
    settings = {"lr": 1.0, "weight_decay": 0.0, "layer_decay": 0.5}
    with pytest.raises(ValueError, match=message):
        layer_decay_groups(ViTAdapter(**TINY), **{**settings, **wrong})
