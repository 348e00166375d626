# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Random settings and images: a model of the promised shapes, or an error that names a setting."""

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY

from vitadapter_fast import ViTAdapter

ODD = [None, -1, 0, 1, 3, 1.5, float("nan"), float("inf"), "x", True, [], [1], (2, 2)]
SENSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "num_heads": st.sampled_from([1, 2, 4]),
    "n_points": st.sampled_from([1, 2, 4]),
    "deform_num_heads": st.sampled_from([1, 2]),
    "deform_ratio": st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    "init_values": st.sampled_from([0.0, 1.0]),
    "with_cffn": st.booleans(),
    "cffn_ratio": st.sampled_from([0.25, 0.3]),
    "add_vit_feature": st.booleans(),
    "use_extra_extractor": st.booleans(),
    "in_chans": st.sampled_from([1, 3, 5]),
    "qkv_bias": st.booleans(),
    "drop_rate": st.sampled_from([0.0, 0.3]),
    "attn_drop_rate": st.sampled_from([0.0, 0.3]),
    "drop_path_rate": st.sampled_from([0.0, 0.3]),
    "layer_scale": st.booleans(),
    "window_attn": st.sampled_from([False, True, [True, False, True, False]]),
    "window_size": st.sampled_from([1, 3, 14, None, [3, None, 2, None]]),
    "with_cp": st.booleans(),
    "ffn": st.sampled_from(["mlp", "swiglu"]),
    "vit_features": st.sampled_from(["last", "stages"]),
    "norm": st.sampled_from(["BN", "GN"]),
    "frozen_vit": st.booleans(),
    "channels_last": st.booleans(),
}
OTHERS = ["patch_size", "img_size", "pretrain_size", "embed_dim", "depth", "mlp_ratio"]
OTHERS += ["interaction_indexes", "conv_inplane"]

sensible = st.fixed_dictionaries({}, optional=SENSIBLE)
odd = st.dictionaries(st.sampled_from(sorted(SENSIBLE) + OTHERS), st.sampled_from(ODD), max_size=2)
sides = st.integers(30, 100)
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def train(options: dict[str, Any], image: torch.Tensor) -> list[torch.Tensor]:
    model = ViTAdapter(**{**TINY, **options}).train()
    maps = model(image)
    torch.stack([level.mean() for level in maps]).sum().backward()
    return maps


@few
@given(options=sensible, batch=st.integers(1, 2), h=sides, w=sides)
def test_sensible_settings_train_on_any_image_of_32_pixels_or_more(
    options: dict[str, Any], batch: int, h: int, w: int
) -> None:
    image = torch.randn(batch, options.get("in_chans", 3), h, w)
    try:
        maps = train(options, image)
    except ValueError as error:
        assert min(h, w) < 32 and "32" in str(error)  # noqa: PT017
        return
    assert min(h, w) >= 32
    for level, stride in zip(maps, (4, 8, 16, 32), strict=True):
        assert level.shape == (batch, 32, math.ceil(h / stride), math.ceil(w / stride))
        assert level.isfinite().all()


@settings(few, max_examples=150)
@given(options=odd)
def test_odd_settings_build_a_model_or_give_an_error_of_ours(options: dict[str, Any]) -> None:
    try:
        # On the meta device, for some are large.
        with torch.device("meta"):
            ViTAdapter(**{**TINY, **options})
    except (ValueError, TypeError) as error:
        who = ("ViTAdapter: ", "Attention: ", "DeformAttn: ")
        assert str(error).startswith(who), repr(error)
