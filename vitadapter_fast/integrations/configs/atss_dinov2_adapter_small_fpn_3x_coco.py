# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""ATSS on ViT-Adapter-S with DINOv2-S weights, FPN, COCO, 36 epochs, for mmdet 3.

Source: ViT-Adapter's ATSS on DeiT-S, https://github.com/czczup/ViT-Adapter, with DINOv2's weights,
sizes and learning rates, and mmdet 3's ATSS.
"""

_base_ = ["./mask_rcnn_dinov2_adapter_small_fpn_3x_coco.py"]

model = dict(
    _delete_=True,
    type="ATSS",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    # The map of stride 4 has no head, and what makes it alone does not train.
    # mmengine makes a config of the base's name.
    backbone=dict(out_indices=(1, 2, 3), **_base_.model.backbone),  # type: ignore[attr-defined]
    neck=dict(
        type="FPN",
        in_channels=[384, 384, 384],
        out_channels=256,
        add_extra_convs="on_output",
        num_outs=5,
    ),
    bbox_head=dict(
        type="ATSSHead",
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        anchor_generator=dict(
            type="AnchorGenerator",
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type="nms", iou_threshold=0.6),
        max_per_img=100,
    ),
)
val_evaluator = dict(metric="bbox")
test_evaluator = dict(metric="bbox")
