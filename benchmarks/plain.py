# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The original's composition of ViT-Adapter in plain PyTorch, on the modules of one of ours.

As the public code computes it, layer after layer: windows by unfold and fold, softmax in the open,
deformable attention by grid_sample, maps laid out anew around every convolution. It is the truth of
the backbone's benchmark, and a contender; with torch's fused attention, a stronger one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peers import attention_peers
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter
from vitadapter_fast.ops.window_attention.reference import merge_windows, partition_windows

HW = tuple[int, int]


class Plain(nn.Module):
    """A ``ViTAdapter`` computed in plain PyTorch; the parameters are shared."""

    def __init__(self, adapter: ViTAdapter, *, has_sdpa: bool = False) -> None:
        """Take the modules of ``adapter``, which has the options of a preset.

        Args:
            adapter: Ours.
            has_sdpa: Whether attention is torch's fused operator, global and within windows, and
                windows are cut by views.
        """
        super().__init__()
        self.adapter = adapter
        self.attention = _sdpa if has_sdpa else _attention
        self._constants: dict[tuple[HW, ...], tuple[Tensor, Tensor]] = {}
        self._rotations: dict[HW, tuple[Tensor, Tensor]] = {}
        (grid_sample, *_) = attention_peers("cpu")
        self.sample = grid_sample.run

    def prepare(self, image_hw: HW, device: str) -> None:
        """Make the constants of an image size, which no call should: a copy to a GPU waits for it.

        A compiler that traces the first call would put them into it.
        """
        for grids in _grids(image_hw):
            sizes = torch.tensor([[w, h] for h, w in grids], device=device)[:, None]
            self._constants[grids] = sizes, _centers(grids, device)
        ours: Any = self.adapter
        if ours.rope is not None:
            (vit,), _ = _grids(image_hw)
            self._rotations[vit] = rotation(ours.rope(vit, ours.level_embed.detach()), vit)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the four maps of images [B, 3, H, W] whose sides are multiples of 32."""
        ours: Any = self.adapter
        (vit,), prior = _grids((image.shape[2], image.shape[3]))
        if (vit,) not in self._constants:
            self.prepare((image.shape[2], image.shape[3]), str(image.device))
        x, prefix = _tokens(ours.patch_embed.proj(image)), self._prefix(image.shape[0])
        if ours.pos_embed is not None:
            table = ours.pos_embed[:, 1:].unflatten(1, ours.patch_embed.pos_hw)
            x = x + _tokens(F.interpolate(table.permute(0, 3, 1, 2), vit, mode="bicubic"))
        map_4, c = self._prior(image)
        taps = []
        for interaction, (first, last) in zip(ours.interactions, ours._stage_bounds, strict=True):
            if (injector := interaction.injector) is not None:
                x = x + injector.gamma * self._attend(injector, x, (vit,), c, prior)
            count = 0 if prefix is None else prefix.shape[1]
            x = x if prefix is None else torch.cat([prefix, x], 1)
            for block in ours.blocks[first : last + 1]:
                x = _block(block, x, vit, self.attention, self._rotations.get(vit))
            prefix, x = (None if prefix is None else x[:, :count]), x[:, count:]
            taps.append(x if ours.norm is None else ours.norm(x))
            for extractor in (interaction.extractor, *interaction.extra_extractors):
                c = c + self._attend(extractor, c, prior, taps[-1], (vit,))
                branch = _conv_ffn(extractor.ffn, extractor.ffn_norm(c), prior)
                c = _dropped(extractor.drop_path, c, branch)
        sizes = [h * w for h, w in prior]
        maps = [_map(part, hw) for part, hw in zip(c.split(sizes, dim=1), prior, strict=True)]
        maps = [ours.up(maps[0]) + map_4, *maps]
        if ours.vit_features == "last":
            taps = taps[-1:] * 4
        norms = (ours.norm1, ours.norm2, ours.norm3, ours.norm4)
        outs = []
        for level, factor, norm, tap in zip(maps, (4, 2, 1, 0.5), norms, taps, strict=True):
            vit_map = _map(tap, vit)
            if factor != 1:
                resized = F.interpolate(vit_map, scale_factor=factor, mode="bilinear")
            outs.append(norm(level + (vit_map if factor == 1 else resized)))
        return outs

    def _prefix(self, batch: int) -> Tensor | None:
        """Return cls and register tokens, [B, P, C], in front as others have them."""
        ours: Any = self.adapter
        if ours.cls_token is None:
            return None
        cls = ours.cls_token if ours.pos_embed is None else ours.cls_token + ours.pos_embed[:, :1]
        return torch.cat([cls, ours.register_tokens], 1).expand(batch, -1, -1)

    def _prior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        spm: Any = self.adapter.spm
        at_4 = spm.stem(image)
        at_8 = spm.conv2(at_4)
        at_16 = spm.conv3(at_8)
        at_32 = spm.conv4(at_16)
        projected = (spm.fc2(at_8), spm.fc3(at_16), spm.fc4(at_32))
        levels = zip(projected, self.adapter.level_embed, strict=True)
        return spm.fc1(at_4), torch.cat([_tokens(level) + embed for level, embed in levels], 1)

    def _attend(
        self, owner: Any, query: Tensor, query_hw: Sequence[HW], feature: Tensor, level_hw: Any
    ) -> Tensor:
        attn = owner.attn
        M, L, P = attn.num_heads, attn.num_levels, attn.num_points
        query, feature = owner.query_norm(query), owner.feat_norm(feature)
        value = attn.value_proj(feature).unflatten(2, (M, -1))
        offsets = attn.sampling_offsets(query).unflatten(2, (M, L, P, 2))
        weights = attn.attention_weights(query).unflatten(2, (M, L * P)).softmax(-1)
        sizes, centers = self._constants[tuple(level_hw)][0], self._constants[tuple(query_hw)][1]
        locations = centers[:, None, None, None] + offsets / sizes
        sampled = self.sample(value, tuple(level_hw), locations, weights.unflatten(3, (L, P)))
        out: Tensor = attn.output_proj(sampled)
        return out


def _grids(image_hw: HW) -> tuple[tuple[HW, ...], tuple[HW, ...]]:
    """Return the grid of the ViT, and those of the prior."""
    H, W = image_hw
    vit = (H // 16, W // 16)
    return (vit,), ((H // 8, W // 8), vit, (H // 32, W // 32))


def _tokens(feature_map: Tensor) -> Tensor:
    return feature_map.flatten(2).transpose(1, 2)


def _map(tokens: Tensor, hw: HW) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, hw).contiguous()


def _centers(grids: Sequence[HW], device: str) -> Tensor:
    """Return the positions of the pixels of all grids as (x, y) in [0, 1], [Q, 2]."""
    parts = []
    for h, w in grids:
        y = (torch.arange(h, device=device) + 0.5) / h
        x = (torch.arange(w, device=device) + 0.5) / w
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        parts.append(torch.stack((columns, rows), -1).flatten(0, 1))
    return torch.cat(parts)


def _dropped(drop_path: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
    return x + drop_path(branch)  # type: ignore[no-any-return]


def rotation(tables: Tensor, hw: HW) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of all channels of every token, [h * w, D] each."""
    h, w = hw
    rows = tables[:h, None].expand(h, w, -1, -1)
    columns = tables[None, h:].expand(h, w, -1, -1)
    halves = torch.cat([rows, columns], 3).flatten(0, 1)  # [h * w, 2, D / 2]
    cos, sin = torch.cat([halves, halves], 2).unbind(1)
    return cos, sin


