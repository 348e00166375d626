# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-L with DINOv2-L weights, FPN, COCO, 3x, a LazyConfig of detectron2."""

from vitadapter_fast.integrations.detectron2_lazy import mask_rcnn_3x

dataloader, lr_multiplier, model, optimizer, train = mask_rcnn_3x(
    "l", pretrained="pretrained/dinov2_vitl14_pretrain.pth"
)
