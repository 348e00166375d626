# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN in mmdet: the packaged recipes, the original's configs and files, a whole training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import saved
from photos import CLASSES, write_coco
from safetensors import safe_open
from torch import Tensor, nn

pytest.importorskip("mmdet")

from mmdet.registry import MODELS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.runner import Runner, load_checkpoint  # noqa: E402

from vitadapter_fast import vit_adapter_dinov3  # noqa: E402
from vitadapter_fast.commands.configs import config_path  # noqa: E402
from vitadapter_fast.integrations.mmdet import ViTAdapter  # noqa: E402
from vitadapter_fast.presets import DINOV3_PRESETS, PRESETS  # noqa: E402

pytestmark = pytest.mark.usefixtures("mmdet_scope")
register_all_modules(init_default_scope=False)

SIZES = {"small": "s", "base": "b", "large": "l", "giant": "g"}
PARAMETERS = {
    "small": 48_252_800,
    "base": 121_087_952,
    "large": 348_739_504,
    "giant": 1_208_590_192,
}
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "tiny_ratio1_window.safetensors"
# Narrow heads: at their usual width they cost more than the backbone on small images.
WIDTH = 32
HEADS: dict[str, Any] = {
    "neck.out_channels": WIDTH,
    "rpn_head.in_channels": WIDTH,
    "rpn_head.feat_channels": WIDTH,
    "roi_head.bbox_roi_extractor.out_channels": WIDTH,
    "roi_head.bbox_head.in_channels": WIDTH,
    "roi_head.bbox_head.fc_out_channels": WIDTH,
    "roi_head.bbox_head.num_classes": len(CLASSES),
    "roi_head.mask_roi_extractor.out_channels": WIDTH,
    "roi_head.mask_head.in_channels": WIDTH,
    "roi_head.mask_head.conv_out_channels": WIDTH,
    "roi_head.mask_head.num_classes": len(CLASSES),
    "roi_head.mask_head.num_convs": 1,
    "train_cfg.rcnn.sampler.num": 32,
    "train_cfg.rpn_proposal.max_per_img": 50,
    "test_cfg.rpn.max_per_img": 50,
    "test_cfg.rcnn.score_thr": 0.0,
    "test_cfg.rcnn.max_per_img": 10,
}


def recipe(size: str) -> Config:
    return Config.fromfile(config_path(f"mask_rcnn_dinov2_adapter_{size}_fpn_3x_coco"))


def small_recipe(**backbone: Any) -> Config:
    """The recipe of S with narrow heads and no file to start from."""
    config = recipe("small")
    options = {"model.backbone.pretrained": None}
    options |= {f"model.{name}": value for name, value in HEADS.items()}
    options |= {f"model.backbone.{name}": value for name, value in backbone.items()}
    config.merge_from_dict(options)
    return config


@pytest.mark.parametrize("size", SIZES)
def test_detector_has_the_published_number_of_parameters(size: str) -> None:
    with torch.device("meta"):
        detector = MODELS.build(recipe(size).model)
    assert sum(parameter.numel() for parameter in detector.parameters()) == PARAMETERS[size]


@pytest.mark.parametrize("size", SIZES)
def test_recipe_states_the_published_settings(size: str) -> None:
    config, preset = recipe(size), PRESETS[SIZES[size]]
    backbone = config.model.backbone.to_dict()
    assert {name: backbone[name] for name in preset.model_kwargs() if name != "ffn"} == {
        name: value for name, value in preset.model_kwargs().items() if name != "ffn"
    }
    assert backbone.get("ffn", "mlp") == preset.ffn
    assert config.optim_wrapper.paramwise_cfg == {
        "num_layers": preset.depth,
        "layer_decay_rate": preset.layer_decay,
    }
    assert config.optim_wrapper.optimizer.lr == 1e-4
    assert config.optim_wrapper.optimizer.weight_decay == 0.05
    assert (config.train_cfg.max_epochs, config.param_scheduler[1].milestones) == (36, [27, 33])
    assert config.train_dataloader.dataset.pipeline == config.train_pipeline


