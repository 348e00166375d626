# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters by peft and offloading by accelerate reach every layer of the model."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter
from vitadapter_fast.integrations.peft import ADAPTER_TARGETS, VIT_TARGETS, modules_to_save

peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")

IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


MODELS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "swiglu": {"ffn": "swiglu"},
    "dinov3": {"trunk": "dinov3", "injectors": False, "final_norm": True, "frozen_vit": True},
    "dinov3_swiglu": {"trunk": "dinov3", "ffn": "swiglu", "qkv_bias": False},
}
every_model = pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)


def build(**overrides: Any) -> ViTAdapter:
    torch.manual_seed(0)
    return ViTAdapter(**{**TINY, "init_values": 1.0, **overrides})


class Detector(nn.Module):
    """A model with another around it, and layers of its own that are called as some of ours."""

    def __init__(self, **overrides: Any) -> None:
        super().__init__()
        self.body = build(**overrides)
        self.norm1 = nn.GroupNorm(4, 32)
        self.head = nn.ModuleDict({"qkv": nn.Linear(32, 8), "fc1": nn.Linear(32, 8)})

    def forward(self, image: Tensor) -> list[Tensor]:
        first, *rest = self.body(image)
        return [self.norm1(first), *rest]


def linear_layers(model: nn.Module, *, beneath: str) -> set[str]:
    modules = dict(model.named_modules())
    return {
        name for name, each in modules.items() if isinstance(each, nn.Linear) and beneath in name
    }


def descend(model: Any) -> list[Tensor]:
    """Take two steps of all that trains; return where that started."""
    trained = [each for each in model.parameters() if each.requires_grad]
    before = [each.detach().clone() for each in trained]
    optimizer = torch.optim.SGD(trained, 1e-3)
    for _ in range(2):  # the first moves one of two factors alone: the other starts at zero
        optimizer.zero_grad()
        maps = model(IMAGE)
        torch.autograd.backward(maps, [torch.sin(level.detach()) for level in maps])
        optimizer.step()
    return before


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


@every_model
@pytest.mark.parametrize("kind", [build, Detector], ids=["alone", "inside"])
def test_patterns_name_all_linear_layers_of_their_part(
    kind: Any, overrides: dict[str, Any]
) -> None:
    model = kind(**overrides)
    for pattern, part in ((VIT_TARGETS, "blocks."), (ADAPTER_TARGETS, "interactions.")):
        hit = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
        assert hit == linear_layers(model, beneath=part) != set()
        config = peft.LoraConfig(target_modules=pattern, r=4)
        assert set(peft.get_peft_model(copy.deepcopy(model), config).targeted_module_names) == hit


@every_model
@pytest.mark.parametrize("pattern", [VIT_TARGETS, ADAPTER_TARGETS], ids=["vit", "adapter"])
def test_adapters_of_a_pattern_train_and_merge(pattern: str, overrides: dict[str, Any]) -> None:
    model = peft.get_peft_model(build(**overrides), peft.LoraConfig(target_modules=pattern, r=4))
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    count = sum(bool(re.fullmatch(pattern, name)) for name, _ in build(**overrides).named_modules())
    assert all("lora_" in name for name in trained) and len(trained) == 2 * count
    before = descend(model.train())
    assert all(not torch.equal(*pair) for pair in zip(trained.values(), before, strict=True))
    adapted = maps_of(model)
    merged = maps_of(model.merge_and_unload())
    for one, other in zip(adapted, merged, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@every_model
@pytest.mark.parametrize("kind", [build, Detector], ids=["alone", "inside"])
def test_modules_to_save_are_the_adapter(
    kind: Any, overrides: dict[str, Any], tmp_path: Path
) -> None:
    def wrapped(base: Any) -> Any:
        names = modules_to_save(base)
        config = peft.LoraConfig(target_modules=VIT_TARGETS, r=4, modules_to_save=names)
        return peft.get_peft_model(base, config)

    base = kind(**overrides)
    start = copy.deepcopy(base)
    model = wrapped(base).train()
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    body = "base_model.model." + ("" if kind is build else "body.")
    whole = {
        name.removeprefix(body).replace(".modules_to_save.default", "")
        for name in trained
        if "lora_" not in name
    }
    beside_vit = r"(spm|interactions|up|norm[1-4])\..*"
    # peft cannot tell the norms of blocks from those of a model that is not inside of another.
    wanted = beside_vit if kind is Detector else rf"{beside_vit}|blocks\.\d+\.norm[12]\..*"
    names = [name for name, _ in build(**overrides).named_parameters()]
    assert whole == {name for name in names if re.fullmatch(wanted, name)}
    before = descend(model)
    after = [each for each in model.parameters() if each.requires_grad]
    moved = [not torch.equal(*pair) for pair in zip(after, before, strict=True)]
    assert sum(moved) > 0.9 * len(moved)  # biases before a norm have no gradient
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(start, tmp_path)
    for one, other in zip(maps_of(again), maps_of(model), strict=True):
        assert torch.equal(one, other)


def test_modules_to_save_need_one_model() -> None:
    with pytest.raises(ValueError, match="modules_to_save: .* Linear has 0"):
        modules_to_save(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Sequential has 2; call it for one of its parts"):
        modules_to_save(nn.Sequential(build(), build()))


def test_a_frozen_vit_trains_its_adapters() -> None:
    config = peft.LoraConfig(target_modules=VIT_TARGETS, r=4)
    model = peft.get_peft_model(build(frozen_vit=True), config).train()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert all("lora_" in name for name in trained) and len(trained) == 8 * TINY["depth"]
    before = descend(model)
    assert all(not torch.equal(*pair) for pair in zip(trained.values(), before, strict=True))


def test_offloaded_weights_come_for_each_call() -> None:
    model = build().eval()
    wanted = maps_of(model)
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    assert all(each.is_meta for each in offloaded.spm.parameters())
    for one, other in zip(maps_of(offloaded), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
