# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""DINOv3's trunk and adapter give the outputs and gradients of independent implementations.

The golden files come from transformers' DINOv3ViTModel and were checked against DINOv3's own code.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from dinov3_cases import DINOV3_TINY, FFNS
from safetensors.torch import load_file
from torch import Tensor

from vitadapter_fast import ViTAdapter, vit_adapter_dinov3
from vitadapter_fast.model.grid import grids_of
from vitadapter_fast.model.pyramid import feature_pyramid
from vitadapter_fast.presets import DINOV3_PRESETS
from vitadapter_fast.weights import load_checkpoint

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "dinov3"
FILES = {"mlp": "dinov3_tiny_mlp_official.pth", "swiglu": "dinov3_tiny_swiglu_official.safetensors"}
PERIODS = {"bf16": "bfloat16", "exact": "exact"}


@cache
def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def tiny(ffn: str = "mlp", periods: str = "exact", **overrides: Any) -> ViTAdapter:
    """Return a model with the golden weights: of the trunk alone, where the adapter has others."""
    keywords = {**DINOV3_TINY, **FFNS[ffn], "norm": "BN", "rope_periods": periods}
    model = ViTAdapter(**{**keywords, **overrides})
    load_checkpoint(model, GOLDEN / FILES[ffn])
    return model.double().eval()


def with_adapter(**overrides: Any) -> ViTAdapter:
    """Return a model with the golden weights of trunk and adapter."""
    model = tiny(**overrides)
    found = model.load_state_dict(golden("dinov3_adapter_tiny_weights"), strict=False)
    assert not found.unexpected_keys
    return model


def worst(actual: Tensor, truth: Tensor) -> float:
    """Largest difference as a share of the largest true value."""
    return float((actual.double() - truth).abs().max() / truth.abs().max())


def prefix_first(x: Tensor) -> Tensor:
    return torch.cat([x[:, -5:], x[:, :-5]], dim=1)


RUNS = sorted({name.rsplit("/", 1)[0] for name in golden("tokens")})


@pytest.mark.parametrize("run", RUNS)
def test_tokens_after_each_block(run: str) -> None:
    kind, _ = run.split("/")
    ffn, periods = kind.split("_")
    model = tiny(ffn, PERIODS[periods])
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(prefix_first(out)))
    image = golden("tokens")[f"{run}/image"]
    taps: list[Tensor] = []
    interact = model._interact

    def watched(x: Tensor, c: Tensor, **others: Any) -> list[Tensor]:
        results = interact(x, c, **others)
        taps.append(results[-1])
        return results

    model._interact = watched  # type: ignore[method-assign]
    with torch.no_grad():
        model(image)
    assert len(seen) == 6
    for index, tokens in enumerate(seen):
        assert worst(tokens, golden("tokens")[f"{run}/block{index}"]) < 1e-10
    assert worst(taps[0], golden("tokens")[f"{run}/norm"][:, 5:]) < 1e-10


