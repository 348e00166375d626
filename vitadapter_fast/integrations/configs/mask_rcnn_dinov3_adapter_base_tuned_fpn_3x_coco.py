# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-B with DINOv3-B, which trains, FPN, COCO, 36 epochs, for mmdet 3."""

_base_ = ["./_base_/mask_rcnn_adapter_fpn_3x_coco.py"]

# A file of Meta's, Hugging Face's or timm's; or this name, which wants the [hub] extra and access.
pretrained = "dinov3_vitb16"
model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTAdapter",
        trunk="dinov3",
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4,
        conv_inplane=64,
        n_points=4,
        cffn_ratio=0.25,
        deform_num_heads=12,
        deform_ratio=0.5,
        drop_path_rate=0.3,
        interaction_indexes=[[0, 2], [3, 5], [6, 8], [9, 11]],
        pretrained=pretrained,
    ),
    neck=dict(in_channels=[768, 768, 768, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.6))
