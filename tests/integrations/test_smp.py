# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The encoder inside segmentation_models_pytorch: its features, every architecture, weights."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from checkpoint_cases import adapted, as_hf, official, saved
from dinov3_cases import DINOV3_TINY, golden
from tiny import WINDOWED
from torch import Tensor, nn

smp = pytest.importorskip("segmentation_models_pytorch")

import vitadapter_fast.integrations.timm  # noqa: E402, F401  (for DPT)
from vitadapter_fast import ViTAdapter  # noqa: E402
from vitadapter_fast.builders import MODELS  # noqa: E402
from vitadapter_fast.integrations.smp import ViTAdapterEncoder, register_encoder  # noqa: E402
from vitadapter_fast.optim import layer_decay_groups  # noqa: E402
from vitadapter_fast.weights import load_checkpoint  # noqa: E402
from vitadapter_fast.weights.hub import repository  # noqa: E402

TINY: dict[str, Any] = {**WINDOWED, "init_values": 1.0, "drop_path_rate": 0.0}
# DPT takes a timm model, and keeps its keyword ``depth`` to itself.
NARROW: dict[str, Any] = {
    "embed_dim": 32,
    "num_heads": 2,
    "conv_inplane": 8,
    "deform_num_heads": 4,
    "drop_path_rate": 0.0,
}
register_encoder("tiny", "s", **TINY)
register_encoder("tiny_frozen", "s", **TINY, frozen_vit=True)
encoders = smp.encoders.encoders


class Case(NamedTuple):
    architecture: str
    keywords: dict[str, Any]
    hw: tuple[int, int] = (96, 160)
    encoder: str = "tiny"


SMALL = {"decoder_channels": (32, 24, 16, 8, 8)}
CASES = {
    "unet": Case("Unet", SMALL, (75, 110)),
    "unet, frozen": Case("Unet", SMALL, (75, 110), "tiny_frozen"),
    "unet++": Case("UnetPlusPlus", SMALL),
    "manet": Case("MAnet", SMALL),
    "linknet": Case("Linknet", {}),
    "fpn": Case("FPN", {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}),
    "pspnet": Case("PSPNet", {"encoder_depth": 3, "psp_out_channels": 16}, (40, 56)),
    "pan": Case("PAN", {"encoder_output_stride": 32}, (256, 288)),
    "upernet": Case("UPerNet", {"decoder_channels": 16}),
    "segformer": Case("Segformer", {"decoder_segmentation_channels": 16}),
    "unet of timm": Case("Unet", {**SMALL, **NARROW}, (75, 110), "tu-vit_adapter_s_dinov2"),
    "dpt": Case(
        "DPT",
        {"decoder_intermediate_channels": (8, 8, 8, 8), "decoder_fusion_channels": 8, **NARROW},
        encoder="tu-vit_adapter_s_dinov2",
    ),
    "dpt, dinov3": Case(
        "DPT",
        {"decoder_intermediate_channels": (8, 8, 8, 8), "decoder_fusion_channels": 8, **NARROW},
        encoder="tu-vit_adapter_s_dinov3",
    ),
}


