# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model on the hub: its files, its settings, its card, and what a file must have."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import FakeHub
from safetensors.torch import load_file, save_file
from tiny import WINDOWED
from torch import Tensor

huggingface_hub = pytest.importorskip("huggingface_hub")

from huggingface_hub import ModelCard, hub_mixin  # noqa: E402

from vitadapter_fast import ViTAdapter  # noqa: E402
from vitadapter_fast.builders import MODELS, model_kwargs  # noqa: E402
from vitadapter_fast.integrations import huggingface_hub as ours  # noqa: E402
from vitadapter_fast.integrations.huggingface_hub import HubViTAdapter  # noqa: E402

DINOV3: dict[str, Any] = {**WINDOWED, "trunk": "dinov3", "injectors": False, "window_attn": False}
TRUNKS = {"dinov2": {**WINDOWED, "init_values": 1.0}, "dinov3": DINOV3}
SETTINGS = set(inspect.signature(ViTAdapter).parameters) - {"pretrained", "patch_method"}


def tiny(trunk: str = "dinov2", **overrides: Any) -> HubViTAdapter:
    torch.manual_seed(0)
    return HubViTAdapter(**{**TRUNKS[trunk], **overrides})


@torch.no_grad()
def maps_of(model: ViTAdapter) -> list[Tensor]:
    image = torch.rand(2, 3, 70, 96, generator=torch.Generator().manual_seed(1))
    return model.eval()(image)


def assert_equal(one: Any, other: Any) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def config_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text("utf-8"))


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_it_comes_back_from_its_folder(trunk: str, norm: str, tmp_path: Path) -> None:
    model = tiny(trunk, norm=norm)
    model.train()(torch.rand(2, 3, 64, 64))  # BN counts
    model.save_pretrained(tmp_path)
    again = HubViTAdapter.from_pretrained(tmp_path)
    assert not again.training
    assert_equal(maps_of(again), maps_of(model))
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    assert_equal([*state.values()], [*loaded.values()])


@pytest.mark.parametrize("size", MODELS)
def test_its_config_has_all_keywords_of_a_published_model(size: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = HubViTAdapter(size, drop_path_rate=0.05)
    config = json.loads(json.dumps(model._hub_mixin_config))
    assert config.keys() == SETTINGS
    assert config == {**config, **model_kwargs(size), "drop_path_rate": 0.05}
    with torch.device("meta"):
        again = ViTAdapter(**config)
    assert str(again).partition("\n")[2] == str(model).partition("\n")[2]


def test_what_loaded_weights_is_not_loaded_again(tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file(tiny().state_dict(), file)
    model = tiny(pretrained=str(file), patch_method="pi")
    file.unlink()
    model.save_pretrained(tmp_path / "saved")
    assert config_in(tmp_path / "saved").keys() == SETTINGS
    assert_equal(maps_of(HubViTAdapter.from_pretrained(tmp_path / "saved")), maps_of(model))


def test_settings_can_be_replaced_as_it_is_loaded(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    model = HubViTAdapter.from_pretrained(tmp_path, frozen_vit=True, drop_path_rate=0.5)
    assert model.has_frozen_vit and not model.blocks[0].mlp.fc1.weight.requires_grad
    model.save_pretrained(tmp_path)
    saved = config_in(tmp_path)
    assert saved["frozen_vit"] is True and saved["drop_path_rate"] == 0.5
    with pytest.raises(TypeError, match=r"HubViTAdapter: unknown keyword 'frozen_vits' \(did you"):
        HubViTAdapter.from_pretrained(tmp_path, frozen_vits=True)


def test_a_file_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["interactions.1.injector.gamma"]
    save_file(state, file)
    with pytest.raises(RuntimeError, match="interactions.1.injector.gamma"):
        HubViTAdapter.from_pretrained(tmp_path)
    assert isinstance(HubViTAdapter.from_pretrained(tmp_path, strict=False), HubViTAdapter)


def test_a_plain_model_becomes_one_without_a_copy(tmp_path: Path) -> None:
    """As the page on frameworks says."""
    plain = ViTAdapter(**TRUNKS["dinov2"])
    with torch.device("meta"):
        model = HubViTAdapter(**TRUNKS["dinov2"])
    model.load_state_dict(plain.state_dict(), assign=True)
    own, others = (dict(each.named_parameters()) for each in (model, plain))
    assert all(own[name].data_ptr() == each.data_ptr() for name, each in others.items())
    model.save_pretrained(tmp_path)
    assert_equal(maps_of(HubViTAdapter.from_pretrained(tmp_path)), maps_of(plain))


def test_the_files_beside_the_weights(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path, model_card_kwargs={"tags": ["cells"]})
    names = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {each.name for each in tmp_path.iterdir()} == names
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "vitadapter_fast")
    assert card.data.tags == ["vit-adapter", "dinov2", "cells"]
    assert "HubViTAdapter.from_pretrained" in card.text
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.485, 0.456, 0.406]
    # Somebody's own stay.
    (tmp_path / "README.md").write_text("mine")
    tiny().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_its_card_states_the_license_of_dinov3(tmp_path: Path) -> None:
    tiny("dinov3").save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "dinov3-license")
    assert "DINOv3 License" in card.text


@pytest.mark.parametrize("has_card", [False, True])
@pytest.mark.parametrize("way", ["push", "save"])
def test_it_goes_to_the_hub_with_its_card(
    way: str, has_card: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ours, hub_mixin):
        monkeypatch.setattr(module, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "has_card", has_card)
    given: dict[str, Any] = {
        "private": True,
        "token": "t",
        "branch": "b",
        "create_pr": True,
        "ignore_patterns": "*.tmp",
        "model_card_kwargs": {"tags": ["cells"]},
    }
    model = tiny()
    if way == "push":
        url = model.push_to_hub("cells", **given)
    else:
        url = model.save_pretrained(tmp_path / "cells", push_to_hub=True, **given)
    assert url == "https://hub/me/cells"
    assert FakeHub.created["private"] is True and FakeHub.token == "t"
    assert FakeHub.upload["ignore_patterns"] == ["*.tmp", *(["README.md"] if has_card else [])]
    assert (FakeHub.upload["revision"], FakeHub.upload["create_pr"]) == ("b", True)
    assert b"- cells\n" in FakeHub.files["README.md"]
    assert json.loads(FakeHub.files["config.json"]).keys() == SETTINGS
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == FakeHub.files["model.safetensors"]
