# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""UPerNet in mmseg: the packaged recipe builds, trains and infers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import adapted, official, saved
from tiny import TINY
from torch import Tensor, nn

pytest.importorskip("mmseg")

from mmengine.config import Config  # noqa: E402
from mmengine.config.utils import MODULE2PACKAGE  # noqa: E402
from mmengine.optim import OptimWrapper, build_optim_wrapper  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmengine.utils import is_installed  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402

from vitadapter_fast.commands.configs import config_path  # noqa: E402
from vitadapter_fast.integrations.mmdet import ViTAdapter  # noqa: E402
from vitadapter_fast.presets import DINOV3_PRESETS, PRESETS  # noqa: E402

pytestmark = pytest.mark.usefixtures("mmseg_scope")
# OneDL's mmengine 0.10.12 looks for configs "mmseg::" in a package of the old name.
if not is_installed(MODULE2PACKAGE["mmseg"]):
    MODULE2PACKAGE["mmseg"] = "mmseg"
register_all_modules(init_default_scope=False)

CLASSES = 3
H, W = 96, 128


def recipe() -> Config:
    return Config.fromfile(config_path("upernet_dinov2_adapter_base_512_160k_ade20k"))


def small_recipe(**overrides: Any) -> Config:
    """The recipe with a tiny backbone and narrow heads for three classes."""
    config = recipe()
    channels, norm = TINY["embed_dim"], {"type": "BN"}
    config.merge_from_dict(
        {
            **{f"model.backbone.{name}": value for name, value in TINY.items()},
            "model.decode_head.in_channels": [channels] * 4,
            "model.decode_head.channels": 16,
            "model.decode_head.num_classes": CLASSES,
            "model.decode_head.norm_cfg": norm,
            "model.auxiliary_head.in_channels": channels,
            "model.auxiliary_head.channels": 16,
            "model.auxiliary_head.num_classes": CLASSES,
            "model.auxiliary_head.norm_cfg": norm,
            "model.data_preprocessor.size": (H, W),
            "model.test_cfg": {"mode": "slide", "crop_size": (64, 64), "stride": (48, 48)},
            "model.pretrained": None,
            "optim_wrapper.paramwise_cfg.num_layers": TINY["depth"],
            "optim_wrapper.optimizer.lr": 5e-3,
            **overrides,
        }
    )
    return config


def batch() -> dict[str, Any]:
    """Two photos whose left half is dark and of class 0, the right one bright and of class 2."""
    image = torch.randint(0, 60, (3, H, W), dtype=torch.uint8)
    image[:, :, W // 2 :] += 180
    classes = torch.zeros(1, H, W, dtype=torch.long)
    classes[:, :, W // 2 :] = 2
    meta = {"img_shape": (H, W), "ori_shape": (H, W), "pad_shape": (H, W), "flip": False}
    sample = SegDataSample(gt_sem_seg=PixelData(data=classes), metainfo=meta)
    return {"inputs": [image, image], "data_samples": [sample, sample]}


def test_recipe_states_the_published_settings() -> None:
    config = recipe()
    published = PRESETS["b"].model_kwargs()
    backbone = config.model.backbone.to_dict()
    # The original attends globally when it segments.
    for name in published.keys() - {"ffn", "window_attn", "window_size"}:
        assert backbone[name] == published[name]
    assert backbone["window_attn"] is False and backbone["vit_features"] == "stages"
    with torch.device("meta"):
        model = MODELS.build(config.model)
    assert isinstance(model.backbone, ViTAdapter)
    assert model.backbone.pretrained == "pretrained/dinov2_vitb14_pretrain.pth"
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) == 100_396_256


def test_encoder_decoder_trains_and_infers() -> None:
    torch.manual_seed(0)
    config = small_recipe()
    model = MODELS.build(config.model)
    model.init_weights()
    wrapper: OptimWrapper = build_optim_wrapper(model, config.optim_wrapper)
    model.train()
    losses = [model.train_step(batch(), wrapper)["loss"].item() for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    found: list[SegDataSample] = model.test_step(batch())
    classes: Tensor = found[0].pred_sem_seg.data
    assert classes.shape == (1, H, W)
    assert found[0].seg_logits.data.shape == (CLASSES, H, W)
    assert set(classes.unique().tolist()) <= set(range(CLASSES))


def test_pretrained_of_the_encoder_decoder_reaches_the_backbone(tmp_path: Path) -> None:
    tensors = official(patch=14)
    path = saved(tensors, tmp_path / "dinov2.pth")
    model: nn.Module = MODELS.build(small_recipe(**{"model.pretrained": str(path)}).model)
    model.init_weights()
    state = model.backbone.state_dict()
    for name, tensor in adapted(tensors).items():
        if name != "patch_embed.proj.weight":
            assert torch.equal(state[name], tensor)


MASK2FORMERS: dict[str, dict[str, Any]] = {
    # The original attends globally when it segments, and lets BEiT-B skip fewer branches.
    "dinov2": {
        **PRESETS["b"].model_kwargs(),
        "window_attn": False,
        "window_size": None,
        "drop_path_rate": 0.2,
        "vit_features": "stages",
    },
    "dinov3": DINOV3_PRESETS["b"].model_kwargs(injectors=False),
}


@pytest.mark.parametrize("trunk", MASK2FORMERS)
def test_mask2former_trains_and_infers(trunk: str) -> None:
    """On DINOv3 its own adapter and a frozen ViT; below mmseg's Mask2Former, narrow."""
    pytest.importorskip("mmdet")
    torch.manual_seed(0)
    config = Config.fromfile(config_path(f"mask2former_{trunk}_adapter_base_512_160k_ade20k"))
    published = MASK2FORMERS[trunk]
    backbone = config.model.backbone.to_dict()
    assert {name: backbone.get(name, published[name]) for name in published} == published
    keywords = ("embed_dim", "depth", "num_heads", "deform_num_heads", "interaction_indexes")
    config.merge_from_dict(
        {
            **{f"model.backbone.{name}": TINY[name] for name in keywords},
            "model.backbone.conv_inplane": 8,
            "model.backbone.pretrained": None,
            "model.decode_head.in_channels": [TINY["embed_dim"]] * 4,
            "model.decode_head.num_classes": CLASSES,
            "model.decode_head.num_queries": 10,
            "model.decode_head.loss_cls.class_weight": [1.0] * CLASSES + [0.1],
            "model.data_preprocessor.size": (H, W),
            "model.test_cfg": {"mode": "whole"},
            "optim_wrapper.paramwise_cfg.num_layers": TINY["depth"],
        }
    )
    model = MODELS.build(config.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    trained = {id(part) for group in wrapper.optimizer.param_groups for part in group["params"]}
    of_vit = {id(part) for part in model.backbone.blocks.parameters()}
    assert trained & of_vit == (of_vit if trunk == "dinov2" else set())
    model.train()
    assert model.train_step(batch(), wrapper)["loss"].isfinite()
    model.eval()
    found = model.test_step(batch())
    assert found[0].pred_sem_seg.data.shape == (1, H, W)
