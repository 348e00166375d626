# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The code blocks of README and docs for other frameworks."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import published_size, saved
from snippets import Block, run_python, run_shell, runs
from tiny import WINDOWED
from torch.distributed.run import get_args_parser

from vitadapter_fast import ViTAdapter, vit_adapter_s
from vitadapter_fast.commands.configs import config_path


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the blocks read."""
    monkeypatch.chdir(tmp_path)
    saved(published_size("official_small"), tmp_path / "dinov2_vits14_pretrain.pth")


@runs("Use: python 2")
def test_torchvision(block: Block) -> None:
    pytest.importorskip("torchvision")
    detector = run_python(block)["detector"]
    assert type(detector).__name__ == "MaskRCNN"


@runs("transformers: python")
def test_transformers(block: Block) -> None:
    pytest.importorskip("transformers")
    assert run_python(block)["logits"].shape == (1, 150, 512, 512)


@runs("timm: python")
def test_features_of_timm(block: Block) -> None:
    pytest.importorskip("timm")
    maps = run_python(block)["maps"]
    assert [tuple(each.shape[2:]) for each in maps] == [(84, 130), (42, 65), (21, 33), (11, 17)]


@runs("segmentation_models_pytorch: python")
def test_encoder_of_smp(block: Block) -> None:
    """The file has zeros."""
    pytest.importorskip("segmentation_models_pytorch")
    model = run_python(block)["model"]
    assert model.encoder.blocks[11].mlp.fc1.weight.count_nonzero() == 0
    assert model.segmentation_head[0].out_channels == 21


@runs("In place of mmcv's operator: python")
def test_operator_of_mmcv(block: Block) -> None:
    function = pytest.importorskip("mmcv.ops.multi_scale_deform_attn")
    before = function.MultiScaleDeformableAttnFunction
    trained = []

    def train(detector: object) -> None:
        assert function.MultiScaleDeformableAttnFunction is not before
        trained.append(detector)

    run_python(block, train=train, any_deformable_detr="a detector")
    assert trained == ["a detector"]
    assert function.MultiScaleDeformableAttnFunction is before


@runs("In place of mmcv's operator: python 2")
def test_mapping_of_kernels(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kernels")
    modeling = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    kind = modeling.MultiScaleDeformableAttention
    # As transformers does itself where it accepts the version of kernels.
    monkeypatch.setattr(kind, "kernel_layer_name", kind.__name__, raising=False)
    layer = kind()
    run_python(block, deformable_detr=torch.nn.Sequential(torch.nn.Linear(1, 1), layer))
    assert layer.forward.__func__.__module__ == "vitadapter_fast.integrations.deformable_detr"


@runs("mmdet, mmseg and detectron2: sh")
def test_launches_of_mmdet_and_detectron2(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mmdet")
    pytest.importorskip("detectron2")
    from detectron2.engine import default_argument_parser

    single, several, other = run_shell(block, tmp_path, ["torchrun"])
    launch = get_args_parser().parse_args(several[1:])
    for script, arguments in (
        (single[1], single[2:]),
        (launch.training_script, launch.training_script_args),
    ):
        spec = importlib.util.spec_from_file_location("train", script)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        asked = module.parse_args()
        name = "mask_rcnn_dinov2_adapter_small_fpn_3x_coco"
        assert Path(asked.config).read_bytes() == config_path(name).read_bytes()
    assert other[1] == "DETECTRON2/tools/lazyconfig_train_net.py"
    options: Any = default_argument_parser().parse_args(other[2:])
    # Bytes: a process may find the package in the source tree.
    lazy = config_path(f"detectron2/{name}")
    assert Path(options.config_file).read_bytes() == lazy.read_bytes() and options.num_gpus == 8


@runs("mmdet, mmseg and detectron2: python")
def test_mmdet_config(block: Block, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Laid over a packaged config, which stands for one of the original's."""
    pytest.importorskip("mmdet")
    request.getfixturevalue("mmdet_scope")
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper

    base = config_path("mask_rcnn_dinov2_adapter_small_fpn_3x_coco")
    path = tmp_path / "config.py"
    path.write_text(f"_base_ = [{str(base)!r}]\n{block.text}")
    config = Config.fromfile(path)
    detector = MODELS.build(config.model)
    detector.backbone.init_weights()
    assert type(detector.backbone).__module__ == "vitadapter_fast.integrations.mmdet"
    groups = build_optim_wrapper(detector, config.optim_wrapper).optimizer.param_groups
    assert min(group["lr_scale"] for group in groups) == pytest.approx(0.7**13)


@runs("The hub of Hugging Face: python")
def test_hub(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_mixin = pytest.importorskip("huggingface_hub.hub_mixin")
    # It prints that it loads; what the block prints is compared.
    monkeypatch.setattr(hub_mixin, "print", lambda *what: None, raising=False)
    model = run_python(block)["model"]
    assert type(model).__name__ == "HubViTAdapter" and model.embed_dim == 384
    assert (tmp_path / "cells" / "README.md").is_file()


@runs("The hub of Hugging Face: python 2")
def test_weights_lent_to_the_hub(block: Block) -> None:
    pytest.importorskip("huggingface_hub")
    model = vit_adapter_s()
    shared = run_python(block, model=model)["shared"]
    assert shared.up.weight.data_ptr() == model.up.weight.data_ptr()


@runs("Low-rank adapters: python")
def test_low_rank_adapters(block: Block, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tuned = run_python(block, model=ViTAdapter(**WINDOWED))["tuned"]
    trained, _ = tuned.get_nb_trainable_parameters()
    assert trained > 0 and (tmp_path / "tuned" / "adapter_model.safetensors").is_file()
