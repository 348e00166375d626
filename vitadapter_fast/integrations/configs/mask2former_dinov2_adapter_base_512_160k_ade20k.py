# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on ViT-Adapter-B with DINOv2-B weights, ADE20K at 512, 160k steps, for mmseg 1.

Source: ViT-Adapter's Mask2Former on BEiT-B (COCO-Stuff), https://github.com/czczup/ViT-Adapter,
with DINOv2's weights, on mmseg's Mask2Former for ADE20K.
"""

_base_ = ["mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"]
custom_imports = dict(imports=["vitadapter_fast.integrations.mmdet"], allow_failed_imports=False)

crop_size = (512, 512)
# As downloaded from https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth,
# or converted: the patch kernel is resized to 16 while loading.
pretrained = "pretrained/dinov2_vitb14_pretrain.pth"
model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTAdapter",
        pretrain_size=592,
        img_size=592,
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4,
        drop_path_rate=0.2,
        conv_inplane=64,
        n_points=4,
        deform_num_heads=12,
        cffn_ratio=0.25,
        deform_ratio=0.5,
        interaction_indexes=[[0, 2], [3, 5], [6, 8], [9, 11]],
        window_attn=False,
        # Each level gets the ViT's map of its own stage, as the original's segmentation code does.
        vit_features="stages",
        pretrained=pretrained,
    ),
    decode_head=dict(in_channels=[768, 768, 768, 768]),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(341, 341)),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="ViTAdapterLayerDecay",
    paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.95),
    optimizer=dict(type="AdamW", lr=3e-5, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]
