# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A real mmdet Deformable DETR computes the same on our kernels."""

from typing import Any

import pytest
import torch
from counting import Calls, outputs_and_gradients, perturb_deformable_attention
from torch import Tensor, nn

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")

from mmcv.ops import MultiScaleDeformableAttention  # noqa: E402
from mmcv.ops import multi_scale_deform_attn as mmcv_module  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from vitadapter_fast.integrations.deformable_detr import MSDeformAttn, replace_mmcv_op  # noqa: E402
from vitadapter_fast.native import tensors  # noqa: E402

C, HEADS = 32, 4
HW = [(5, 7), (3, 4), (2, 2)]
S = sum(h * w for h, w in HW)


def build(*, is_two_stage: bool) -> nn.Module:
    # The positions of mmdet's proposals know no other width.
    channels = 256 if is_two_stage else C
    attention = {"embed_dims": channels, "num_heads": HEADS, "dropout": 0.0, "batch_first": True}
    ffn = {"embed_dims": channels, "feedforward_channels": 48, "ffn_drop": 0.0}
    config = {
        "type": "DeformableDETR",
        "num_queries": 20,
        "num_feature_levels": 4,
        "with_box_refine": is_two_stage,
        "as_two_stage": is_two_stage,
        "data_preprocessor": {"type": "DetDataPreprocessor", "pad_size_divisor": 1},
        "backbone": {
            "type": "ResNet",
            "depth": 18,
            "base_channels": 8,
            "num_stages": 4,
            "out_indices": (1, 2, 3),
            "norm_eval": True,
            "style": "pytorch",
        },
        "neck": {
            "type": "ChannelMapper",
            "in_channels": [16, 32, 64],
            "kernel_size": 1,
            "out_channels": channels,
            "act_cfg": None,
            "norm_cfg": {"type": "GN", "num_groups": 8},
            "num_outs": 4,
        },
        "encoder": {"num_layers": 2, "layer_cfg": {"self_attn_cfg": attention, "ffn_cfg": ffn}},
        "decoder": {
            "num_layers": 2,
            "return_intermediate": True,
            "layer_cfg": {
                "self_attn_cfg": attention,
                "cross_attn_cfg": attention,
                "ffn_cfg": ffn,
            },
            "post_norm_cfg": None,
        },
        "positional_encoding": {"num_feats": channels // 2, "normalize": True, "offset": -0.5},
        "bbox_head": {
            "type": "DeformableDETRHead",
            "num_classes": 3,
            "embed_dims": channels,
            "sync_cls_avg_factor": True,
            "loss_cls": {
                "type": "FocalLoss",
                "use_sigmoid": True,
                "gamma": 2.0,
                "alpha": 0.25,
                "loss_weight": 2.0,
            },
            "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
            "loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        "train_cfg": {
            "assigner": {
                "type": "HungarianAssigner",
                "match_costs": [
                    {"type": "FocalLossCost", "weight": 2.0},
                    {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
                    {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
                ],
            }
        },
        "test_cfg": {"max_per_img": 20},
    }
    register_all_modules()
    torch.manual_seed(0)
    detector: nn.Module = MODELS.build(config)
    detector.init_weights()
    perturb_deformable_attention(detector)
    return detector.train()


def samples() -> list[DetDataSample]:
    """Of a batch of 96 x 128; the second photo is smaller, so its padding is masked."""
    made = []
    for hw in ((96, 128), (64, 96)):
        sample = DetDataSample()
        facts = {"img_shape": hw, "batch_input_shape": (96, 128), "scale_factor": (1.0, 1.0)}
        sample.set_metainfo({**facts, "ori_shape": hw, "img_id": 0})
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[10.0, 12, 40, 50], [30, 20, 80, 60]]),
            labels=torch.tensor([0, 2]),
        )
        made.append(sample)
    return made


