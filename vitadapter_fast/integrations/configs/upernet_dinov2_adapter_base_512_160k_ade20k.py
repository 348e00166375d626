# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""UPerNet on ViT-Adapter-B with DINOv2-B weights, ADE20K at 512, 160k steps, for mmseg 1.

Source: ViT-Adapter's configs for base models, https://github.com/czczup/ViT-Adapter, with DINOv2's
weights and normalization, in the terms of mmseg 1.
"""

_base_ = [
    "mmseg::_base_/models/upernet_r50.py",
    "mmseg::_base_/datasets/ade20k.py",
    "mmseg::_base_/default_runtime.py",
    "mmseg::_base_/schedules/schedule_160k.py",
]
custom_imports = dict(imports=["vitadapter_fast.integrations.mmdet"], allow_failed_imports=False)

crop_size = (512, 512)
# As downloaded from https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth,
# or converted: the patch kernel is resized to 16 while loading.
model = dict(
    data_preprocessor=dict(size=crop_size),
    pretrained="pretrained/dinov2_vitb14_pretrain.pth",
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
        drop_path_rate=0.3,
        conv_inplane=64,
        n_points=4,
        deform_num_heads=12,
        cffn_ratio=0.25,
        deform_ratio=0.5,
        interaction_indexes=[[0, 2], [3, 5], [6, 8], [9, 11]],
        window_attn=False,
        # Each level gets the ViT's map of its own stage, as the original's segmentation code does.
        vit_features="stages",
    ),
    decode_head=dict(in_channels=[768, 768, 768, 768], num_classes=150),
    auxiliary_head=dict(in_channels=768, num_classes=150),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(341, 341)),
)
# 2 images for each of 8 GPUs.
train_dataloader = dict(batch_size=2)

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="ViTAdapterLayerDecay",
    paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.95),
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=16000, save_best="mIoU"))
