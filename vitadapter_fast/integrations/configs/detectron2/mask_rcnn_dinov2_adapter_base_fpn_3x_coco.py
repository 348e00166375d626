# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-B with DINOv2-B weights, FPN, COCO, 3x, a LazyConfig of detectron2."""

from vitadapter_fast.integrations.detectron2_lazy import mask_rcnn_3x

dataloader, lr_multiplier, model, optimizer, train = mask_rcnn_3x(
    "b", pretrained="pretrained/dinov2_vitb14_pretrain.pth"
)