@pytest.mark.parametrize("is_two_stage", [False, True], ids=["one_stage", "two_stage"])
def test_deformable_detr_computes_the_same(is_two_stage: bool) -> None:
    detector = build(is_two_stage=is_two_stage)
    torch.manual_seed(1)
    image = torch.randn(2, 3, 96, 128)

    def run() -> list[Tensor]:
        losses = detector.train()(image, samples(), mode="loss")
        # In training mmdet's head refuses what its own decoder gives it here.
        classes, boxes, *_ = detector.eval()(image, samples(), mode="tensor")
        return [classes, boxes, *losses.values()]

    before, gradients_before, none = outputs_and_gradients(detector, run)
    with replace_mmcv_op():
        after, gradients_after, calls = outputs_and_gradients(detector, run)
    *_, none_again = outputs_and_gradients(detector, run)

    # Twice two layers of the encoder and two of the decoder.
    assert calls == {"ms_deform_attn": 8, "ms_deform_attn_backward": 8}
    assert not none and not none_again
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert any("sampling_offsets" in name for name in gradients_before)
    for name, gradient in gradients_before.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            gradients_after[name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-5, msg=name
        )


def test_predictions_are_the_same() -> None:
    detector = build(is_two_stage=False).eval()
    image = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        before = detector(image, samples(), mode="predict")
        with replace_mmcv_op(), Calls() as calls:
            after = detector(image, samples(), mode="predict")
    assert calls.counts == {"ms_deform_attn": 4}
    for one, other in zip(after, before, strict=True):
        for name in ("scores", "bboxes"):
            torch.testing.assert_close(
                one.pred_instances[name], other.pred_instances[name], rtol=1e-3, atol=1e-3
            )


def test_sizes_on_a_device_are_read_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Because the host waits for the device then; on the CPU each layer reads them."""
    monkeypatch.setattr(tensors, "is_on_cpu", lambda tensor: False)
    detector = build(is_two_stage=False).eval()
    reads: list[Any] = []
    read = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: reads.append(tensor) or read(tensor))
    with torch.no_grad(), replace_mmcv_op():
        detector(torch.randn(2, 3, 96, 128), samples(), mode="tensor")
    assert len([tensor for tensor in reads if tensor.shape == (4, 2)]) == 1


def test_the_function_of_gpus_is_replaced() -> None:
    """On a GPU mmcv calls its autograd function, which takes the same tensors."""
    original = mmcv_module.MultiScaleDeformableAttnFunction
    value, shapes = torch.randn(2, S, HEADS, 8), torch.tensor(HW)
    locations = torch.rand(2, 9, HEADS, 3, 2, 2)
    weights = torch.rand(2, 9, HEADS, 3, 2)
    wanted = mmcv_module.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    with replace_mmcv_op(), Calls() as calls:
        function = mmcv_module.MultiScaleDeformableAttnFunction
        assert function is not original
        got = function.apply(value, shapes, torch.tensor([0, 35, 47]), locations, weights, 64)
    assert calls.counts == {"ms_deform_attn": 1}
    torch.testing.assert_close(got, wanted)
    assert mmcv_module.MultiScaleDeformableAttnFunction is original


@pytest.mark.parametrize("coordinates", [2, 4])
def test_our_module_takes_the_weights_of_theirs(coordinates: int) -> None:
    torch.manual_seed(0)
    theirs = MultiScaleDeformableAttention(C, HEADS, 3, 2, dropout=0.0, batch_first=True)
    perturb_deformable_attention(theirs)
    ours = MSDeformAttn(C, 3, HEADS, 2)
    ours.load_state_dict(theirs.state_dict())
    query, features = torch.randn(2, 9, C), torch.randn(2, S, C)
    points, mask = torch.rand(2, 9, 3, coordinates), torch.rand(2, S) < 0.3
    wanted = theirs(
        query,
        value=features,
        identity=torch.zeros_like(query),
        key_padding_mask=mask,
        reference_points=points,
        spatial_shapes=torch.tensor(HW),
        level_start_index=torch.tensor([0, 35, 47]),
    )
    got = ours(query, points, features, torch.tensor(HW), None, mask)
    torch.testing.assert_close(got, wanted)
