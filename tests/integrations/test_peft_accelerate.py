# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters by peft and offloading by accelerate reach every layer of the model."""

import copy
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import Tensor

from vitadapter_fast import ViTAdapter

peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")

IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def build(**overrides: Any) -> ViTAdapter:
    torch.manual_seed(0)
    return ViTAdapter(**{**TINY, "init_values": 1.0, **overrides})


def maps_of(model: Any) -> list[Tensor]:
    with torch.no_grad():
        return model.eval()(IMAGE)


@pytest.mark.parametrize("targets", [["qkv", "proj"], ["fc1", "fc2"], ["value_proj"]])
def test_low_rank_adapters_are_the_merged_model(targets: list[str]) -> None:
    """The patch embedding has a proj as well, the prior convolutions fc1 and fc2."""
    plain = maps_of(build())
    config = peft.LoraConfig(target_modules=targets, r=4, init_lora_weights=False)
    model = peft.get_peft_model(build(), config)
    adapted = maps_of(model)
    merged = maps_of(model.merge_and_unload())
    for one, other, before in zip(adapted, merged, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(one, before, rtol=1e-2, atol=1e-2)


def test_a_frozen_vit_trains_its_adapters() -> None:
    config = peft.LoraConfig(target_modules=r"blocks\..*attn\.qkv", r=4)
    model = peft.get_peft_model(build(frozen_vit=True), config).train()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert all("lora_" in name for name in trained) and len(trained) == 2 * TINY["depth"]
    optimizer = torch.optim.SGD(trained.values(), 1.0)
    before = {name: each.detach().clone() for name, each in trained.items()}
    for _ in range(2):  # the first moves one factor alone: the other starts at zero
        optimizer.zero_grad()
        maps = model(IMAGE)
        torch.autograd.backward(maps, [torch.sin(level.detach()) for level in maps])
        optimizer.step()
    assert all(not torch.equal(each, before[name]) for name, each in trained.items())


def test_offloaded_weights_come_for_each_call() -> None:
    model = build().eval()
    wanted = maps_of(model)
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    assert all(each.is_meta for each in offloaded.spm.parameters())
    for one, other in zip(maps_of(offloaded), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
