# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-S with DINOv3-S, which trains, FPN, COCO, 36 epochs, for mmdet 3."""

_base_ = ["./mask_rcnn_dinov3_adapter_small_fpn_3x_coco.py"]

# The original's adapter: injectors, and deformable attention of its size.
model = dict(
    backbone=dict(
        injectors=True,
        final_norm=False,
        frozen_vit=False,
        vit_features="last",
        deform_num_heads=6,
        deform_ratio=1.0,
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.7))
