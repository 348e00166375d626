# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-L with DINOv3-L, which trains, FPN, COCO, 36 epochs, for mmdet 3."""

_base_ = ["./_base_/mask_rcnn_adapter_fpn_3x_coco.py"]

# A file of Meta's, Hugging Face's or timm's; or this name, which wants the [hub] extra and access.
pretrained = "dinov3_vitl16"
model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTAdapter",
        trunk="dinov3",
        embed_dim=1024,
        depth=24,
        num_heads=16,
        mlp_ratio=4,
        conv_inplane=64,
        n_points=4,
        cffn_ratio=0.25,
        deform_num_heads=16,
        deform_ratio=0.5,
        drop_path_rate=0.3,
        interaction_indexes=[[0, 4], [5, 11], [12, 17], [18, 23]],
        pretrained=pretrained,
    ),
    neck=dict(in_channels=[1024, 1024, 1024, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=24, layer_decay_rate=0.65))
