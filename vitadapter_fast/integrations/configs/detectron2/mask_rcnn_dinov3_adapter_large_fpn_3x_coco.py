# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on DINOv3's adapter, L, with a frozen ViT, FPN, COCO, 3x, a LazyConfig."""

from vitadapter_fast.integrations.detectron2_lazy import mask_rcnn_3x

dataloader, lr_multiplier, model, optimizer, train = mask_rcnn_3x(
    "dinov3-l", pretrained="dinov3_vitl16"
)
