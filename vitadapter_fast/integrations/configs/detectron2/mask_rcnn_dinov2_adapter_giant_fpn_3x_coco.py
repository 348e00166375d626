# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on ViT-Adapter-g with DINOv2-g weights, FPN, COCO, 3x, a LazyConfig of detectron2."""

from vitadapter_fast.integrations.detectron2_lazy import mask_rcnn_3x

dataloader, lr_multiplier, model, optimizer, train = mask_rcnn_3x(
    "g", pretrained="pretrained/dinov2_vitg14_pretrain.pth"
)
# Keeps a fifth of the memory for activations and computes the rest again.
model.backbone.bottom_up.with_cp = True
