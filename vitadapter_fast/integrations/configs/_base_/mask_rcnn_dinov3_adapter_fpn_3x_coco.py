# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the sizes of Mask R-CNN on DINOv3's adapter share, FPN, COCO, 36 epochs, for mmdet 3."""

_base_ = ["./mask_rcnn_adapter_fpn_3x_coco.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTAdapter",
        trunk="dinov3",
        mlp_ratio=4,
        conv_inplane=64,
        n_points=4,
        cffn_ratio=0.25,
        # DINOv3's own adapter: nothing flows into the ViT, whose tokens pass its last norm.
        injectors=False,
        final_norm=True,
        frozen_vit=True,
        vit_features="stages",
        deform_num_heads=16,
        deform_ratio=0.5,
        drop_path_rate=0.3,
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=1.0))
