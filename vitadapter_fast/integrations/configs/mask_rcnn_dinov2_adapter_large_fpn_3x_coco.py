# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-L with DINOv2-L weights, FPN, COCO, 36 epochs, for mmdet 3."""

_base_ = ["./_base_/mask_rcnn_adapter_fpn_3x_coco.py"]

# As downloaded from https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth,
# or converted: the patch kernel is resized to 16 while loading.
pretrained = "pretrained/dinov2_vitl14_pretrain.pth"
model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTAdapter",
        pretrain_size=592,
        img_size=592,
        patch_size=16,
        embed_dim=1024,
        depth=24,
        num_heads=16,
        mlp_ratio=4,
        drop_path_rate=0.4,
        conv_inplane=64,
        n_points=4,
        deform_num_heads=16,
        cffn_ratio=0.25,
        deform_ratio=0.5,
        interaction_indexes=[[0, 5], [6, 11], [12, 17], [18, 23]],
        window_attn=([True] * 5 + [False]) * 4,
        window_size=([14] * 5 + [None]) * 4,
        pretrained=pretrained,
    ),
    neck=dict(in_channels=[1024, 1024, 1024, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=24, layer_decay_rate=0.65))
