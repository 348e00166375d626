# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The backbone inside timm: registry, features, optimizer groups, files."""

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import adapted, as_hf, official, saved
from tiny import WINDOWED
from torch import Tensor, nn

timm = pytest.importorskip("timm")

from timm.models import load_checkpoint, save_for_hf  # noqa: E402
from timm.optim import create_optimizer_v2, param_groups_layer_decay  # noqa: E402

from vitadapter_fast import ViTAdapter, images, vit_adapter, weights  # noqa: E402
from vitadapter_fast.builders import MODELS  # noqa: E402
from vitadapter_fast.errors import CheckpointError  # noqa: E402
from vitadapter_fast.integrations import timm as ours  # noqa: E402
from vitadapter_fast.integrations._common import registered_name  # noqa: E402
from vitadapter_fast.optim import layer_decay_groups  # noqa: E402
from vitadapter_fast.weights.download import official_model  # noqa: E402
from vitadapter_fast.weights.hub import repository  # noqa: E402
from vitadapter_fast.weights.patch_kernel import with_channels  # noqa: E402

IMAGE = torch.rand(2, 3, 75, 110, generator=torch.Generator().manual_seed(1))
DINOV3: dict[str, Any] = {
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "conv_inplane": 8,
    "deform_num_heads": 4,
    "interaction_indexes": [[0, 0], [1, 1], [2, 2], [3, 3]],
}
TRUNKS = {
    "dinov2": ("vit_adapter_s_dinov2", {**WINDOWED, "init_values": 1.0}),
    "dinov3": ("vit_adapter_s_dinov3", DINOV3),
}


def create(trunk: str = "dinov2", **keywords: Any) -> Any:
    name, settings = TRUNKS[trunk]
    torch.manual_seed(0)
    return timm.create_model(name, **{**settings, **keywords})


def bare(model: nn.Module) -> ViTAdapter:
    return model.model if isinstance(model, ours.FeatureMaps) else model


