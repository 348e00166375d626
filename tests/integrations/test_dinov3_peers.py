# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""DINOv3's trunk gives the tokens of transformers' and timm's, from the files that they write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitadapter_fast import ViTAdapter, vit_adapter_dinov3
from vitadapter_fast.weights import load_checkpoint

SIZES = ["s", "s+"]
HW = (64, 96)
# transformers and timm compute their tables in float32.
LIMIT = 2e-5


def image() -> Tensor:
    return torch.randn(2, 3, *HW, generator=torch.Generator().manual_seed(0))


def tokens_of(model: ViTAdapter) -> Tensor:
    """Return the tokens behind the last norm, the prefix first."""
    seen: list[Tensor] = []
    handle = model.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        model(image())
        handle.remove()
        assert model.norm is not None
        tokens: Tensor = model.norm(seen[0])
    return torch.cat([tokens[:, -5:], tokens[:, :-5]], dim=1)


def check(size: str, path: Path, theirs: Tensor) -> None:
    torch.manual_seed(1)
    model = vit_adapter_dinov3(size, path, rope_periods="exact").eval()
    error = (tokens_of(model) - theirs).abs().max() / theirs.abs().max()
    assert error < LIMIT
    # The rounded periods are others: what this test sees.
    rounded = vit_adapter_dinov3(size).eval()
    load_checkpoint(rounded, path)
    error = (tokens_of(rounded) - theirs).abs().max() / theirs.abs().max()
    assert LIMIT < error < 0.05


def randomized(model: Any) -> Any:
    """Give every parameter an effect, LayerScale too, which starts near zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name or "lambda" in name:
                parameter.uniform_(0.5, 1.0, generator=generator)
            elif parameter.dim() > 1:
                std = 0.5 if "token" in name else parameter[0].numel() ** -0.5
                parameter.normal_(0, std, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
    return model.eval()


def of_transformers(size: str, folder: Path) -> tuple[Path, Tensor]:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    swiglu = {"use_gated_mlp": True, "hidden_act": "silu"} if size == "s+" else {}
    config = DINOv3ViTConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_register_tokens=4,
        layerscale_value=1.0,
        **swiglu,
    )
    model = randomized(DINOv3ViTModel(config))
    model.save_pretrained(folder)
    with torch.no_grad():
        return folder, model(image()).last_hidden_state


def of_timm(size: str, folder: Path) -> tuple[Path, Tensor]:
    import timm

    name = {"s": "vit_small_patch16_dinov3_qkvb", "s+": "vit_small_plus_patch16_dinov3_qkvb"}[size]
    model = randomized(timm.create_model(name, pretrained=False, num_classes=0))
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    with torch.no_grad():
        return folder / "model.safetensors", model.forward_features(image())


PEERS: dict[str, Callable[[str, Path], tuple[Path, Tensor]]] = {
    "transformers": of_transformers,
    "timm": of_timm,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", PEERS)
def test_tokens_are_theirs(peer: str, size: str, tmp_path: Path) -> None:
    pytest.importorskip(peer)
    check(size, *PEERS[peer](size, tmp_path / "theirs"))


def test_registers_kept_are_transformers_tokens(tmp_path: Path) -> None:
    """DINOv2 with registers: injectors at gamma 0 leave the ViT what it is there."""
    pytest.importorskip("transformers")
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_register_tokens=4,
        patch_size=16,
        image_size=80,
        layerscale_value=1.0,
    )
    theirs = randomized(Dinov2WithRegistersModel(config))
    theirs.save_pretrained(tmp_path)
    model = ViTAdapter(
        pretrain_size=80,
        img_size=80,
        embed_dim=96,
        depth=4,
        num_heads=3,
        deform_num_heads=3,
        interaction_indexes=[[0, 0], [1, 1], [2, 2], [3, 3]],
        num_register_tokens=4,
        final_norm=True,
        pretrained=tmp_path,
    ).eval()
    with torch.no_grad():
        wanted = theirs(image()).last_hidden_state
    error = (tokens_of(model) - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-6
