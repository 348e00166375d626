# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The original has two backbones of one name and the same keywords; each config builds its own.

``original_backbones.json`` has the keywords of every config with a ViTAdapter, but for the file it
starts from; of https://github.com/czczup/ViT-Adapter at fd64a51, Apache-2.0.
"""

import json
import logging
from collections import OrderedDict
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import Tensor, nn

pytest.importorskip("mmengine")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import mmdet.registry  # noqa: E402
import mmengine.registry  # noqa: E402
import mmseg.registry  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import DefaultScope, Registry  # noqa: E402

import vitadapter_fast  # noqa: E402
from vitadapter_fast.integrations import mmdet as integration  # noqa: E402
from vitadapter_fast.integrations.mmdet import SegmentationViTAdapter, ViTAdapter  # noqa: E402

CONFIGS = json.loads((Path(__file__).parents[1] / "data" / "original_backbones.json").read_text())
REGISTRIES = {
    "mmdet": mmdet.registry.MODELS,
    "mmengine": mmengine.registry.MODELS,
    "mmseg": mmseg.registry.MODELS,
}
TYPES = ("ViTAdapter", "mmdet.ViTAdapter", "mmengine.ViTAdapter", "mmseg.ViTAdapter", ViTAdapter)
ROUTES = list(product((None, "mmdet", "mmseg"), REGISTRIES, TYPES))


@pytest.fixture(autouse=True)
def no_scope_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner leaves its scope behind, and None does not overwrite it."""
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())


def build(scope: str | None, registry: str, **config: Any) -> ViTAdapter:
    with torch.device("meta"), DefaultScope.overwrite_default_scope(scope):
        backbone: ViTAdapter = REGISTRIES[registry].build(config)
    return backbone


def is_for_segmentation(scope: str | None, registry: str, kind: Any) -> bool:
    """Whether it is mmseg that a config of this type is for."""
    is_by_registry = scope is None and registry == "mmseg" and kind == "ViTAdapter"
    return scope == "mmseg" or kind == "mmseg.ViTAdapter" or is_by_registry


def test_originals_configs_are_those_of_two_frameworks() -> None:
    folders = [name.partition("/")[0] for name in CONFIGS]
    assert (folders.count("detection"), folders.count("segmentation"), len(folders)) == (21, 7, 28)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds_the_backbone_of_its_own_code(name: str) -> None:
    is_detection = name.startswith("detection/")
    framework, wanted = ("mmdet", "last") if is_detection else ("mmseg", "stages")
    for scope in (framework, None):
        backbone = build(scope, framework, type="ViTAdapter", **CONFIGS[name])
        # One, a light B, adds no map of the ViT.
        assert backbone.vit_features == wanted or not backbone.add_vit_feature


@pytest.mark.parametrize(("scope", "registry", "kind"), ROUTES)
def test_variant_is_mmsegs_wherever_a_config_is(
    scope: str | None, registry: str, kind: Any
) -> None:
    wanted = "stages" if is_for_segmentation(scope, registry, kind) else "last"
    assert build(scope, registry, type=kind, **TINY).vit_features == wanted


@pytest.mark.parametrize(("scope", "registry", "kind"), ROUTES)
def test_variant_that_a_config_states_is_taken(scope: str | None, registry: str, kind: Any) -> None:
    for stated in ("last", "stages"):
        assert build(scope, registry, type=kind, vit_features=stated, **TINY).vit_features == stated


def test_scope_in_a_config_counts() -> None:
    assert build("mmdet", "mmdet", type="ViTAdapter", _scope_="mmseg", **TINY).vit_features == (
        "stages"
    )
    assert build("mmseg", "mmseg", type="ViTAdapter", _scope_="mmdet", **TINY).vit_features == (
        "last"
    )


def test_registry_of_a_project_on_mmseg_finds_mmsegs() -> None:
    project = Registry("models", parent=mmseg.registry.MODELS, scope="a_project_on_mmseg")
    try:
        assert project.get("ViTAdapter") is SegmentationViTAdapter
    finally:
        del mmseg.registry.MODELS.children["a_project_on_mmseg"]


def test_maps_under_mmseg_are_those_of_stages() -> None:
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))

    def maps(model: nn.Module, state: dict[str, Tensor]) -> Any:
        model.load_state_dict(state)
        return model.eval()(image)

    torch.manual_seed(0)
    plain = vitadapter_fast.ViTAdapter(**TINY, vit_features="stages")
    ours = mmseg.registry.MODELS.build({"type": "ViTAdapter", **TINY})
    state = plain.state_dict()
    for got, wanted in zip(maps(ours, state), maps(plain, state), strict=True):
        assert torch.equal(got, wanted)


def optimizer_config(constructor: str) -> dict[str, Any]:
    return {
        "constructor": constructor,
        "paramwise_cfg": {"num_layers": 4, "layer_decay_rate": 0.5},
        "optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.05},
    }


@pytest.mark.filterwarnings("ignore:.*LayerDecayOptimizerConstructor")
@pytest.mark.filterwarnings("ignore:.*decay_rate")
@pytest.mark.usefixtures("mmseg_scope")
def test_layer_decay_has_another_name_in_mmseg() -> None:
    """As the docs say: mmseg has one of the same name, which refuses the backbone."""
    model = nn.Module()
    model.backbone = ViTAdapter(**TINY)
    with pytest.raises(NotImplementedError):
        build_optim_wrapper(model, optimizer_config("LayerDecayOptimizerConstructor"))
    wrapper = build_optim_wrapper(model, optimizer_config("ViTAdapterLayerDecay"))
    assert min(group["lr"] for group in wrapper.optimizer.param_groups) == 0.5**5


def test_framework_that_cannot_be_imported_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> None:
        raise AssertionError("MMCV==9.0 is used but incompatible")

    monkeypatch.setattr(integration, "import_module", fail)
    with caplog.at_level(logging.DEBUG, "vitadapter_fast"):
        integration._register("mmseg", SegmentationViTAdapter)
    assert "not registered in mmseg: MMCV==9.0 is used but incompatible" in caplog.text


def test_backbone_of_the_same_name_stays_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry("models", scope="another")
    registry.register_module(name="ViTAdapter", module=nn.Identity)
    monkeypatch.setattr(integration, "import_module", lambda _: SimpleNamespace(MODELS=registry))
    integration._register("mmdet", ViTAdapter)
    assert registry.get("ViTAdapter") is nn.Identity
    (warning,) = [each.getMessage() for each in caplog.records]
    assert 'mmdet has another "ViTAdapter" already, torch.nn.modules.linear' in warning
    assert 'name this one "mmengine.ViTAdapter"' in warning
