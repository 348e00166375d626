# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on DINOv3's adapter, L, with a frozen ViT, FPN, COCO, 36 epochs, for mmdet 3."""

_base_ = ["./_base_/mask_rcnn_dinov3_adapter_fpn_3x_coco.py"]

# A file of Meta's, Hugging Face's or timm's; or this name, which wants the [hub] extra and access.
pretrained = "dinov3_vitl16"
model = dict(
    backbone=dict(
        embed_dim=1024,
        depth=24,
        num_heads=16,
        interaction_indexes=[[0, 4], [5, 11], [12, 17], [18, 23]],
        pretrained=pretrained,
    ),
    neck=dict(in_channels=[1024, 1024, 1024, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=24))