def with_other_values(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {
        name: torch.rand_like(each) if each.is_floating_point() else each + 3
        for name, each in model.state_dict().items()
    }


def assert_equal(one: Any, other: Any) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def assert_holds(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    found = bare(model).state_dict()
    assert state.keys() <= found.keys() and state
    assert [name for name in state if not torch.equal(found[name], state[name])] == []


# -- the registry


@pytest.mark.parametrize("size", MODELS)
def test_a_published_model_is_registered(size: str) -> None:
    name = registered_name(size)
    assert timm.list_models(name) == [name]
    with torch.device("meta"):
        wanted = vit_adapter(size).state_dict()
        found = timm.create_model(name).state_dict()
    assert {key: each.shape for key, each in found.items()} == {
        key: each.shape for key, each in wanted.items()
    }


def test_names_of_the_registry() -> None:
    names = timm.list_models("vit_adapter_*")
    assert len(names) == len(MODELS)
    sizes = {"s_dinov2", "g_dinov2", "s_dinov3", "splus_dinov3", "hplus_dinov3", "7b_dinov3"}
    assert {f"vit_adapter_{size}" for size in sizes} <= set(names)


@pytest.mark.parametrize(
    ("trunk", "license"), [("dinov2", "apache-2.0"), ("dinov3", "dinov3-license")]
)
def test_images_are_prepared_as_for_the_vit(trunk: str, license: str) -> None:
    model = create(trunk, features_only=True)
    assert model.pretrained_cfg["license"] == license
    data = timm.data.resolve_model_data_config(model)
    assert (data["mean"], data["std"]) == (images.MEAN, images.STD)
    assert data["input_size"] == (3, 512, 512)


# -- features


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_model_is_the_adapter(trunk: str) -> None:
    model = create(trunk).eval()
    size = {"dinov2": "s", "dinov3": "dinov3-s"}[trunk]
    alone = vit_adapter(size, **TRUNKS[trunk][1])
    alone.load_state_dict(model.state_dict())
    with torch.no_grad():
        maps = alone.eval()(IMAGE)
        assert_equal(model(IMAGE), maps)
        assert torch.equal(model.forward_features(IMAGE), maps[3])
        last, several = model.forward_intermediates(IMAGE)
        assert_equal([last, *several], [maps[3], *maps])
        chosen = model.forward_intermediates(
            IMAGE, [0, -2], norm=True, stop_early=True, output_fmt="NHWC", intermediates_only=True
        )
    assert all(each.is_contiguous() for each in chosen)
    assert_equal(chosen, [maps[index].permute(0, 2, 3, 1) for index in (0, 2)])


@pytest.mark.parametrize(
    ("out_indices", "wanted"),
    [(None, [0, 1, 2, 3]), ((1, 3), [1, 3]), (2, [2, 3]), ((-1,), [3]), ((3, 0), [3, 0])],
)
def test_features_are_the_maps_chosen(out_indices: Any, wanted: list[int]) -> None:
    maps = create().eval()(IMAGE)
    net = create(features_only=True, out_indices=out_indices).eval()
    assert_equal(net(IMAGE), [maps[index] for index in wanted])
    assert net.feature_info.channels() == [32] * len(wanted)
    assert net.feature_info.reduction() == [(4, 8, 16, 32)[index] for index in wanted]
    for name, index in zip(net.feature_info.module_name(), wanted, strict=True):
        assert net.model.get_submodule(name) is getattr(net.model, f"norm{index + 1}")


def test_a_copy_computes_the_same() -> None:
    """timm averages weights in one."""
    net = create(features_only=True).eval()
    assert_equal(copy.deepcopy(net)(IMAGE), net(IMAGE))


# -- training


@pytest.mark.parametrize("trunk", TRUNKS)
def test_what_trains_has_gradients(trunk: str) -> None:
    """Also where a map is left out: DistributedDataParallel would wait for its layers'."""
    net = create(trunk, features_only=True, out_indices=(1, 2, 3), in_chans=4, drop_path_rate=0.0)
    optimizer = create_optimizer_v2(net, "adamw", lr=1e-3, layer_decay=0.7)
    image = torch.rand(2, 4, 64, 96)
    loss = sum(each.square().mean() for each in net.train()(image))
    loss.backward()
    trained = {name: each for name, each in net.named_parameters() if each.requires_grad}
    lacking = [
        name
        for name, each in trained.items()
        if each.grad is None or not each.grad.isfinite().all()
    ]
    assert lacking == []
    assert {"model.up.weight", "model.norm1.weight"}.isdisjoint(trained)
    assert {"model.norm2.weight", "model.spm.stem.0.weight"} <= trained.keys()
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert held == {id(each) for each in trained.values()}


def settings_of(groups: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    return {
        id(each): (group["lr_scale"], group["weight_decay"])
        for group in groups
        for each in group["params"]
    }


@pytest.mark.parametrize(
    ("trunk", "overrides"),
    [
        ("dinov2", {}),
        ("dinov2", {"frozen_vit": True}),
        ("dinov2", {"num_register_tokens": 4, "window_attn": False}),
        ("dinov3", {"injectors": True}),
    ],
)
@pytest.mark.parametrize("features_only", [False, True])
def test_layers_learn_at_the_rates_of_our_groups(
    trunk: str, overrides: dict[str, Any], features_only: bool
) -> None:
    model = create(trunk, features_only=features_only, **overrides)
    wanted = settings_of(layer_decay_groups(model, lr=1.0, weight_decay=0.05, layer_decay=0.7))
    found = settings_of(
        param_groups_layer_decay(
            model,
            weight_decay=0.05,
            layer_decay=0.7,
            no_weight_decay_list=model.no_weight_decay(),
        )
    )
    assert found.keys() == wanted.keys() and len(found) > 100
    for parameter, each in found.items():
        assert each == pytest.approx(wanted[parameter])
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.7)
    assert settings_of(optimizer.param_groups) == found


def test_coarse_layers_are_stages() -> None:
    stages = [[0, 1], [2, 2], [3, 5], [6, 6]]
    model = create(
        depth=7, interaction_indexes=stages, window_attn=False, window_size=14, norm="GN"
    )
    layer = model.group_matcher(coarse=True)
    blocks = [layer(f"blocks.{index}.gamma1") for index in range(7)]
    assert blocks == [1, 1, 2, 3, 3, 3, 4]
    assert layer("pos_embed") == 0 and layer("norm1.weight") == layer("level_embed") == 5


@pytest.mark.parametrize("features_only", [False, True])
def test_gradient_checkpointing_is_with_cp(features_only: bool) -> None:
    model = create(features_only=features_only, drop_path_rate=0.0, norm="GN").train()
    stages = [bare(model), *bare(model).interactions]

    def gradients() -> list[Tensor]:
        model.zero_grad()
        torch.autograd.backward([each.square().sum() for each in model(IMAGE)])
        return [each.grad for each in model.parameters() if each.grad is not None]

    plain = gradients()
    model.set_grad_checkpointing()
    assert all(each.with_cp for each in stages)
    torch.testing.assert_close(gradients(), plain)
    model.set_grad_checkpointing(False)
    assert not any(each.with_cp for each in stages)


# -- weights


@pytest.mark.parametrize("size", [size for size in MODELS if size != "dinov3-t"])
def test_pretrained_takes_the_published_weights(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(weights, "load_checkpoint", lambda model, path, **_: asked.append(path))
    with torch.device("meta"):
        timm.create_model(registered_name(size), pretrained=True)
    assert timm.list_models(registered_name(size), pretrained=True)
    letters = size.removeprefix("dinov3-")
    if letters == size:
        assert asked == [f"dinov2_vit{size}14"] and official_model(asked[0]) is not None
    else:
        end = {"s+": "s16plus", "h+": "h16plus"}.get(letters, f"{letters}16")
        assert asked == [f"dinov3_vit{end}"] and repository(asked[0]) is not None


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("keyword", ["pretrained", "checkpoint_path"])
@pytest.mark.parametrize("kind", ["adapter", "features", "dinov2", "hugging face"])
def test_a_file_is_loaded(features_only: bool, keyword: str, kind: str, tmp_path: Path) -> None:
    values = with_other_values(create())
    content, wanted = {
        "adapter": (values, values),
        "features": ({f"model.{name}": each for name, each in values.items()}, values),
        "dinov2": (official(patch=16), adapted(official(patch=16))),
        "hugging face": (as_hf(official(patch=16)), adapted(official(patch=16))),
    }[kind]
    file = saved({"state_dict": content, "epoch": 3}, tmp_path / "file.pth")
    model = create(features_only=features_only, **{keyword: str(file)})
    kept = bare(create()).state_dict()
    assert_holds(model, {**kept, **wanted})


def test_what_timm_saves_comes_back(tmp_path: Path) -> None:
    model = create(in_chans=4, img_size=96, pretrain_size=96)
    model.load_state_dict(with_other_values(model))
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert type(again) is ours.ViTAdapter
    assert_holds(again, model.state_dict())
    image = torch.rand(1, 4, 75, 110)
    assert_equal(again.eval()(image), model.eval()(image))
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True)
    assert_holds(net, model.state_dict())


def test_a_trained_adapter_takes_images_of_other_channels() -> None:
    values = with_other_values(create())
    model = create(pretrained=True, pretrained_cfg_overlay={"state_dict": values}, in_chans=5)
    for name in ("patch_embed.proj.weight", "spm.stem.0.weight"):
        torch.testing.assert_close(model.state_dict()[name], with_channels(values.pop(name), 5))
    assert_holds(model, values)


@pytest.mark.parametrize("keyword", ["pretrained_cfg", "pretrained_cfg_overlay"])
def test_weights_of_a_config_of_ones_own_are_loaded(keyword: str, tmp_path: Path) -> None:
    file = saved(official(), tmp_path / "file.pth")
    model = create(pretrained=True, **{keyword: {"file": str(file)}})
    expected = create()
    weights.load_checkpoint(expected, file)
    assert_holds(model, expected.state_dict())


@pytest.mark.parametrize("size", [96, (96, 96)])
def test_img_size_is_that_of_the_position_table(size: Any) -> None:
    settings = {name: each for name, each in WINDOWED.items() if name != "pretrain_size"}
    model = timm.create_model("vit_adapter_s_dinov2", **{**settings, "img_size": size})
    assert model.pos_embed.shape == (1, 1 + 6 * 6, 32)


# -- errors


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"features_onli": True}, TypeError, "did you mean 'features_only'"),
        ({"embed_dims": 32}, TypeError, "did you mean 'embed_dim'"),
        ({"drop_path": 0.1}, TypeError, "did you mean 'drop_path_rate'"),
        ({"global_pool": "avg"}, TypeError, "no head that pools"),
        ({"output_stride": 16}, TypeError, "strides are 4, 8, 16 and 32"),
        ({"dynamic_img_size": True}, TypeError, "images of any size"),
        ({"num_classes": 10}, ValueError, "num_classes must be 0, got 10"),
        ({"out_indices": (1,)}, ValueError, "needs features_only=True"),
        ({"features_only": True, "out_indices": (0, 4)}, AssertionError, "index 4 is out of range"),
        ({"img_size": (64, 96)}, ValueError, "two equal ones, got \\(64, 96\\)"),
        ({"img_size": 64.0}, TypeError, "img_size must be an integer, got 64.0"),
        ({"drop_path_rate": 1.5}, ValueError, "drop_path_rate must be at least 0"),
        ({"pretrained": "none.pth"}, CheckpointError, "none.pth"),
        ({"pretrained": 1}, TypeError, "pretrained must be True, False, or a file.* got 1"),
        ({"pretrained": ""}, CheckpointError, "path is empty"),
        ({"pretrained": "dinov2_vitx14"}, CheckpointError, "names that are downloaded"),
        ({"pretrained": True, "cache_dir": "here"}, ValueError, "cache_dir is for weights that"),
        ({"checkpoint_path": "none.pth"}, FileNotFoundError, None),
        ({"checkpoint_path": "none.npz"}, CheckpointError, "none.npz"),
    ],
)
def test_a_wrong_argument_is_told(
    keywords: dict[str, Any], error: type[Exception], message: str | None
) -> None:
    with pytest.raises(error, match=message):
        create(**keywords)


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for vit_adapter_t_dinov3"):
        timm.create_model("vit_adapter_t_dinov3", pretrained=True, **DINOV3)


