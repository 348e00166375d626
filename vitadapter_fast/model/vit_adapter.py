# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Image in, four feature maps out: the backbone."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import fused
from ..native.captured import capture
from ..settings import (
    check_choice,
    check_counts,
    check_flags,
    check_numbers,
    check_ratios,
    stage_bounds,
)
from .grid import STRIDES, Grids, check_image, crop_maps, grids_of, pad_image
from .init import init_adapter
from .interaction import Interaction
from .norm import NORMS, make_norm
from .pyramid import feature_pyramid
from .spatial_prior import SpatialPrior
from .trunk import ViT

if TYPE_CHECKING:
    from ..weights import PatchMethod

VIT_FEATURES = ("last", "stages")


@fused.readable(
    up=nn.ConvTranspose2d,
    spm=SpatialPrior,
    **dict.fromkeys(("norm1", "norm2", "norm3", "norm4"), fused.NORMS),
)
class ViTAdapter(ViT):
    """A plain ViT with a convolutional adapter beside it that makes a feature pyramid of it.

    Parameter names are those of the original, so its trained checkpoints load strictly. As there,
    the cls token and the final norm of the ViT are not used.

    Attributes:
        embed_dim: Channels of every output map.
        strides: Strides of the output maps.

    Source: Chen et al. 2022, arXiv:2205.08534; https://github.com/czczup/ViT-Adapter.
    """

    strides = STRIDES

    def __init__(
        self,
        *,
        interaction_indexes: Sequence[Sequence[int]],
        pretrain_size: int = 224,
        num_heads: int = 12,
        conv_inplane: int = 64,
        n_points: int = 4,
        deform_num_heads: int = 6,
        init_values: float = 0.0,
        with_cffn: bool = True,
        cffn_ratio: float = 0.25,
        deform_ratio: float = 1.0,
        add_vit_feature: bool = True,
        use_extra_extractor: bool = True,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale: bool = True,
        window_attn: bool | Sequence[bool] = False,
        window_size: int | None | Sequence[int | None] = 14,
        with_cp: bool = False,
        pretrained: str | os.PathLike[str] | None = None,
        patch_method: "PatchMethod" = "bilinear",
        ffn: str = "mlp",
        vit_features: str = "last",
        norm: str = "auto",
        frozen_vit: bool = False,
        channels_last: bool = False,
        trunk: str = "dinov2",
        num_register_tokens: int | None = None,
        rope_periods: str = "bfloat16",
        injectors: bool = True,
        final_norm: bool = False,
    ) -> None:
        """Build the model; ``vit_adapter_s`` and its siblings know the published settings.

        Args:
            interaction_indexes: (first, last) block of each stage; together all blocks, in order.
            pretrain_size: Image size in pixels that the position table was trained at.
            num_heads: Heads of the ViT's attention.
            conv_inplane: Channels of the spatial prior's stem.
            n_points: Points of the deformable attention for each head and level.
            deform_num_heads: Heads of the deformable attention.
            init_values: Where the injectors' gamma starts; 0 leaves the pretrained ViT unchanged.
            with_cffn: Whether extractors have a feed-forward.
            cffn_ratio: Its hidden channels, as a share of ``embed_dim``.
            deform_ratio: Value channels of the deformable attention, as a share of ``embed_dim``.
            add_vit_feature: Whether the ViT's maps are added to the pyramid.
            use_extra_extractor: Whether the last stage has two more extractors.
            img_size: As ``pretrain_size``, for upstream configs; forward takes any size >= 32.
            patch_size: 16: the strides depend on it.
            in_chans: Channels of the image.
            embed_dim: Channels of a token and of every output map.
            depth: ViT blocks.
            mlp_ratio: Hidden channels of the ViT's feed-forward, as a multiple of ``embed_dim``.
            qkv_bias: Whether the query, key and value projection has a bias.
            drop_rate: Dropout rate of tokens and branches in the ViT.
            attn_drop_rate: Dropout rate of the ViT's attention weights.
            drop_path_rate: Stochastic depth: constant in extractors, in the ViT linear from 0.
            layer_scale: Whether the ViT's branches are scaled by learned gammas.
            window_attn: Whether attention is windowed, for all blocks or each.
            window_size: Side of a window in tokens, for all blocks or each; unused where global.
            with_cp: Whether training recomputes the activations of the spatial prior, blocks,
                injectors and extractors instead of keeping them: less memory, the same gradients.
            pretrained: What ``load_checkpoint`` takes (file, folder, name or address), or None.
            patch_method: How the patch kernel of a checkpoint of another patch size is resized:
                "bilinear" as the original's converter does, or "pi", FlexiViT's resize, whose
                tokens are closer to those of the checkpoint.
            ffn: Feed-forward of the ViT, "mlp" or "swiglu" (DINOv2-g).
            vit_features: What the pyramid adds: "last", the final ViT map to all levels (upstream's
                detection), or "stages", the map after stage k to level k (its segmentation).
            norm: "BN", "SyncBN", "GN", or "auto": SyncBN if a process group on CUDA is initialized
                by now, else BN; the parameter names agree.
            frozen_vit: Whether the ViT is fixed: its position table, patch embedding and blocks
                take no gradients, save no activations and stay in eval mode under ``train()``. The
                injectors act through the ViT alone, so no gradient can reach them: they still run,
                as trained checkpoints need, but are fixed as well (untrained ones do nothing;
                DINOv3's adapter, arXiv:2508.10104, leaves them out). So the image and the spatial
                prior get no gradient through them, far from the whole: to learn what comes before
                the model, set ``requires_grad`` of the ViT's parameters to False instead. Where
                something inside takes gradients, such as a low-rank adapter, all are recorded.
            channels_last: Whether the output maps lie in memory with their channels last, as
                convolutions on tensor cores want them; shapes and values are the same.
            trunk: The ViT, "dinov2" or "dinov3": rotary positions instead of a table, cls and
                register tokens in all attention, norms with eps 1e-5.
            num_register_tokens: Tokens that attend beside those of the image; None: 4 for DINOv3,
                else 0. With them there is a cls token too, and all attention must be global.
            rope_periods: Of rotary positions, "bfloat16" as DINOv3 rounds them or "exact".
            injectors: Whether the prior flows into the ViT; DINOv3's own adapter has no injectors.
            final_norm: Whether extractors and pyramid see the ViT's tokens behind its last norm.

        Raises:
            TypeError: A setting is of another type.
            ValueError: A setting is out of range or disagrees with another.
            CheckpointError: ``pretrained`` does not fit.
        """
        check_counts(
            conv_inplane=conv_inplane, n_points=n_points, deform_num_heads=deform_num_heads
        )
        check_ratios(cffn_ratio=cffn_ratio, deform_ratio=deform_ratio)
        check_numbers(init_values=init_values)
        check_flags(
            with_cffn=with_cffn,
            add_vit_feature=add_vit_feature,
            use_extra_extractor=use_extra_extractor,
            with_cp=with_cp,
            frozen_vit=frozen_vit,
            channels_last=channels_last,
            injectors=injectors,
        )
        check_choice("norm", norm, NORMS)
        check_choice("vit_features", vit_features, VIT_FEATURES)
        super().__init__(
            pretrain_size=pretrain_size,
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            layer_scale=layer_scale,
            window_attn=window_attn,
            window_size=window_size,
            ffn=ffn,
            trunk=trunk,
            num_register_tokens=num_register_tokens,
            rope_periods=rope_periods,
            final_norm=final_norm,
            is_frozen=frozen_vit,
        )
        bounds = stage_bounds(interaction_indexes, depth)
        if add_vit_feature and vit_features == "stages" and len(bounds) != len(STRIDES):
            raise ValueError(
                'ViTAdapter: vit_features="stages" needs 4 stages, one for each output map, got '
                f'{len(bounds)} in interaction_indexes; use "last" or 4 stages'
            )
        self.add_vit_feature = add_vit_feature
        self.vit_features = vit_features
        self.with_cp = with_cp
        # Not the memory format itself: torch.save of a whole model cannot pickle one.
        self.has_channels_last = channels_last
        self._stage_bounds = bounds

        self.spm = SpatialPrior(in_chans, conv_inplane, embed_dim, norm)
        self.level_embed = nn.Parameter(torch.zeros(3, embed_dim))

        self.interactions = nn.ModuleList(
            Interaction(
                embed_dim,
                num_heads=deform_num_heads,
                num_points=n_points,
                deform_ratio=deform_ratio,
                injector=injectors,
                init_value=init_values,
                with_cffn=with_cffn,
                cffn_ratio=cffn_ratio,
                drop_path=drop_path_rate,
                num_extra=2 if use_extra_extractor and last == depth - 1 else 0,
                has_frozen_vit=frozen_vit,
                with_cp=with_cp,
            )
            for _, last in bounds
        )
        self.up = nn.ConvTranspose2d(embed_dim, embed_dim, 2, 2)
        self.norm1 = make_norm(norm, embed_dim)
        self.norm2 = make_norm(norm, embed_dim)
        self.norm3 = make_norm(norm, embed_dim)
        self.norm4 = make_norm(norm, embed_dim)

        init_adapter(self.level_embed, self.up, self.spm, self.interactions)
        if pretrained is not None:
            from ..weights import load_checkpoint

            load_checkpoint(self, pretrained, patch_method=patch_method)
        if frozen_vit:
            self.freeze_vit()

    def freeze_vit(self) -> None:
        """Let no parameter of the ViT take gradients, nor the injectors, which act through it."""
        for interaction in self.interactions:
            if interaction.injector is not None:
                interaction.injector.requires_grad_(False)
        super().freeze_vit()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return feature maps [B, C, ceil(H / s), ceil(W / s)] for s = 4, 8, 16, 32.

        Args:
            image: [B, I, H, W], floating, normalized as the weights expect; H and W at least 32. It
                is padded inside with zeros on the right and bottom to multiples of 32.

        Returns:
            Four tensors, contiguous NCHW, or channels last if the model was built so.

        Raises:
            ValueError: The image has another shape or type.
        """
        check_image(image, self.in_chans)
        padded = pad_image(image)
        grids = grids_of(padded)

        x = self.embed(padded)
        at_4, *levels = fused.recompute(self.spm, padded) if self.with_cp else self.spm(padded)
        c = fused.joined(levels, self.level_embed)

        rope = None if self.rope is None else self.rope(grids.vit_hw, x)
        stages = partial(self._interact, grids=grids, rope=rope)
        c, *vit_tokens = fused.in_portions(stages, x, c, self)

        maps = feature_pyramid(self, at_4, c, vit_tokens, grids)
        H, W = image.shape[2:]
        layout = torch.channels_last if self.has_channels_last else torch.contiguous_format
        return crop_maps(maps, (H, W), layout)

    def _interact(
        self, x: Tensor, c: Tensor, grids: Grids, rope: Tensor | None = None
    ) -> list[Tensor]:
        """Return the prior tokens after all stages, and the ViT tokens that the pyramid adds."""
        vit_tokens = []
        for interaction, (first, last) in zip(self.interactions, self._stage_bounds, strict=True):
            blocks = [self.blocks[index] for index in range(first, last + 1)]
            x, c, feature = interaction(x, c, blocks, grids, rope, self.norm)
            vit_tokens.append(feature)
        if not self.add_vit_feature:
            vit_tokens = []
        elif self.vit_features == "last":
            vit_tokens = vit_tokens[-1:]
        return [c, *vit_tokens]

    def captured(
        self, image_hw: tuple[int, int], batch: int = 1, dtype: torch.dtype = torch.float32
    ) -> Callable[[Tensor], list[Tensor]]:
        """Return this model, in eval mode, as one CUDA graph for images of one size.

        At small batches it is Python that takes the time; a graph has none between its kernels. It
        runs under the autocast that is on here, and with the weights as they are at each call.

        Args:
            image_hw: (height, width).
            batch: Number of images.
            dtype: Of the images.

        Returns:
            A function of images [B, I, H, W], on any device, to the maps of ``forward``, without
            gradients, in memory that its next call overwrites.

        Raises:
            ValueError: The model is in training mode or not on a CUDA device; the function raises
                it for images of another shape or dtype.
        """
        return capture(self, (batch, self.in_chans, *image_hw), dtype)
