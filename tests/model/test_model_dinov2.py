# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Our blocks and patch embedding give DINOv2's tokens."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from vitadapter_fast import ops
from vitadapter_fast.model.vit import Block

STEMS = ("dinov2_tiny_mlp_reg4", "dinov2_tiny_swiglu")
MODES = {0.0: "bicubic_antialias", 0.1: "bicubic_offset"}


@pytest.fixture(scope="module")
def tokens(load_golden: Callable[[str], Any]) -> Callable[[str], list[Tensor]]:
    """Return a function from a golden file to the tokens after embedding and after each block."""

    @cache
    @torch.no_grad()
    def run(stem: str) -> list[Tensor]:
        golden = load_golden(stem)
        config = golden.config
        param = {name: tensor.double() for name, tensor in golden.parameters().items()}
        image = golden.tensors["input"].double()
        side = config["img_size"] // config["patch_size"]
        patches = ops.patch_embed(
            image,
            param["patch_embed.proj.weight"],
            param["patch_embed.proj.bias"],
            param["pos_embed"][0, 1:],
            (side, side),
            mode=MODES[config["interpolate_offset"]],
        )
        cls = (param["cls_token"] + param["pos_embed"][:, :1]).expand(len(image), -1, -1)
        registers = param.get("register_tokens", param["cls_token"][:, :0])
        x = torch.cat((cls, registers.expand(len(image), -1, -1), patches), dim=1)
        tokens = [x]
        for index in range(config["depth"]):
            block = Block(
                config["embed_dim"],
                config["num_heads"],
                mlp_ratio=config["mlp_ratio"],
                ffn="mlp" if config["ffn_layer"] == "mlp" else "swiglu",
            ).double()
            prefix = f"blocks.{index}."
            own = {
                name[len(prefix) :].replace("ls1.gamma", "gamma1").replace("ls2.gamma", "gamma2"): v
                for name, v in param.items()
                if name.startswith(prefix)
            }
            block.load_state_dict(own)
            x = block(x, (0, 0))
            tokens.append(x)
        return tokens

    return run


@pytest.mark.parametrize("index", range(4), ids=["embedding", "block_0", "block_1", "block_2"])
@pytest.mark.parametrize("stem", STEMS)
def test_tokens_are_those_of_dinov2(
    stem: str, index: int, tokens: Any, load_golden: Callable[[str], Any]
) -> None:
    truth = load_golden(stem).tensors[f"tokens.{index}"].double()
    assert (tokens(stem)[index] - truth).abs().max() <= 1e-6 * truth.abs().max()
