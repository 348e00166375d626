# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on ViT-Adapter-B with DINOv2-B weights, FPN, COCO, 36 epochs, for mmdet 3.

Source: as that of S, with the sizes of B.
"""

_base_ = ["./cascade_mask_rcnn_dinov2_adapter_small_fpn_3x_coco.py"]

# As downloaded from https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth,
# or converted: the patch kernel is resized to 16 while loading.
pretrained = "pretrained/dinov2_vitb14_pretrain.pth"
model = dict(
    backbone=dict(
        embed_dim=768,
        num_heads=12,
        drop_path_rate=0.3,
        deform_num_heads=12,
        deform_ratio=0.5,
        pretrained=pretrained,
    ),
    neck=dict(in_channels=[768, 768, 768, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.6))
