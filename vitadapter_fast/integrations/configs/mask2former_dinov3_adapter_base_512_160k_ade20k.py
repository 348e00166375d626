# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on DINOv3's adapter, B, with a frozen ViT, ADE20K at 512, 160k steps, for mmseg 1.

mmseg's Mask2Former for ResNet-50, with DINOv3's adapter in its place.
"""

_base_ = ["mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"]
custom_imports = dict(imports=["vitadapter_fast.integrations.mmdet"], allow_failed_imports=False)

# A file of Meta's, Hugging Face's or timm's; or this name, which wants the [hub] extra and access.
pretrained = "dinov3_vitb16"
model = dict(
    backbone=dict(
        _delete_=True,
        type="ViTAdapter",
        trunk="dinov3",
        embed_dim=768,
        depth=12,
        num_heads=12,
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
        interaction_indexes=[[0, 2], [3, 5], [6, 8], [9, 11]],
        pretrained=pretrained,
    ),
    decode_head=dict(in_channels=[768, 768, 768, 768]),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="ViTAdapterLayerDecay",
    paramwise_cfg=dict(num_layers=12, layer_decay_rate=1.0),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
