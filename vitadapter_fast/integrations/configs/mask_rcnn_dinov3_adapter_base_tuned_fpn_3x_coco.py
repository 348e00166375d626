# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-B with DINOv3-B, which trains, FPN, COCO, 36 epochs, for mmdet 3."""

_base_ = ["./mask_rcnn_dinov3_adapter_base_fpn_3x_coco.py"]

# The original's adapter: injectors, and deformable attention of its size.
model = dict(
    backbone=dict(
        injectors=True,
        final_norm=False,
        frozen_vit=False,
        vit_features="last",
        deform_num_heads=12,
        deform_ratio=0.5,
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.6))