def run_adapter(model: ViTAdapter, run: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the maps of a golden image, and the gradients of adapter and image."""
    dtype = model.level_embed.dtype
    image = golden("adapter")[f"{run}/image"].to(dtype, copy=True).requires_grad_()
    maps = model(image)
    cotangents = [golden("adapter")[f"{run}/cotangent{i}"].to(dtype) for i in range(1, 5)]
    torch.autograd.backward(maps, cotangents)
    grads = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    return [each.detach() for each in maps], {**grads, "image": image.grad}


@pytest.mark.parametrize("run", ["eval_64x96", "eval_96x32", "train_64x96"])
def test_adapter_without_injectors(run: str) -> None:
    model = with_adapter(frozen_vit=True).train(run.startswith("train"))
    maps, grads = run_adapter(model, run)
    for index, level in enumerate(maps, 1):
        assert worst(level, golden("adapter")[f"{run}/out{index}"]) < 1e-8
    wanted = {
        name.removeprefix(f"{run}/grad/"): grad
        for name, grad in golden("adapter").items()
        if name.startswith(f"{run}/grad/")
    }
    assert len(wanted) in (0, 157)
    wanted["image"] = golden("adapter")[f"{run}/grad_image"]
    if len(wanted) > 1:
        assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        # A bias before a norm in training has no gradient but rounding errors.
        assert worst(grads[name], grad) < 1e-8 or grad.abs().max() < 1e-8, name
    for name, statistic in golden("adapter").items():
        if name.startswith(f"{run}/stats/"):
            found = model.get_buffer(name.removeprefix(f"{run}/stats/"))
            assert worst(found, statistic) < 1e-10


@pytest.mark.parametrize("run", ["eval_64x96", "train_64x96"])
def test_adapter_in_float32(run: str) -> None:
    model = with_adapter(frozen_vit=True).float().train(run.startswith("train"))
    maps, _ = run_adapter(model, run)
    for index, level in enumerate(maps, 1):
        # In training the batch norm of 12 pixels magnifies what rounding did.
        limit = 3e-4 if model.training else 1e-4
        assert worst(level, golden("adapter")[f"{run}/out{index}"]) < limit


@pytest.mark.parametrize("run", ["raw_64x96", "normed_64x96"])
def test_adapter_with_injectors(run: str) -> None:
    """As an earlier version's plain modules give it on transformers' blocks, prefix in front."""
    model = with_adapter(injectors=True, final_norm=run.startswith("normed"))
    file = golden("injectors")
    injectors = {name: tensor for name, tensor in file.items() if name.startswith("interactions.")}
    assert not model.load_state_dict(injectors, strict=False).unexpected_keys
    seen: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(prefix_first(out)))
    with torch.no_grad():
        maps = model(file["image"])
    # Its tables are float32.
    assert worst(seen[0], file[f"{run}/tokens_last"]) < 5e-6
    for index, level in enumerate(maps, 1):
        assert worst(level, file[f"{run}/out{index}"]) < 5e-6


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_injectors_of_gamma_0_leave_the_tokens_alone(ffn: str) -> None:
    model = tiny(ffn, injectors=True, final_norm=False)
    run = f"{ffn}_exact/64x96"
    seen: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(prefix_first(out)))
    with torch.no_grad():
        model(golden("tokens")[f"{run}/image"])
    assert worst(seen[0], golden("tokens")[f"{run}/block5"]) < 1e-10


@pytest.mark.parametrize("final_norm", [False, True], ids=["raw", "normed"])
def test_prefix_tokens_attend_and_nothing_beside_the_vit_sees_them(final_norm: bool) -> None:
    """Written out with the prefix in front, as others have it."""
    model = with_adapter(injectors=True, final_norm=final_norm)
    with torch.no_grad():
        for index, interaction in enumerate(model.interactions):
            interaction.injector.gamma.copy_(torch.linspace(-1, 1, 48).roll(index))
    image = golden("tokens")["mlp_exact/64x96/image"]
    with torch.no_grad():
        maps = model(image)
        grids = grids_of(image)
        patches = model.patch_embed(image, None)
        prefix = torch.cat([model.cls_token, model.register_tokens], dim=1).expand(2, -1, -1)
        at_4, *levels = model.spm(image)
        c = torch.cat([a + b for a, b in zip(levels, model.level_embed, strict=True)], dim=1)
        rope = model.rope(grids.vit_hw, image)
        taps = []
        for interaction, (first, last) in zip(
            model.interactions, DINOV3_TINY["interaction_indexes"], strict=True
        ):
            patches = interaction.injector(patches, c, grids)
            for index in range(first, last + 1):
                both = torch.cat([patches, prefix], dim=1)
                both = model.blocks[index](both, grids.vit_hw, rope)
                patches, prefix = both[:, :24], both[:, 24:]
            taps.append(model.norm(patches) if final_norm else patches)
            for extractor in (interaction.extractor, *interaction.extra_extractors):
                c = extractor(c, taps[-1], grids)
        wanted = feature_pyramid(model, at_4, c, taps, grids)
    for level, truth in zip(maps, wanted, strict=True):
        assert worst(level, truth) < 1e-10


# As published: of the adapter, and of the ViT with a mask token.
PARAMETERS = {
    "s": (3_698_432, 21_601_152),
    "s+": (3_698_432, 28_697_472),
    "b": (10_193_984, 85_669_632),
    "l": (16_654_272, 303_154_176),
    "h+": (24_818_496, 840_633_600),
    "7b": (227_084_736, 6_716_043_264),
}


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameter_counts(size: str) -> None:
    """But for the mask token, and of 7B a norm of local crops, which have no effect."""
    with torch.device("meta"):
        model = vit_adapter_dinov3(size)
    parts = ("level_embed", "spm.", "interactions.", "up.", "norm1.", "norm2.", "norm3.", "norm4.")
    counts = [0, 0]
    for name, parameter in model.named_parameters():
        counts[name.startswith(parts)] += parameter.numel()
    dim = model.embed_dim
    unused = dim + (2 * dim if size == "7b" else 0)
    assert counts == [PARAMETERS[size][1] - unused, PARAMETERS[size][0]]
    names = [name for name in model.state_dict() if name.startswith(parts)]
    assert len(names) == 187


def test_presets_with_injectors_build() -> None:
    for size in DINOV3_PRESETS:
        with torch.device("meta"):
            model = vit_adapter_dinov3(size, injectors=True)
        assert model.interactions[0].injector is not None and not model.has_frozen_vit
        assert model.norm is None
