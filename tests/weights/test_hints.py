# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Where a file does not fit, the error says how to build a model that takes it, and that is so."""

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import (
    adapted,
    assert_same,
    in_detector,
    official,
    published_size,
    saved,
    tiny_model,
    trained,
)
from tiny import TINY
from torch import Tensor, nn

import vitadapter_fast
from vitadapter_fast import CheckpointError, ViTAdapter
from vitadapter_fast.weights import load_checkpoint

Tensors = dict[str, Tensor]


def without(part: str, tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


def with_hidden(hidden: int, *, is_swiglu: bool = False) -> Tensors:
    """An official ViT with so many hidden channels."""
    names = ("w12", "w3") if is_swiglu else ("fc1", "fc2")
    rows = 2 * hidden if is_swiglu else hidden
    tensors = official(is_swiglu=is_swiglu)
    for index in range(4):
        mlp = f"blocks.{index}.mlp."
        tensors[f"{mlp}{names[0]}.weight"] = torch.ones(rows, 32)
        tensors[f"{mlp}{names[0]}.bias"] = torch.ones(rows)
        tensors[f"{mlp}{names[1]}.weight"] = torch.ones(32, hidden)
    return tensors


def dinov3() -> Tensors:
    """An official DINOv3 ViT of the tiny model's size, of which no mask is left."""
    tensors = without("pos_embed", official(patch=16))
    return tensors | {"storage_tokens": torch.ones(1, 4, 32)}


# What a file is -> (its content, the settings of a model that does not take it).
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "other position table": (
        lambda: official() | {"pos_embed": torch.ones(1, 1370, 32)},
        {},
    ),
    "position table without a row for the cls token": (
        lambda: official() | {"pos_embed": torch.ones(1, 26, 32)},
        {},
    ),
    "swiglu": (lambda: official(is_swiglu=True), {}),
    "mlp": (official, {"ffn": "swiglu"}),
    "mlp with other hidden channels": (lambda: with_hidden(77), {}),
    "swiglu with other hidden channels": (
        lambda: with_hidden(40, is_swiglu=True),
        {"ffn": "swiglu"},
    ),
    "swiglu with hidden channels of another mlp": (lambda: with_hidden(40, is_swiglu=True), {}),
    "gray": (
        lambda: official(patch=16) | {"patch_embed.proj.weight": torch.ones(32, 1, 16, 16)},
        {},
    ),
    "layer scale": (official, {"layer_scale": False}),
    "other registers": (
        lambda: official() | {"register_tokens": torch.ones(1, 8, 32)},
        {"num_register_tokens": 4},
    ),
    "no registers": (official, {"num_register_tokens": 4}),
    "no final norm": (
        lambda: {n: tensor for n, tensor in official().items() if not n.startswith("norm.")},
        {"final_norm": True},
    ),
    "DINOv3": (dinov3, {}),
    "DINOv2": (official, {"trunk": "dinov3"}),
    "no layer scale": (lambda: without(".gamma", official()), {}),
    "qkv bias": (official, {"qkv_bias": False}),
    "no qkv bias": (lambda: without("qkv.bias", official()), {}),
    "trained with other channels": (lambda: trained(in_chans=4), {}),
    "trained with another deform ratio": (lambda: trained(deform_ratio=1.0), {}),
    "trained with other deformable heads": (lambda: trained(deform_num_heads=4), {}),
    "trained with another stem": (lambda: trained(conv_inplane=12), {}),
    "trained with another cffn ratio": (lambda: trained(cffn_ratio=0.3), {}),
    "trained with a cffn": (trained, {"with_cffn": False}),
    "trained without a cffn": (lambda: trained(with_cffn=False), {}),
    "trained with extra extractors": (trained, {"use_extra_extractor": False}),
    "trained without extra extractors": (lambda: trained(use_extra_extractor=False), {}),
    "trained with batch norms": (trained, {"norm": "GN"}),
    "trained with group norms": (lambda: trained(norm="GN"), {}),
    "trained without injectors": (lambda: trained(injectors=False), {}),
    "trained with injectors": (trained, {"injectors": False}),
    "trained with registers": (
        lambda: trained(num_register_tokens=4),
        {"window_attn": True, "window_size": 3},
    ),
    "trained without registers": (trained, {"num_register_tokens": 4}),
    "trained with the final norm": (lambda: trained(final_norm=True), {}),
    "trained at another size": (lambda: trained(pretrain_size=96, img_size=96), {}),
    "trained for segmentation": (lambda: in_detector(trained(), "decode_head"), {}),
    "trained for segmentation with an auxiliary head": (
        lambda: in_detector(trained(), "decode_head", "auxiliary_head"),
        {},
    ),
    **{
        f"trained for detection with {head}": (
            lambda head=head: in_detector(trained(), head),
            {"vit_features": "stages"},
        )
        for head in ("neck", "rpn_head", "roi_head", "bbox_head", "mask_head", "panoptic_head")
    },
    "other in all": (
        lambda: in_detector(
            trained(
                pretrain_size=80,
                img_size=80,
                ffn="swiglu",
                mlp_ratio=2.0,
                in_chans=5,
                layer_scale=False,
                qkv_bias=False,
                deform_ratio=1.0,
                deform_num_heads=1,
                conv_inplane=4,
                cffn_ratio=0.5,
                use_extra_extractor=False,
                norm="GN",
            ),
            "decode_head",
        ),
        {},
    ),
}
# Keywords that no name or shape in a file reveals.
UNTOLD = {
    "num_heads",
    "init_values",
    "add_vit_feature",
    "drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "window_size",
    "with_cp",
    "pretrained",
    "patch_method",
    "frozen_vit",
    "channels_last",
    "patch_size",
    "rope_periods",
}
# Told by sizes and numbers of stages; to build one of another size takes a preset.
TOLD_IN_WORDS = {"embed_dim", "depth", "interaction_indexes"}


