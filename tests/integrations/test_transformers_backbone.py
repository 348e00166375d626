# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The backbone inside transformers: its contract, its files."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import FakeHub
from safetensors.torch import load_file, save_file
from torch import Tensor

transformers = pytest.importorskip("transformers")

from tiny_backbones import (  # noqa: E402
    IMAGE,
    TRUNKS,
    assert_equal,
    maps_of,
    tiny_backbone,
    tiny_config,
    trained_in,
)

from vitadapter_fast import vit_adapter  # noqa: E402
from vitadapter_fast.builders import MODELS, model_kwargs  # noqa: E402
from vitadapter_fast.integrations import transformers as ours  # noqa: E402
from vitadapter_fast.integrations.transformers import (  # noqa: E402
    STAGES,
    ViTAdapterBackbone,
    ViTAdapterConfig,
)

# -- the config


@pytest.mark.parametrize("size", MODELS)
def test_a_config_is_a_published_model(size: str) -> None:
    config = ViTAdapterConfig(size)
    assert config.model_kwargs().items() >= model_kwargs(size).items()
    assert config.stage_names == config.out_features == list(STAGES)
    assert config.out_indices == [0, 1, 2, 3]


@pytest.mark.parametrize("size", MODELS)
@pytest.mark.parametrize("overrides", [{}, {"embed_dim": 384, "drop_path_rate": 0.0, "norm": "GN"}])
def test_a_config_survives_its_file(size: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    """The file holds what differs from the default model, whichever model it started from."""
    config = ViTAdapterConfig(size, out_indices=[1, 3], **overrides)
    config.save_pretrained(tmp_path)
    for again in (
        ViTAdapterConfig.from_pretrained(tmp_path),
        transformers.AutoConfig.from_pretrained(tmp_path),
    ):
        assert type(again) is ViTAdapterConfig
        assert again.model_kwargs() == config.model_kwargs()
        assert again.out_features == ["stage2", "stage4"] and again.out_indices == [1, 3]


def test_a_config_answers_to_the_names_of_transformers() -> None:
    config = ViTAdapterConfig("b", hidden_size=384, num_channels=4)
    assert (config.hidden_size, config.embed_dim, config.in_chans) == (384, 384, 4)
    assert (config.num_hidden_layers, config.num_attention_heads) == (12, 12)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"embed_dims": 32}, TypeError, "'embed_dims' .*did you mean 'embed_dim'"),
        ({"pretrained": "file"}, TypeError, "load_backbone_weights"),
        ({"size": "xl"}, ValueError, "must be one of s, b, l, g"),
        ({"out_indices": [3, 1]}, ValueError, "same order"),
        ({"out_features": ["stem"]}, ValueError, "subset of stage_names"),
    ],
)
def test_a_wrong_setting_is_told(
    keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ViTAdapterConfig(**keywords)


def test_a_setting_that_no_model_takes_is_told_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="deform_num_heads"):
        ViTAdapterBackbone(tiny_config(deform_num_heads=5))


# -- the model


@pytest.mark.parametrize("trunk", TRUNKS)
def test_it_is_the_adapter(trunk: str) -> None:
    backbone = tiny_backbone(trunk)
    image = torch.rand(2, 3, 75, 110)
    with torch.no_grad():
        assert_equal(maps_of(backbone, image), backbone.eval().model(image))


def test_it_returns_what_was_chosen() -> None:
    everything = maps_of(tiny_backbone())
    backbone = tiny_backbone(out_indices=[1, -1]).eval()
    assert backbone.channels == [backbone.config.embed_dim] * 2
    with torch.no_grad():
        output = backbone(IMAGE, output_hidden_states=True, output_attentions=True)
        as_tuple = backbone(IMAGE, return_dict=False)
    assert_equal(output.feature_maps, [everything[1], everything[3]])
    assert_equal(output.hidden_states, everything)
    assert len(as_tuple) == 1
    assert_equal(as_tuple[0], output.feature_maps)
    assert backbone(IMAGE).hidden_states is None


def test_layers_of_maps_that_nobody_takes_do_not_train() -> None:
    """DistributedDataParallel would wait for their gradients."""
    backbone = tiny_backbone(out_indices=[1, 2, 3]).train()
    torch.autograd.backward([each.sum() for each in backbone(IMAGE).feature_maps])
    trained = {name: each for name, each in backbone.named_parameters() if each.requires_grad}
    assert [name for name, each in trained.items() if each.grad is None] == []
    assert "model.up.weight" not in trained


def test_gradient_checkpointing_is_with_cp() -> None:
    backbone = tiny_backbone(drop_path_rate=0.0, norm="GN").train()
    stages = [backbone.model, *backbone.model.interactions]

    def gradients() -> list[Tensor]:
        backbone.zero_grad()
        torch.autograd.backward([each.square().sum() for each in backbone(IMAGE).feature_maps])
        return [each.grad for each in backbone.parameters() if each.grad is not None]

    plain = gradients()
    backbone.gradient_checkpointing_enable()
    assert all(each.with_cp for each in stages) and backbone.is_gradient_checkpointing
    torch.testing.assert_close(gradients(), plain)
    backbone.gradient_checkpointing_disable()
    assert not any(each.with_cp for each in stages)


