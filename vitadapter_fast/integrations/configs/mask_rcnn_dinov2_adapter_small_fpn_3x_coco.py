# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-S with DINOv2-S weights, FPN, COCO, 36 epochs, for mmdet 3."""

_base_ = ["./_base_/mask_rcnn_adapter_fpn_3x_coco.py"]

# As downloaded from https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth,
# or converted: the patch kernel is resized to 16 while loading.
pretrained = "pretrained/dinov2_vits14_pretrain.pth"
model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTAdapter",
        pretrain_size=592,
        img_size=592,
        patch_size=16,
        embed_dim=384,
        depth=12,
        num_heads=6,
        mlp_ratio=4,
        drop_path_rate=0.2,
        conv_inplane=64,
        n_points=4,
        deform_num_heads=6,
        cffn_ratio=0.25,
        deform_ratio=1.0,
        interaction_indexes=[[0, 2], [3, 5], [6, 8], [9, 11]],
        window_attn=([True] * 2 + [False]) * 4,
        window_size=([14] * 2 + [None]) * 4,
        pretrained=pretrained,
    ),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.7))
