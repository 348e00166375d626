# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-S with DINOv2-S weights, FPN, COCO, 3x, a LazyConfig of detectron2."""

from vitadapter_fast.integrations.detectron2_lazy import mask_rcnn_3x

dataloader, lr_multiplier, model, optimizer, train = mask_rcnn_3x(
    "s", pretrained="pretrained/dinov2_vits14_pretrain.pth"
)