def hints(model: nn.Module, path: Path) -> dict[str, Any]:
    """The keywords that an error asks for; the model must stay as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    assert_same(dict(model.state_dict()), before)
    advice = re.findall(r"build the model with (.+?)(?:;|$)", str(caught.value), re.MULTILINE)
    pairs = [pair for each in advice for pair in re.findall(r'(\w+)=("\w+"|[\w.]+)', each)]
    return {name: ast.literal_eval(value) for name, value in pairs}


@pytest.mark.parametrize("case", CASES)
def test_hint_followed_to_the_letter_loads_the_file(case: str, tmp_path: Path) -> None:
    content, settings = CASES[case]
    path = saved(content(), tmp_path / "file.pth")
    hinted = hints(tiny_model(**settings), path)
    assert hinted
    model = tiny_model(**{**settings, **hinted})
    report = load_checkpoint(model, path)
    assert report.loaded > 40
    # Only what differs is named.
    assert not [name for name in hinted if settings.get(name) == hinted[name]]


def test_hints_name_every_keyword_that_a_file_tells_of(tmp_path: Path) -> None:
    hinted: set[str] = set()
    for content, settings in CASES.values():
        hinted |= hints(tiny_model(**settings), saved(content(), tmp_path / "file.pth")).keys()
    keywords = set(inspect.signature(ViTAdapter.__init__).parameters) - {"self"}
    assert hinted == keywords - UNTOLD - TOLD_IN_WORDS


def test_hint_for_a_preset_loads_a_file_of_another_position_table(tmp_path: Path) -> None:
    tensors = published_size("official_small") | {"pos_embed": torch.ones(1, 257, 384)}
    path = saved(tensors, tmp_path / "vit.pth")
    hinted = hints(vitadapter_fast.vit_adapter_s(), path)
    assert hinted == {"pretrain_size": 256, "img_size": 256}
    load_checkpoint(vitadapter_fast.vit_adapter_s(**hinted), path)


def test_hint_names_the_preset_of_a_published_size(tmp_path: Path) -> None:
    path = saved(published_size("official_small"), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny_model(), path)
    assert (
        "the file is a DINOv2 ViT-S (embed_dim 384, 12 blocks); the model is a ViT (embed_dim 32, "
        "4 blocks); build the model with vit_adapter_s()\n"
    ) in str(caught.value)
    load_checkpoint(vitadapter_fast.vit_adapter_s(), path)


def test_other_number_of_stages_is_told(tmp_path: Path) -> None:
    path = saved(trained(interaction_indexes=[[0, 1], [2, 3]]), tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match="2 stages, the model 4; .* interaction_indexes"):
        load_checkpoint(tiny_model(), path)


def test_model_that_holds_the_adapter_is_told_to_pass_it_itself(tmp_path: Path) -> None:
    detector = nn.ModuleDict({"backbone": tiny_model()})
    path = saved(official(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="pass the ViTAdapter itself"):
        load_checkpoint(detector, path)
    load_checkpoint(detector["backbone"], path)


def test_dinov3_is_told(tmp_path: Path) -> None:
    tensors = dinov3() | {"rope_embed.periods": torch.ones(4)}
    with pytest.raises(CheckpointError, match="the file is a DINOv3 ViT"):
        load_checkpoint(tiny_model(), saved(tensors, tmp_path / "v3.pth"))


def split_swiglu(tensors: Tensors, names: tuple[str, str, str]) -> Tensors:
    """A SwiGLU's gate and value as two matrices; names are those of gate, value and output."""
    named: Tensors = {}
    for name, tensor in tensors.items():
        if ".w12." in name:
            for part, half in zip(names, tensor.chunk(2), strict=False):
                named[name.replace("w12", part)] = half.clone()
        else:
            named[name.replace("mlp.w3", f"mlp.{names[2]}")] = tensor
    return named


@pytest.mark.parametrize(
    "names", [("w1", "w2", "w3"), ("w1", "w3", "w2"), ("fc1_g", "fc1_x", "fc2")], ids=str
)
def test_swiglu_in_two_matrices_is_joined(names: tuple[str, str, str], tmp_path: Path) -> None:
    tensors = official(patch=16, is_swiglu=True)
    path = saved(split_swiglu(tensors, names), tmp_path / "apart.pth")
    assert hints(tiny_model(), path) == {"ffn": "swiglu"}
    model = tiny_model(ffn="swiglu")
    load_checkpoint(model, path)
    wanted = adapted(tensors)
    assert_same({name: model.state_dict()[name] for name in wanted}, wanted)


