# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-g with DINOv2-g weights, FPN, COCO, 36 epochs, for mmdet 3."""

_base_ = ["./_base_/mask_rcnn_adapter_fpn_3x_coco.py"]

# As downloaded from https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/dinov2_vitg14_pretrain.pth,
# or converted: the patch kernel is resized to 16 while loading.
pretrained = "pretrained/dinov2_vitg14_pretrain.pth"
model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTAdapter",
        pretrain_size=592,
        img_size=592,
        patch_size=16,
        embed_dim=1536,
        depth=40,
        num_heads=24,
        mlp_ratio=4,
        drop_path_rate=0.5,
        conv_inplane=64,
        n_points=4,
        deform_num_heads=24,
        cffn_ratio=0.25,
        deform_ratio=0.5,
        interaction_indexes=[[0, 9], [10, 19], [20, 29], [30, 39]],
        window_attn=([True] * 9 + [False]) * 4,
        window_size=([14] * 9 + [None]) * 4,
        ffn="swiglu",
        # Keeps a fifth of the memory for activations and computes the rest again.
        with_cp=True,
        pretrained=pretrained,
    ),
    neck=dict(in_channels=[1536, 1536, 1536, 1536]),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=40, layer_decay_rate=0.7))
