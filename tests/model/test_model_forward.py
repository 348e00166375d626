# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Image sizes, variants, precisions and compilation of the forward pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch._dynamo.utils import counters
from torch.nn.utils import prune

from vitadapter_fast import ViTAdapter
from vitadapter_fast.model.grid import pad_image
from vitadapter_fast.model.norm import make_norm
from vitadapter_fast.ops.window_attention.reference import merge_windows, partition_windows

Build = Callable[..., ViTAdapter]
STRIDES = (4, 8, 16, 32)


@pytest.mark.parametrize("hw", [(333, 517), (32, 33), (95, 64)], ids=str)
@torch.no_grad()
def test_map_sizes_are_rounded_up(hw: tuple[int, int], tiny: Build) -> None:
    maps = tiny().eval()(torch.randn(1, 3, *hw))
    ceilings = [((hw[0] + s - 1) // s, (hw[1] + s - 1) // s) for s in STRIDES]
    assert [tuple(m.shape[2:]) for m in maps] == ceilings


@torch.no_grad()
def test_odd_image_is_one_padded_with_zeros_by_hand(tiny: Build) -> None:
    model = tiny().eval()
    image = torch.randn(1, 3, 70, 93)
    by_hand = model(F.pad(image, (0, 3, 0, 26)))
    for actual, padded in zip(model(image), by_hand, strict=True):
        torch.testing.assert_close(actual, padded[:, :, : actual.shape[2], : actual.shape[3]])


def test_image_of_multiples_of_32_is_not_copied(image: Tensor) -> None:
    assert pad_image(image) is image


@pytest.mark.parametrize("hw", [(64, 96), (70, 93)], ids=str)
@torch.no_grad()
def test_maps_are_contiguous(hw: tuple[int, int], tiny: Build) -> None:
    maps = tiny().eval()(torch.randn(2, 3, *hw))
    assert all(m.is_contiguous() for m in maps)


@torch.no_grad()
def test_empty_batch_gives_empty_maps(tiny: Build) -> None:
    maps = tiny().eval()(torch.zeros(0, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(0, 32, 64 // s, 96 // s) for s in STRIDES]


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(tiny: Build, image: Tensor) -> None:
    model = tiny().eval()
    for both, second in zip(model(image), model(image[1:]), strict=True):
        torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_gradient_reaches_every_channel(channels: int, tiny: Build) -> None:
    image = torch.randn(1, channels, 64, 64, requires_grad=True)
    sum(m.square().sum() for m in tiny(in_chans=channels).eval()(image)).backward()
    assert (image.grad.abs().amax(dim=(0, 2, 3)) > 0).all()


@torch.no_grad()
def test_variants_differ_in_all_maps_but_the_last(tiny: Build, image: Tensor) -> None:
    detection = tiny(vit_features="last").eval()(image)
    segmentation = tiny(vit_features="stages").eval()(image)
    equal = [torch.equal(a, b) for a, b in zip(detection, segmentation, strict=True)]
    assert equal == [False, False, False, True]


@torch.no_grad()
def test_add_vit_feature_adds_the_last_vit_map(tiny: Build, image: Tensor) -> None:
    tokens: list[Tensor] = []
    model = tiny().eval()
    model.blocks[-1].register_forward_hook(lambda *call: tokens.append(call[-1]))
    added = model(image)[2] - tiny(add_vit_feature=False).eval()(image)[2]
    vit_map = tokens[0].transpose(1, 2).reshape(2, 32, 4, 6)
    # A fresh batch norm in eval mode only divides by sqrt(1 + eps).
    torch.testing.assert_close(added, vit_map / (1 + 1e-5) ** 0.5, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("option", ["use_extra_extractor", "with_cffn", "layer_scale", "qkv_bias"])
def test_option_off_removes_its_parameters(option: str, tiny: Build) -> None:
    part = {
        "use_extra_extractor": "extra_extractors",
        "with_cffn": "ffn",
        "layer_scale": "gamma1",
        "qkv_bias": "qkv.bias",
    }[option]
    on, off = tiny().state_dict(), tiny(**{option: False}).state_dict()
    assert any(part in k for k in on) and not any(part in k for k in off)


@pytest.mark.parametrize("hw", [(6, 8), (7, 5), (2, 3)], ids=str)
def test_windows_merge_to_the_grid_they_were_cut_from(hw: tuple[int, int]) -> None:
    tokens = torch.randn(2, hw[0] * hw[1], 3)
    torch.testing.assert_close(merge_windows(partition_windows(tokens, hw, 4), hw, 4), tokens)


def test_second_window_holds_the_tokens_right_of_the_first() -> None:
    tokens = torch.arange(24.0).view(1, 24, 1)  # 4 x 6
    second = partition_windows(tokens, (4, 6), 2)[1]
    assert second.flatten().tolist() == [2, 3, 8, 9]


def test_auto_norm_is_batch_norm_without_a_process_group() -> None:
    assert type(make_norm("auto", 8)) is nn.BatchNorm2d


def test_auto_norm_is_batch_norm_in_a_cpu_process_group() -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        assert type(make_norm("auto", 8)) is nn.BatchNorm2d
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("backend", ["cuda:nccl", "cpu:gloo,cuda:nccl"])
def test_auto_norm_is_synchronized_in_a_cuda_process_group(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_backend_config", lambda: backend)
    assert type(make_norm("auto", 8)) is nn.SyncBatchNorm


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 24), (37, 1)])
def test_group_norm_has_the_most_groups_that_divide(channels: int, groups: int) -> None:
    assert make_norm("GN", channels).num_groups == groups


def test_norms_share_their_parameter_names(tiny: Build) -> None:
    names = [{n for n, _ in tiny(norm=kind).named_parameters()} for kind in ("BN", "SyncBN", "GN")]
    assert names[0] == names[1] == names[2]


@torch.no_grad()
def test_group_norm_model_is_the_same_in_training_and_eval(tiny: Build, image: Tensor) -> None:
    model = tiny(norm="GN")
    training = model(image)
    for a, b in zip(training, model.eval()(image), strict=True):
        torch.testing.assert_close(a, b)


# As many bits of mantissa as there are, through about 40 layers, adding up like a random walk.
@pytest.mark.parametrize(("low", "share"), [(torch.bfloat16, 0.025), (torch.float16, 0.004)])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_autocast_stays_near_float32(
    low: torch.dtype, share: float, training: bool, tiny: Build, image: Tensor
) -> None:
    model = tiny().train(training)
    truth = model(image)
    with torch.autocast("cpu", low):
        maps = model(image)
    # The batch norm of the coarsest map divides by the deviation of 12 pixels.
    share *= 3 if training else 1
    for actual, expected in zip(maps, truth, strict=True):
        assert (actual - expected).abs().max() <= share * expected.abs().max()


@torch.no_grad()
def test_bfloat16_model_stays_near_float32(tiny: Build, image: Tensor) -> None:
    truth = tiny().eval()(image)
    maps = tiny().bfloat16().eval()(image.bfloat16())
    for actual, expected in zip(maps, truth, strict=True):
        assert (actual.float() - expected).abs().max() <= 0.05 * expected.abs().max()


TWO_STAGES: dict[str, Any] = {
    "depth": 2,
    "interaction_indexes": [[0, 0], [1, 1]],
    "window_attn": [True, False],
    "window_size": 3,
}
COMPILED: dict[str, dict[str, Any]] = {
    "detection": TWO_STAGES,
    "segmentation_swiglu": {"vit_features": "stages", "ffn": "swiglu"},
    "checkpointed": {**TWO_STAGES, "with_cp": True},
    "frozen": {**TWO_STAGES, "frozen_vit": True},
}


def outputs_and_gradients(model: nn.Module, image: Tensor) -> list[Tensor]:
    maps = model(image)
    generator = torch.Generator().manual_seed(4)
    # Random, because a batch norm passes no gradient of the sum of its squares.
    cotangents = [torch.randn(m.shape, generator=generator, dtype=m.dtype) for m in maps]
    torch.autograd.backward(maps, cotangents)
    return [*maps, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.thorough
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_whole_equals_eager(case: str, tiny: Build) -> None:
    image = torch.randn(1, 3, 64, 93, dtype=torch.float64)
    eager = outputs_and_gradients(tiny(**COMPILED[case]).double(), image)
    torch.compiler.reset()
    compiled = torch.compile(tiny(**COMPILED[case]).double(), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(outputs_and_gradients(compiled, image), eager, strict=True):
        # Absolute too: a bias before a batch norm has a gradient of rounding errors around 0.
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.thorough
@torch.no_grad()
def test_compiled_for_any_size_after_two_compilations(tiny: Build) -> None:
    # Above 20480 numbers in every map, where torch's CPU convolutions change their library; and
    # multiples of 32, because maps that have to be cropped are compiled once more.
    model = tiny(**TWO_STAGES, conv_inplane=64).eval()
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for hw in ((320, 320), (352, 448), (480, 320), (320, 352)):
        image = torch.randn(1, 3, *hw)
        for actual, expected in zip(compiled(image), model(image), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 2


@torch.no_grad()
def test_constant_norms_are_folded_without_changing_the_maps(tiny: Build, image: Tensor) -> None:
    model = tiny()
    for _ in range(3):
        model(image)  # moves the running statistics away from 0 and 1
    model.eval()
    folded = model(image)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: None)  # makes the model call it
    for actual, expected in zip(folded, model(image), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_maps_are_channels_last_on_request(tiny: Build, image: Tensor) -> None:
    maps = tiny(channels_last=True).eval()(image)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    for actual, expected in zip(maps, tiny().eval()(image), strict=True):
        torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_pruned_convolutions_are_called(tiny: Build, image: Tensor) -> None:
    model = tiny().eval()
    before = model(image)
    for layer in (model.spm.stem[0], model.spm.fc2):
        prune.random_unstructured(layer, "weight", amount=0.5)
        layer.weight_orig.mul_(2)  # pruning makes the weight of it before every call
    pruned = model(image)
    for layer in (model.spm.stem[0], model.spm.fc2):
        prune.remove(layer, "weight")
    for actual, expected, old in zip(pruned, model(image), before, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(actual, old)
