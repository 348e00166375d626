# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Layer-wise decay of learning rates: which parameter gets which rate and weight decay."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

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
        for name in group["parameter_names"]
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
    assert not any("blocks" in name for group in groups for name in group["parameter_names"])


def test_optimizer_takes_the_groups_of_a_backbone_alone() -> None:
    model = ViTAdapter(**TINY)
    groups = layer_decay_groups(model, lr=1e-4, weight_decay=0.05, layer_decay=0.7, num_layers=4)
    optimizer = torch.optim.AdamW(groups)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * 0.7**5)
    assert optimizer.param_groups[-1]["lr"] == 1e-4


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    return layer_decay_groups(model, lr=1e-2, weight_decay=0.05, layer_decay=0.5)


def added_later(model: Detector, make: Any) -> Optimizer:
    optimizer: Optimizer = make(groups_of(model.backbone))
    optimizer.add_param_group({"params": model.head.parameters(), "lr": 0.1})
    return optimizer


def listed_after(model: Detector, make: Any) -> Optimizer:
    return make([*groups_of(model.backbone), {"params": model.head.parameters(), "lr": 0.1}])


def listed_before(model: Detector, make: Any) -> Optimizer:
    return make([{"params": model.head.parameters(), "lr": 0.1}, *groups_of(model.backbone)])


def with_names(model: Detector, make: Any) -> Optimizer:
    groups = groups_of(model.backbone)
    for group in groups:
        group["param_names"] = group["parameter_names"]
    return make([*groups, {"params": model.head.named_parameters(), "lr": 0.1}])


def of_the_whole(model: Detector, make: Any) -> Optimizer:
    return make(groups_of(model))


Compose = Callable[[Detector, Any], Optimizer]
COMPOSE = [added_later, listed_after, listed_before, with_names, of_the_whole]
MAKE = [partial(AdamW, foreach=True), partial(AdamW, fused=True), partial(SGD, momentum=0.9)]
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
    "warm-up": lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
    "poly": lambda optimizer: lr_scheduler.PolynomialLR(optimizer, total_iters=5),
    "multi-step": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 2]),
}


def step(model: nn.Module, optimizer: Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def rates(optimizer: Optimizer) -> dict[int, float]:
    return {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}


@pytest.mark.parametrize(
    ("compose", "make"),
    [*((compose, AdamW) for compose in COMPOSE), *((added_later, make) for make in MAKE)],
)
def test_groups_stand_beside_ones_own_in_an_optimizer(compose: Compose, make: Any) -> None:
    model = Detector()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optimizer = compose(model, make)
    assert rates(optimizer).keys() == {id(each) for each in model.parameters()}
    step(model, optimizer)
    for name in ("backbone.blocks.0.mlp.fc1.weight", "backbone.pos_embed", "head.weight"):
        assert not torch.equal(before[name], model.get_parameter(name))


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedule_keeps_the_ratios_of_the_rates(schedule: Any) -> None:
    model = Detector()
    optimizer = added_later(model, AdamW)
    first = rates(optimizer)
    scheduler = schedule(optimizer)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    factors = {now / first[each] for each, now in rates(optimizer).items()}
    assert max(factors) == pytest.approx(min(factors)) != 1


@pytest.mark.parametrize("compose", COMPOSE)
def test_state_of_an_optimizer_is_saved_and_loaded(compose: Compose) -> None:
    model = Detector()
    optimizer = compose(model, AdamW)
    step(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.5
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = compose(model, AdamW)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert rates(other) == rates(optimizer)
    for parameter in model.parameters():
        for one, two in zip(
            optimizer.state[parameter].values(), other.state[parameter].values(), strict=True
        ):
            assert torch.equal(one, two)
    # One more group is as welcome as before.
    extra = nn.Linear(2, 2)
    named = compose is with_names
    other.add_param_group({"params": extra.named_parameters() if named else extra.parameters()})


@pytest.mark.parametrize("compose", COMPOSE)
def test_state_by_names_is_loaded_by_names(compose: Compose) -> None:
    """As torch's distributed checkpoints have it."""
    model = Detector()
    optimizer = compose(model, AdamW)
    step(model, optimizer)
    saved = get_optimizer_state_dict(model, optimizer)
    other = compose(model, AdamW)
    set_optimizer_state_dict(model, other, saved)
    head = model.head.weight
    assert torch.equal(other.state[head]["exp_avg"], optimizer.state[head]["exp_avg"])
    assert rates(other) == rates(optimizer)


def test_no_key_of_a_group_is_one_that_torch_reads() -> None:
    """But for those that are meant for it."""
    keys = {key for group in groups_of(ViTAdapter(**TINY)) for key in group}
    reserved = {"param_names", "initial_lr", "swa_lr", "max_lr", "min_lr", "max_momentum"}
    for kind in Optimizer.__subclasses__():
        if kind.__module__.startswith("torch.optim."):
            weight = nn.Parameter(torch.ones(2, 2))
            try:
                reserved |= kind([weight]).defaults.keys()
            except TypeError:  # wants a rate
                reserved |= kind([weight], lr=0.1).defaults.keys()
    assert keys & reserved == {"lr", "weight_decay"}
    assert keys == {
        "params", "lr", "weight_decay", "lr_scale", "group_name", "parameter_names"
    }  # fmt: skip


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