def _rotated(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate [B, M, N, D] but for the prefix in front."""
    cos, sin = (part.to(x.dtype) for part in tables)
    prefix, grid = x.split([x.shape[2] - len(cos), len(cos)], dim=2)
    first, second = grid.chunk(2, dim=3)
    grid = grid * cos + torch.cat([-second, first], 3) * sin
    return torch.cat([prefix, grid], 2)


def _block(block: Any, x: Tensor, hw: HW, attention: Any, tables: Any) -> Tensor:
    gammas = (
        1 if block.gamma1 is None else block.gamma1,
        1 if block.gamma2 is None else block.gamma2,
    )
    x = _dropped(block.drop_path, x, gammas[0] * attention(block.attn, block.norm1(x), hw, tables))
    return _dropped(block.drop_path, x, gammas[1] * _feed_forward(block.mlp, block.norm2(x)))


def _feed_forward(mlp: Any, x: Tensor) -> Tensor:
    if hasattr(mlp, "w12"):
        gate, value = mlp.w12(x).chunk(2, dim=-1)
        return mlp.w3(F.silu(gate) * value)  # type: ignore[no-any-return]
    return mlp.fc2(F.gelu(mlp.fc1(x)))  # type: ignore[no-any-return]


def _attention(attn: Any, x: Tensor, hw: HW, tables: Any) -> Tensor:
    M = attn.num_heads
    if attn.window_size is None:
        query, key, value = attn.qkv(x).unflatten(2, (3, M, -1)).permute(2, 0, 3, 1, 4)
        if tables is not None:
            query, key = _rotated(query, tables), _rotated(key, tables)
        weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)
        return attn.proj((weights @ value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
    (h, w), size = hw, attn.window_size
    B, _, C = x.shape
    maps = attn.qkv(x).transpose(1, 2).unflatten(2, hw)
    maps = F.pad(maps, (0, -w % size, 0, -h % size))
    columns = F.unfold(maps, (size, size), stride=(size, size))
    columns = columns.view(B, 3, M, C // M, size * size, -1).permute(1, 0, 5, 2, 4, 3)
    query, key, value = columns  # [B, windows, M, size * size, D]
    weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)
    columns = (weights @ value).permute(0, 2, 4, 3, 1).reshape(B, C * size * size, -1)
    maps = F.fold(columns, maps.shape[2:], (size, size), stride=(size, size))
    return attn.proj(_tokens(maps[:, :, :h, :w]))  # type: ignore[no-any-return]


def _sdpa(attn: Any, x: Tensor, hw: HW, tables: Any) -> Tensor:
    """Compute the same by torch's fused attention."""
    qkv, size = attn.qkv(x), attn.window_size
    if size is not None:
        qkv = partition_windows(qkv, hw, size)
    parts = torch.unflatten(qkv, 2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if tables is not None:
        query, key, value = parts
        parts = (_rotated(query, tables), _rotated(key, tables), value)  # type: ignore[assignment]
    out = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    return attn.proj(out if size is None else merge_windows(out, hw, size))  # type: ignore[no-any-return]


def _conv_ffn(ffn: Any, c: Tensor, grids: Sequence[HW]) -> Tensor:
    hidden = ffn.fc1(c)
    sizes = [h * w for h, w in grids]
    parts = [
        _tokens(ffn.dwconv.dwconv(_map(part, hw)))
        for part, hw in zip(hidden.split(sizes, dim=1), grids, strict=True)
    ]
    return ffn.fc2(F.gelu(torch.cat(parts, 1)))  # type: ignore[no-any-return]
