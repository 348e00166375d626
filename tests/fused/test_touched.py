# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A layer that somebody touched is called, whatever was done to it: every layer, every touch."""

import copy
import os
import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.nn.utils import prune
from touches import TOUCHES, Low, Result, Weights, can_take, replace

from vitadapter_fast import ViTAdapter, backend
from vitadapter_fast.fused import BOXES, touched_reason
from vitadapter_fast.fused._choice import plain_reason

SMALL: dict[str, Any] = {
    **TINY,
    "embed_dim": 16,
    "depth": 1,
    "interaction_indexes": [[0, 0]],
    "window_attn": True,
    "window_size": 2,
    "init_values": 1.0,
}


def small(**overrides: Any) -> ViTAdapter:
    torch.manual_seed(0)
    model = ViTAdapter(**{**SMALL, **overrides}).double()
    for name, parameter in model.named_parameters():
        if name.endswith(("offsets.weight", "weights.weight")) or name == "pos_embed":
            nn.init.normal_(parameter, std=0.2)
    return model


IMAGE = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(1)).double()
# DINOv3's with its own adapter, whose extractors see the tokens behind the ViT's last norm.
TRUNKS: dict[str, dict[str, Any]] = {
    "dinov2": {},
    "dinov3": {
        "trunk": "dinov3",
        "window_attn": False,
        "ffn": "swiglu",
        "mlp_ratio": 6.0,
        "injectors": False,
        "final_norm": True,
    },
}


def leaves(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if not list(module.children()) and not isinstance(module, nn.ModuleList)
    ]


LEAVES = leaves(small())


def run(model: nn.Module) -> dict[str, Tensor]:
    """Return maps and gradients by name; the gradients stay with the parameters."""
    model.zero_grad()
    torch.manual_seed(2)
    maps = model(IMAGE)
    generator = torch.Generator().manual_seed(3)
    cotangents = [torch.randn(level.shape, generator=generator).double() for level in maps]
    torch.autograd.backward(maps, cotangents)
    found = {f"map {index}": level.detach() for index, level in enumerate(maps)}
    named = [(name, each.grad) for name, each in model.named_parameters()]
    return found | {name: grad.clone() for name, grad in named if grad is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    assert found.keys() == wanted.keys(), what
    for name, right in wanted.items():
        torch.testing.assert_close(
            found[name], right, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{what}: {n}: {m}"
        )


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("touch", TOUCHES)
def test_a_touch_of_any_leaf_is_seen(touch: str, trunk: str) -> None:
    """In training with gradients, and in inference: as where every module is called."""
    base = small(drop_rate=0.25, **TRUNKS[trunk]).train()
    for name in leaves(base):
        if not can_take(base.get_submodule(name), touch):
            continue
        ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
        seen = touched(ours, name, touch)
        touched(theirs, name, touch)
        found = run(ours)
        count = seen()
        assert count > 0, f"{touch} of {name} was not seen in training"
        with backend("reference"):
            assert_same(found, run(theirs), f"{touch} of {name}")
        if "backward" in touch:
            continue
        found = infer(ours)
        assert seen() > count or isinstance(seen, (Weights, Result)), (
            f"{touch} of {name} was not seen"
        )
        with backend("reference"):
            assert_same(found, infer(theirs), f"{touch} of {name} in eval mode")


def touched(model: nn.Module, name: str, touch: str) -> Callable[[], int]:
    torch.manual_seed(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old forms of norms
        return TOUCHES[touch](model, name)


def infer(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(5)
    with torch.no_grad():
        return {f"map {i}": level for i, level in enumerate(model.eval()(IMAGE))}


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize(
    "touch", ["forward of its own", "forward hook", "forward pre-hook", "subclass", "backward hook"]
)
def test_a_touch_of_any_module_is_seen(touch: str, trunk: str) -> None:
    base = small(**TRUNKS[trunk])
    for name, module in base.named_modules():
        if name in leaves(base) or not name or isinstance(module, nn.ModuleList):
            continue
        if (
            isinstance(base.get_submodule(name), type(base.interactions[0]))
            and touch == "backward hook"
        ):
            continue  # torch's wants tensors as outputs
        ours = copy.deepcopy(base)
        seen = TOUCHES[touch](ours, name)
        run(ours)
        assert seen() > 0, f"{touch} of {name} was not seen"


@pytest.mark.parametrize("trunk", TRUNKS)
def test_global_hooks_see_every_leaf(trunk: str) -> None:
    model, seen = small(**TRUNKS[trunk]), set()
    names = {module: name for name, module in model.named_modules()}
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.add(names[m]))
    try:
        run(model)
    finally:
        handle.remove()
    assert set(leaves(model)) <= seen


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d, nn.ConvTranspose2d])
def test_pruned_layers_train_on_and_are_what_is_left_of_them(kind: type[nn.Module]) -> None:
    model = small()
    pruned = [module for module in model.modules() if isinstance(module, kind)]
    for module in pruned:
        prune.l1_unstructured(module, "weight", 0.3)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(2):
        run(model)
        optimizer.step()
    for module in pruned:
        assert module.weight_orig.grad is not None
        assert not module.weight_orig.grad[module.weight_mask == 0].any()
    model.eval()
    with torch.no_grad():
        before = model(IMAGE)
        for module in pruned:
            prune.remove(module, "weight")
        after = model(IMAGE)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)