# -- files


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_it_comes_back_from_its_files(trunk: str, norm: str, tmp_path: Path) -> None:
    backbone = tiny_backbone(trunk, norm=norm, frozen_vit=norm == "BN", out_indices=[1, 3])
    backbone.train()(IMAGE)  # BN counts
    backbone.save_pretrained(tmp_path)
    again = ViTAdapterBackbone.from_pretrained(tmp_path)
    assert not again.training
    assert_equal(maps_of(again), maps_of(backbone))
    assert_equal([*again.state_dict().values()], [*backbone.state_dict().values()])
    # transformers loads into new parameters, of which all train.
    assert trained_in(again) == trained_in(backbone)
    assert any(".blocks." in name for name in trained_in(again)) is (norm == "GN")
    assert "model.up.weight" not in trained_in(again)
    assert type(transformers.AutoModel.from_pretrained(tmp_path)) is ViTAdapterBackbone


def test_it_comes_in_half_precision(tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path)
    backbone = ViTAdapterBackbone.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {each.dtype for each in backbone.parameters()} == {torch.bfloat16}
    assert maps_of(backbone, IMAGE.bfloat16())[0].dtype == torch.bfloat16


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_what_a_file_lacks_starts_as_in_a_new_model(
    trunk: str, norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of all kinds of tensors, the other half, and all; what the file has stays as it is."""
    backbone = tiny_backbone(trunk, norm=norm)
    backbone.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    marked = {name: torch.full_like(each, 7) for name, each in load_file(file).items()}
    new = {
        name: each.double() for name, each in tiny_backbone(trunk, norm=norm).state_dict().items()
    }
    # One of each kind, without the blocks' and stages' numbers.
    kinds = {re.sub(r"\.\d+\.", ".", name): name for name in marked}
    names = sorted(kinds.values())
    torch.use_deterministic_algorithms(True)  # memory without values is filled with NaN
    try:
        for lacking in (names[::2], names[1::2], list(marked)):
            kept = {name: each for name, each in marked.items() if name not in lacking}
            save_file(kept or {"none": torch.zeros(1)}, file, {"format": "pt"})
            loaded = ViTAdapterBackbone.from_pretrained(tmp_path).state_dict()
            for name, each in loaded.items():
                if name in kept:
                    assert torch.equal(each, kept[name]), name
                    continue
                each = each.double()
                if new[name].numel() < 2 or new[name].std() == 0 or "sampling_offsets" in name:
                    assert torch.equal(each, new[name]), name
                else:
                    few = 4 / new[name].numel() ** 0.5
                    assert 1 - few < each.std() / new[name].std() < 1 + few, name
                    assert abs(each.mean() - new[name].mean()) < 2 * few * new[name].std(), name
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_files_beside_the_weights(tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n")
    assert "ViTAdapterBackbone.from_pretrained" in card
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    photo = (torch.rand(3, 40, 60) * 255).to(torch.uint8)
    pixels = processor(photo, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 512, 512)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    # Somebody's own stay.
    (tmp_path / "README.md").write_text("mine")
    tiny_backbone().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_card_states_the_license_of_dinov3(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    tiny_backbone("dinov3").save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "other" and card.data.license_name == "dinov3-license"
    assert "DINOv3 License" in card.text
    assert card.data.tags == ["vit-adapter", "dinov3"]


@pytest.mark.parametrize("has_card", [False, True])
def test_it_goes_to_the_hub_with_its_card(
    has_card: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "has_card", has_card)
    backbone = tiny_backbone()
    said = backbone.push_to_hub("cells", private=True, token="t", tags=["cells"], create_pr=True)
    assert said == "https://hub/me/cells" and FakeHub.upload["create_pr"] is True
    assert FakeHub.created["private"] is True and FakeHub.token == "t"
    assert ("README.md" in FakeHub.files) is not has_card
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= FakeHub.files.keys()
    if not has_card:
        assert b"- cells\n" in FakeHub.files["README.md"]
    backbone.save_pretrained(
        tmp_path / "name", push_to_hub=True, commit_message="first", revision="new"
    )
    assert FakeHub.branch == "new"
    assert (tmp_path / "name/model.safetensors").read_bytes() == FakeHub.files["model.safetensors"]


def test_it_compiles_whole() -> None:
    backbone = tiny_backbone().eval()
    with torch.no_grad():
        plain = backbone(IMAGE).feature_maps
        torch._dynamo.reset()
        compiled = torch.compile(backbone, fullgraph=True)(IMAGE).feature_maps
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_it_is_split_among_devices(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    plain = maps_of(backbone)
    backbone.save_pretrained(tmp_path)
    split = ViTAdapterBackbone.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert_equal(maps_of(split), plain)


def test_the_default_is_the_small_model() -> None:
    with torch.device("meta"):
        names = ViTAdapterBackbone(ViTAdapterConfig()).model.state_dict().keys()
        assert names == vit_adapter("s").state_dict().keys()