@pytest.mark.parametrize("kind", ["", "_tuned"], ids=["own", "tuned"])
@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_recipe_on_dinov3_states_the_preset(size: str, kind: str) -> None:
    name = f"mask_rcnn_dinov3_adapter_{size}{kind}_fpn_3x_coco"
    config, preset = Config.fromfile(config_path(name)), DINOV3_PRESETS[SIZES[size]]
    with torch.device("meta"):
        built = MODELS.build(config.model).backbone
        wanted = vit_adapter_dinov3(SIZES[size], injectors=kind == "_tuned")
    assert repr(built).replace("ViTAdapter(", "", 1) == repr(wanted).replace("ViTAdapter(", "", 1)
    for setting in ("vit_features", "has_frozen_vit", "trunk", "_stage_bounds"):
        assert getattr(built, setting) == getattr(wanted, setting)
    decay = preset.layer_decay if kind else 1.0
    assert config.optim_wrapper.paramwise_cfg == {
        "num_layers": preset.depth,
        "layer_decay_rate": decay,
    }
    assert config.model.backbone.pretrained == f"dinov3_vit{SIZES[size]}16"


def runner_config(folder: Path, max_iters: int) -> Config:
    """The recipe of S on the images in ``folder``, evaluated and saved at the end."""
    config = small_recipe()
    data = {
        "batch_size": 2,
        "num_workers": 0,
        "persistent_workers": False,
        "dataset.data_root": str(folder),
        "dataset.ann_file": "annotations.json",
        "dataset.data_prefix": {"img": ""},
        "dataset.metainfo": {"classes": CLASSES},
    }
    options = {
        f"{loader}.{name}": value
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader")
        for name, value in data.items()
    }
    config.merge_from_dict(options)
    # The default one waits for two seconds at the end of each epoch, which are short here.
    config.train_dataloader.sampler = {"type": "InfiniteSampler"}
    scale = {"type": "Resize", "scale": (160, 128), "keep_ratio": True}
    pipeline = config.train_pipeline
    for dataset in (config.train_dataloader.dataset, config.val_dataloader.dataset):
        dataset.filter_cfg = None
    # Sizes of the recipe's random choices, to a fifth.
    for choice in pipeline[3].transforms:
        for transform in choice:
            for key in ("scales", "crop_size"):
                if key in transform:
                    transform[key] = shrink(transform[key])
    pipeline[4].crop_size = (128, 160)
    config.train_dataloader.dataset.pipeline = pipeline
    for loader in (config.val_dataloader, config.test_dataloader):
        loader.dataset.pipeline[1] = scale
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.ann_file = str(folder / "annotations.json")
    config.train_cfg = {
        "type": "IterBasedTrainLoop",
        "max_iters": max_iters,
        "val_interval": max_iters,
    }
    config.default_hooks.checkpoint.update(by_epoch=False, interval=max_iters)
    config.default_hooks.logger.interval = 1
    config.param_scheduler = [config.param_scheduler[0]]
    config.param_scheduler[0].update(start_factor=0.1, end=5)
    config.log_processor.by_epoch = False
    config.work_dir = str(folder / "work")
    config.visualizer.vis_backends = []
    config.env_cfg.dist_cfg.backend = "gloo"
    config.randomness = {"seed": 0}
    return config


def shrink(sizes: Any) -> Any:
    if isinstance(sizes, (list, tuple)):
        return type(sizes)(shrink(size) for size in sizes)
    return sizes // 5


class Watch(Hook):
    """Keeps the weights that training starts from, and the loss of every iteration by number."""

    def __init__(self) -> None:
        self.start: dict[str, Tensor] = {}
        self.losses: dict[int, float] = {}

    def before_train(self, runner: Runner) -> None:
        self.start = {name: value.clone() for name, value in runner.model.state_dict().items()}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.losses[runner.iter] = float(outputs["loss"].detach())


def train(config: Config) -> tuple[Runner, Watch]:
    runner, watch = Runner.from_cfg(config), Watch()
    runner.register_hook(watch, priority="LOWEST")
    runner.train()
    return runner, watch


