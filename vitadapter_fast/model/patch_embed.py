# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Image in, ViT tokens with positions out."""

from torch import Tensor, nn

from .. import fused, ops
from ..fused.maps import map_to_tokens
from ..ops.patch_embed.reference import resize_positions
from .grid import PATCH_SIZE


@fused.readable(proj=nn.Conv2d)
class PatchEmbed(nn.Module):
    """Project 16 x 16 patches to tokens and add the position table, resized to the token grid.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; resizing: Chen et al. 2022, arXiv:2205.08534.
    """

    def __init__(
        self, in_chans: int, embed_dim: int, pos_hw: tuple[int, int], resize: str = "bicubic"
    ) -> None:
        """Create the projection.

        Args:
            in_chans: Channels of the image.
            embed_dim: Channels of a token.
            pos_hw: (h, w) of the position table that ``forward`` is given.
            resize: How the table is resized, a mode of ``ops.patch_embed``.
        """
        super().__init__()
        self.pos_hw = pos_hw
        self.resize = resize
        self.proj = nn.Conv2d(in_chans, embed_dim, PATCH_SIZE, PATCH_SIZE)

    def forward(self, image: Tensor, pos_embed: Tensor | None) -> Tensor:
        """Return tokens [B, (H / 16) * (W / 16), C].

        Args:
            image: [B, I, H, W].
            pos_embed: [1, 1 + pos_h * pos_w, C]; row 0 is the cls token's and is not used. None
                adds no positions.
        """
        if pos_embed is None:
            return map_to_tokens(self.proj(image))
        if fused.touched_reason(self) is not None:
            tokens = self.proj(image)
            hw = (tokens.shape[2], tokens.shape[3])
            positions = resize_positions(pos_embed[0, 1:], self.pos_hw, hw, self.resize)
            return map_to_tokens(tokens) + positions
        return ops.patch_embed(
            image,
            self.proj.weight,
            self.proj.bias,
            pos_embed[0, 1:],
            self.pos_hw,
            mode=self.resize,
        )