def test_wrong_arguments_of_features_are_told() -> None:
    model = create()
    with pytest.raises(ValueError, match="must be one of NCHW, NHWC, got 'NLC'"):
        model.forward_intermediates(IMAGE, output_fmt="NLC")
    with pytest.raises(AssertionError, match="index 7 is out of range"):
        model.forward_intermediates(IMAGE, [7])
    with pytest.raises(TypeError, match="return_prefix_tokens"):
        model.forward_intermediates(IMAGE, return_prefix_tokens=True)


@pytest.mark.parametrize("features_only", [False, True])
def test_weights_that_do_not_fit_are_told(features_only: bool, tmp_path: Path) -> None:
    model = create(features_only=features_only)
    load = partial(load_checkpoint, model)
    before = {name: each.clone() for name, each in bare(model).state_dict().items()}
    other = saved(official(is_swiglu=True), tmp_path / "swiglu.pth")
    with pytest.raises(CheckpointError, match='feed-forward is .swiglu.(.|\n)*ffn="swiglu"'):
        load(str(other))
    nothing = saved({"layer1.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="not a DINOv2, DINOv3 or ViT-Adapter checkpoint"):
        load(str(nothing))
    assert_holds(model, before)
    damaged = bare(model).state_dict()
    del damaged["up.weight"]
    with pytest.raises(RuntimeError, match='Missing key.* "up.weight"'):
        bare(model).load_state_dict(damaged)
    assert bare(model).load_state_dict(damaged, strict=False).missing_keys == ["up.weight"]