@pytest.mark.usefixtures("trusted_checkpoints")
def test_runner_trains_evaluates_saves_and_resumes(tmp_path: Path) -> None:
    write_coco(tmp_path)
    runner, watch = train(runner_config(tmp_path, max_iters=10))
    losses = list(watch.losses.values())
    assert len(losses) == 10 and sum(losses[-3:]) < sum(losses[:3])
    scores = runner.message_hub.log_scalars
    assert 0 <= scores["val/coco/bbox_mAP"].current() <= 1
    assert 0 <= scores["val/coco/segm_mAP"].current() <= 1
    trained = runner.model.state_dict()
    for name in ("backbone.pos_embed", "backbone.spm.fc1.weight", "backbone.blocks.0.gamma1"):
        assert not torch.equal(watch.start[name], trained[name])

    config = runner_config(tmp_path, max_iters=12)
    config.resume, config.load_from = True, str(tmp_path / "work" / "iter_10.pth")
    resumed, watch = train(config)
    assert all(torch.equal(watch.start[name], value) for name, value in trained.items())
    assert list(watch.losses) == [10, 11]
    assert {int(state["step"]) for state in resumed.optim_wrapper.optimizer.state.values()} == {12}


ORIGINAL = """
_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"
pretrained = "pretrained/dinov2_vits14_pretrain_14to16.pth"
model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTAdapter",
        pretrain_size=592,
        img_size=592,
        patch_size=16,
        in_chans=3,
        embed_dim=384,
        depth=12,
        num_heads=6,
        mlp_ratio=4,
        qkv_bias=True,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.2,
        layer_scale=True,
        conv_inplane=64,
        n_points=4,
        deform_num_heads=6,
        init_values=0.0,
        with_cffn=True,
        cffn_ratio=0.25,
        deform_ratio=1.0,
        add_vit_feature=True,
        use_extra_extractor=True,
        with_cp=False,
        interaction_indexes=[[0, 2], [3, 5], [6, 8], [9, 11]],
        window_attn=[True, True, False, True, True, False,
                     True, True, False, True, True, False],
        window_size=[14, 14, None, 14, 14, None,
                     14, 14, None, 14, 14, None],
        pretrained=pretrained),
    neck=dict(
        type="FPN",
        in_channels=[384, 384, 384, 384],
        out_channels=256,
        num_outs=5))
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=0.0001, weight_decay=0.05),
    constructor="LayerDecayOptimizerConstructor",
    paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.70))
"""


def test_config_of_the_original_builds_but_for_the_frameworks_renames(tmp_path: Path) -> None:
    (tmp_path / "original.py").write_text(ORIGINAL)
    config = Config.fromfile(tmp_path / "original.py")
    with torch.device("meta"):
        detector = MODELS.build(config.model)
    assert isinstance(detector.backbone, ViTAdapter)
    assert sum(parameter.numel() for parameter in detector.parameters()) == PARAMETERS["small"]
    wrapper = build_optim_wrapper(detector, config.optim_wrapper)
    assert min(g["lr"] for g in wrapper.optimizer.param_groups) == pytest.approx(1e-4 * 0.7**13)


def golden_detector() -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A detector for the backbone of a golden file, the file's weights, and its other tensors."""
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        settings = json.loads(file.metadata()["config"])
    weights = {
        name.removeprefix("param."): tensor.long() if name.endswith("_tracked") else tensor
        for name, tensor in tensors.items()
        if name.startswith("param.")
    }
    config = small_recipe()
    config.model.backbone = {"type": "ViTAdapter", **settings}
    config.model.neck.in_channels = [settings["embed_dim"]] * 4
    return MODELS.build(config.model), weights, tensors


def test_original_checkpoint_loads_strictly_and_gives_its_maps(tmp_path: Path) -> None:
    detector, weights, golden = golden_detector()
    assert weights.keys() == detector.backbone.state_dict().keys()
    state = {**detector.state_dict(), **{f"backbone.{k}": v for k, v in weights.items()}}
    path = saved({"meta": {"epoch": 36}, "state_dict": state}, tmp_path / "epoch_36.pth")
    load_checkpoint(detector, str(path), strict=True, logger="silent")
    maps = detector.backbone.double().eval()(golden["input"].double())
    for index, out in enumerate(maps):
        truth = golden[f"output.{index}"].double()
        assert (out - truth).abs().max() < 1e-5 * truth.abs().max()


def test_original_checkpoint_can_start_another_detector(tmp_path: Path) -> None:
    detector, weights, _ = golden_detector()
    state = {"neck.fpn_convs.0.conv.bias": torch.zeros(256)}
    state |= {f"backbone.{name}": tensor for name, tensor in weights.items()}
    path = saved({"meta": {"epoch": 36}, "state_dict": state}, tmp_path / "epoch_36.pth")
    detector.backbone.pretrained = str(path)
    detector.init_weights()
    loaded = detector.backbone.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
