# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on DINOv3's adapter, S, with a frozen ViT, FPN, COCO, 36 epochs, for mmdet 3."""

_base_ = ["./_base_/mask_rcnn_dinov3_adapter_fpn_3x_coco.py"]

# A file of Meta's, Hugging Face's or timm's; or this name, which wants the [hub] extra and access.
pretrained = "dinov3_vits16"
model = dict(
    backbone=dict(
        embed_dim=384,
        depth=12,
        num_heads=6,
        interaction_indexes=[[0, 2], [3, 5], [6, 8], [9, 11]],
        pretrained=pretrained,
    ),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