def test_low_rank_adapters_everywhere_are_the_merged_model() -> None:
    model = small().eval()
    merged = copy.deepcopy(model)
    for name in LEAVES:
        module = model.get_submodule(name)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            adapter = Low(module)
            replace(model, name, adapter)
            merged.get_submodule(name).weight.data += adapter.change().detach()
    with torch.no_grad():
        for one, other in zip(model(IMAGE), merged(IMAGE), strict=True):
            torch.testing.assert_close(one, other)
    run(model)
    adapters = [module for module in model.modules() if isinstance(module, Low)]
    assert all(each.down.grad is not None and each.down.grad.any() for each in adapters)


def test_a_frozen_vit_trains_its_low_rank_adapters() -> None:
    model = small(frozen_vit=True).train()
    for block in model.blocks:
        block.attn.qkv = Low(block.attn.qkv)
    model.train()
    found = run(model)
    assert found["blocks.0.attn.qkv.down"].any()
    assert "blocks.0.attn.qkv.base.weight" not in found
    assert "blocks.0.norm1.weight" not in found


@pytest.mark.parametrize("keeps_parameters", [True, False])
@pytest.mark.parametrize("most", [300, 3000])
def test_fully_sharded_by_size_is_the_same_model(keeps_parameters: bool, most: int) -> None:
    """FSDP1 wraps whatever has so many parameters, layers that are read here among them."""
    wanted = run(small())
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        model = FullyShardedDataParallel(
            small(),
            auto_wrap_policy=partial(size_based_auto_wrap_policy, min_num_params=most),
            use_orig_params=keeps_parameters,
            device_id=torch.device("cpu"),
        )
        kinds = {type(module) for module in model.modules()}
        assert FullyShardedDataParallel in kinds
        found = run(model)
    finally:
        distributed.destroy_process_group()
    for index in range(4):
        torch.testing.assert_close(found[f"map {index}"], wanted[f"map {index}"])


def test_dropout_that_is_always_on_drops_in_eval_mode() -> None:
    for name in ("pos_drop", "blocks.0.attn.proj_drop", "blocks.0.mlp.drop"):
        model = small().eval()
        TOUCHES["dropout that is always on"](model, name)
        with torch.no_grad():
            first, second = model(IMAGE), model(IMAGE)
        assert not torch.equal(first[0], second[0]), name


@pytest.mark.parametrize("name", ["blocks.0", "interactions.0.extractor"])
def test_a_drop_path_in_a_mode_of_its_own_drops(name: str) -> None:
    model = small(drop_path_rate=0.9).eval()
    module = model.get_submodule(f"{name}.drop_path")
    module.rate = 0.9
    module.train()
    with torch.no_grad():
        outs = [model(IMAGE)[1] for _ in range(8)]
    assert any(not torch.equal(outs[0], other) for other in outs[1:])


def test_what_others_made_is_not_changed_in_place() -> None:
    """Everything that a hook has seen is as it was afterwards."""
    for mode in (True, False):
        model = small().train(mode)
        kept: list[tuple[Tensor, Tensor]] = []

        def keep(module: nn.Module, args: Any, out: Any, kept: Any = kept) -> None:
            for each in (*args, *(out if isinstance(out, tuple) else (out,))):
                if torch.is_tensor(each):
                    kept.append((each, each.detach().clone()))

        for name in ("spm", "spm.fc1", "up", "blocks.0", "interactions.0.extractor.attn", "norm1"):
            model.get_submodule(name).register_forward_hook(keep)
        with torch.set_grad_enabled(mode):
            model(IMAGE)
        assert kept
        assert all(torch.equal(one.detach(), other) for one, other in kept)


FUZZ = int(os.environ.get("VITADAPTER_FUZZ", "0"))


@pytest.mark.parametrize("seed", range(max(8, 100 * FUZZ)))
def test_several_touches_at_once_are_all_seen(seed: int) -> None:
    draw = random.Random(seed)
    base = small(**TRUNKS["dinov3" if seed % 2 else "dinov2"]).train(draw.random() < 0.5)
    names = draw.sample(leaves(base), draw.randint(2, 5))
    chosen = []
    for name in names:
        module = base.get_submodule(name)
        possible = [t for t in TOUCHES if can_take(module, t) and "ropout" not in t]
        chosen.append((name, draw.choice(possible)))
    models = [copy.deepcopy(base), copy.deepcopy(base)]
    seen = {}
    for index, model in enumerate(models):
        found = {f"{touch} of {name}": touched(model, name, touch) for name, touch in chosen}
        seen = seen if index else found
    found = run(models[0])
    assert [what for what, count in seen.items() if not count()] == []
    with backend("reference"):
        wanted = run(models[1])
    assert_same(found, wanted, str(chosen))


def test_untouched_boxes_run() -> None:
    model = small()
    assert touched_reason(model) is None
    x, c = torch.randn(1, 8, 16).double(), torch.randn(1, 42, 16).double()
    inputs = {
        "block": (model.blocks[0], x),
        "injector": (model.interactions[0].injector, x, c),
        "extractor": (model.interactions[0].extractor, c, x),
        "spatial_prior": (model.spm, IMAGE),
        "pyramid": (model,),
    }
    for box in BOXES:
        given = inputs.pop(box.__name__.rpartition(".")[2])
        assert plain_reason(box, *given) is None
        with backend("reference"):
            assert plain_reason(box, *given) == "the reference was asked for"
    assert not inputs