@pytest.mark.parametrize("kind", ["square", "normed"])
def test_feed_forward_of_no_known_kind_is_called_none(kind: str, tmp_path: Path) -> None:
    tensors = split_swiglu(official(is_swiglu=True), ("w1", "w2", "w3"))
    for index in range(4):
        if kind == "square":
            # With as many hidden channels as others, w2 or w3 may be the output.
            for name in ("w1", "w2", "w3"):
                tensors[f"blocks.{index}.mlp.{name}.weight"] = torch.ones(32, 32)
        else:
            # As in EVA-02.
            tensors[f"blocks.{index}.mlp.ffn_ln.weight"] = torch.ones(88)
    path = saved(tensors, tmp_path / "unknown.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny_model(), path)
    name = "w1.bias," if kind == "square" else "ffn_ln.weight\n"
    assert f"feed-forward is none that ViTAdapter has: blocks.0.mlp.{name}" in str(caught.value)
    assert "'mlp'" not in str(caught.value)


@pytest.mark.parametrize("part", ["mlp.fc2", "mlp", "ls1.gamma", "attn.qkv.bias"])
def test_missing_part_of_one_block_is_no_other_kind(part: str, tmp_path: Path) -> None:
    path = saved(without(f"blocks.0.{part}", official()), tmp_path / "part.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny_model(), path)
    assert "likely cause" not in str(caught.value)


@pytest.mark.parametrize(
    ("heads", "vit_features"),
    [
        (("decode_head",), "stages"),
        (("neck", "bbox_head"), "last"),
        # What the original never trained says nothing.
        ((), "last"),
        ((), "stages"),
        (("head",), "stages"),
        (("decode_head", "rpn_head"), "last"),
        (("roi_heads",), "stages"),
    ],
)
def test_file_of_the_same_or_of_no_variant_loads(
    heads: tuple[str, ...], vit_features: str, tmp_path: Path
) -> None:
    path = saved(in_detector(trained(), *heads), tmp_path / "trained.pth")
    assert load_checkpoint(tiny_model(vit_features=vit_features), path).format == "upstream"


def test_vit_alone_of_a_segmentor_has_no_variant(tmp_path: Path) -> None:
    path = saved(in_detector(official(), "decode_head"), tmp_path / "linear.pth")
    load_checkpoint(tiny_model(), path)


def test_backbone_alone_of_the_other_variant_loads_as_the_error_says(tmp_path: Path) -> None:
    path = saved(in_detector(trained(), "decode_head"), tmp_path / "trained.pth")
    with pytest.raises(CheckpointError, match="save the state dict of its backbone alone"):
        load_checkpoint(tiny_model(), path)
    load_checkpoint(tiny_model(), saved({"state_dict": trained()}, tmp_path / "backbone.pth"))


HEADS = [
    "head.weight",
    "head_dist.weight",
    "fc_norm.weight",
    "pre_logits.fc.weight",
    "attn_pool.q.weight",
    "linear_head.weight",
    "dino_head.last_layer.weight_g",
    "classifier.weight",
    "pooler.dense.weight",
]


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
@pytest.mark.parametrize("format", ["official", "timm", "trained"])
def test_heads_at_the_root_are_dropped_and_reported(
    format: str, prefix: str, tmp_path: Path
) -> None:
    tensors = trained() if format == "trained" else official()
    if format == "timm":
        tensors.pop("mask_token")
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    tensors |= {prefix + name: torch.ones(2) for name in HEADS}
    report = load_checkpoint(tiny_model(), saved(tensors, tmp_path / "tuned.pth"))
    assert set(HEADS) <= set(report.dropped)


def test_distilled_deit_loads_without_the_row_of_its_token(tmp_path: Path) -> None:
    tensors = without("mask_token", without(".gamma", official(patch=16)))
    positions = tensors["pos_embed"]
    tensors["pos_embed"] = torch.cat([positions[:, :1], torch.ones(1, 1, 32), positions[:, 1:]], 1)
    tensors |= {"dist_token": torch.ones(1, 1, 32), "head_dist.weight": torch.ones(2, 32)}
    model = tiny_model(layer_scale=False)
    report = load_checkpoint(model, saved(tensors, tmp_path / "deit.pth"))
    assert torch.equal(model.pos_embed, positions)
    assert {"dist_token", "head_dist.weight"} <= set(report.dropped)


def test_head_that_the_model_has_is_loaded(tmp_path: Path) -> None:
    class Tuned(ViTAdapter):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.head = nn.Linear(32, 2)

    path = saved(Tuned(**TINY).state_dict(), tmp_path / "tuned.pth")
    model = Tuned(**TINY)
    report = load_checkpoint(model, path)
    assert (report.missing, report.dropped) == (0, ())