def build(case: Case, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if case.architecture == "DPT":
        case = case._replace(keywords={**case.keywords, "decoder_readout": "ignore"})
    architecture = getattr(smp, case.architecture)
    return architecture(case.encoder, encoder_weights=None, classes=3, **case.keywords)


def unet(encoder: str = "tiny", **keywords: Any) -> Any:
    torch.manual_seed(0)
    return smp.Unet(encoder, **{"encoder_weights": None, **SMALL, **keywords})


def image_of(hw: tuple[int, int], channels: int = 3) -> Tensor:
    return torch.rand(2, channels, *hw, generator=torch.Generator().manual_seed(1))


def assert_equal(one: Any, other: Any) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


# -- the encoder


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_features_are_the_maps_of_the_adapter(depth: int) -> None:
    encoder = smp.encoders.get_encoder("tiny", depth=depth).eval()
    alone = ViTAdapter(**TINY)
    alone.load_state_dict(encoder.state_dict())
    image = image_of((75, 110))
    with torch.no_grad():
        first, second, *maps = encoder(image)
        assert_equal(maps, alone.eval()(image)[: depth - 1])
    assert first is image and second.shape == (2, 0, 37, 55)
    assert encoder.out_channels == [3, 0, 32, 32, 32, 32][: depth + 1]
    assert encoder.output_stride == 2**depth


@pytest.mark.parametrize("size", MODELS)
def test_a_published_model_is_an_encoder(size: str) -> None:
    letters = size.removeprefix("dinov3-").replace("+", "plus")
    entry = encoders[f"vit_adapter_{letters}" + ("_dinov3" if size.startswith("dinov3") else "")]
    assert entry["encoder"] is ViTAdapterEncoder
    assert entry["params"] == {"size": size, "overrides": {}}
    for name, settings in entry["pretrained_settings"].items():
        wanted = repository(name)
        if wanted is None:
            assert name.removesuffix("_reg") == f"dinov2_vit{size}14"
            assert settings["repo_id"].startswith("facebook/dinov2-")
        else:
            assert settings["repo_id"] == wanted and letters.removesuffix("plus") in wanted
    assert bool(entry["pretrained_settings"]) is (size not in ("dinov3-t", "dinov3-7b"))


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("encoder", ["tiny", "tiny_frozen"])
def test_other_channels_without_weights_start_as_in_a_new_model(
    channels: int, encoder: str
) -> None:
    found = smp.encoders.get_encoder(encoder, in_channels=channels)
    torch.manual_seed(0)
    alone = ViTAdapter(**TINY, in_chans=channels, frozen_vit=encoder == "tiny_frozen")
    for name, wanted in alone.named_parameters():
        parameter = found.get_parameter(name)
        assert (parameter.shape, parameter.requires_grad) == (wanted.shape, wanted.requires_grad)
        if name in ("patch_embed.proj.weight", "spm.stem.0.weight"):
            few = 4 / wanted.numel() ** 0.5
            assert 1 - few < parameter.std() / wanted.std() < 1 + few
    maps = found.eval()(image_of((64, 64), channels))[2:]
    alone.load_state_dict(found.state_dict())
    assert_equal(maps, alone.eval()(image_of((64, 64), channels)))
    assert found.out_channels[0] == channels


# -- architectures


@pytest.mark.parametrize("name", CASES)
def test_an_architecture_trains_and_comes_back(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = build(case).train()
    image = image_of(case.hw)
    target = torch.arange(2 * case.hw[0] * case.hw[1]).reshape(2, *case.hw) % 3
    trained = {key: each for key, each in model.named_parameters() if each.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-3)
    for _ in range(2):
        masks = model(image)
        assert masks.shape == (2, 3, *case.hw)
        loss = nn.functional.cross_entropy(masks, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Of three maps PSPNet reads the last.
    unread = ("encoder.up", "encoder.norm1", "encoder.spm.fc1") if name == "pspnet" else ()
    lacking = [
        key
        for key, each in trained.items()
        if not key.startswith(unread) and (each.grad is None or not each.grad.isfinite().all())
    ]
    assert lacking == [] and loss.isfinite()

    file = saved(model.state_dict(), tmp_path / "model.pth")
    again = build(case, seed=1)
    again.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        one, other = model.eval()(image), again.eval()(image)
    assert torch.equal(one, other) and one.std() > 0


def test_layers_of_maps_beyond_the_depth_do_not_train() -> None:
    model = unet(encoder_depth=4, decoder_channels=(32, 16, 8, 8))
    model(image_of((64, 64))).sum().backward()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert [name for name, each in trained.items() if each.grad is None] == []
    assert "encoder.norm4.weight" not in trained and "encoder.norm3.weight" in trained


def test_a_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    model = unet(in_channels=4, encoder_depth=5, classes=2).eval()
    model.save_pretrained(tmp_path)
    again = smp.from_pretrained(tmp_path).eval()
    image = image_of((64, 96), 4)
    assert torch.equal(again(image), model(image))


def test_layers_of_the_encoder_learn_at_rates_of_their_own() -> None:
    groups = layer_decay_groups(unet(), lr=1.0, weight_decay=0.05, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name in group["parameter_names"]}
    assert rates["encoder.blocks.0.mlp.fc1.weight"] == 0.5**4
    assert rates["encoder.spm.stem.0.weight"] == rates["segmentation_head.0.weight"] == 1.0


# -- weights


@pytest.mark.parametrize("channels", [3, 4])
def test_weights_come_by_their_name(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Hugging Face has them; the test stands in for its server."""
    file = saved(as_hf(official()), tmp_path / "model.safetensors")
    asked = []

    def download(repo_id: str, filename: str, revision: str) -> str:
        asked.append((repo_id, filename))
        return str(file)

    monkeypatch.setattr(smp.encoders, "hf_hub_download", download)
    model = unet(encoder_weights="dinov2_vits14", in_channels=channels)
    assert ("facebook/dinov2-small", "model.safetensors") in asked
    alone = ViTAdapter(**TINY, in_chans=channels)
    load_checkpoint(alone, file)
    names = adapted(official()).keys()
    state, wanted = model.encoder.state_dict(), alone.state_dict()
    # Resized before or after it has other channels.
    kernel = "patch_embed.proj.weight"
    torch.testing.assert_close(state[kernel], wanted[kernel], rtol=1e-6, atol=1e-6)
    others = names - {kernel}
    assert_equal([state[name] for name in others], [wanted[name] for name in others])


def test_weights_of_dinov3_come_by_their_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = saved(golden("hf"), tmp_path / "model.safetensors")
    monkeypatch.setattr(smp.encoders, "hf_hub_download", lambda *_, **__: str(file))
    register_encoder("tiny_dinov3", "dinov3-s", **DINOV3_TINY)
    model = unet("tiny_dinov3", encoder_weights="dinov3_vits16")
    alone = ViTAdapter(**DINOV3_TINY, frozen_vit=True)
    load_checkpoint(alone, file)
    assert all(each.isfinite().all() for each in model(image_of((64, 64))))
    state, wanted = model.encoder.blocks.state_dict(), alone.blocks.state_dict()
    assert_equal(list(state.values()), list(wanted.values()))


def test_a_file_is_loaded_into_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(7)
    trained = ViTAdapter(**TINY).state_dict()
    model = unet()
    load_checkpoint(model.encoder, saved(trained, tmp_path / "adapter.pth"))
    found = model.encoder.state_dict()
    assert found.keys() == trained.keys()
    assert_equal(list(found.values()), list(trained.values()))


# -- errors


@pytest.mark.parametrize("architecture", ["DeepLabV3", "DeepLabV3Plus", "PAN"])
def test_dilation_is_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match="no layer that could be dilated"):
        getattr(smp, architecture)("tiny", encoder_weights=None)


@pytest.mark.parametrize("depth", [1, 6])
def test_a_depth_without_maps_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth must be from 2 to 5, got {depth}"):
        smp.encoders.get_encoder("tiny", depth=depth)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(KeyError, match="'dinov2_vits14', 'dinov2_vits14_reg'"):
        unet(encoder_weights="imagenet")


def test_a_size_that_an_architecture_does_not_take_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"pad your images to shape \(96, 128\)"):
        build(CASES["fpn"])(image_of((75, 110)))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": "s", "embed_dims": 32}, TypeError, "did you mean 'embed_dim'"),
        ({"size": "s", "in_chans": 4}, TypeError, "in_channels= of the architecture"),
        ({"size": "s", "pretrained": "f"}, TypeError, r"load_checkpoint\(model.encoder, FILE\)"),
        ({"size": "xl"}, ValueError, "must be one of s, b, l, g"),
    ],
)
def test_a_wrong_setting_is_told(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        register_encoder("wrong", **settings)
    assert "wrong" not in encoders


def test_channels_are_a_number() -> None:
    with pytest.raises(ValueError, match="in_channels must be positive, got 0"):
        smp.encoders.get_encoder("tiny", in_channels=0)
