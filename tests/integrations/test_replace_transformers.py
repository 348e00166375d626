# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Real transformers models compute the same on our kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from counting import Calls, outputs_and_gradients, perturb_deformable_attention
from torch import Tensor

pytest.importorskip("transformers")
kernels = pytest.importorskip("kernels")

from transformers import (  # noqa: E402
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    ResNetConfig,
)

from vitadapter_fast.integrations.deformable_detr import MSDeformAttn, replace_mmcv_op  # noqa: E402
from vitadapter_fast.integrations.kernels import (  # noqa: E402
    KERNEL_MAPPING,
    MultiScaleDeformableAttention,
)

# Names of the models, and of what each calls.
FAMILIES = {
    "deformable_detr": "MultiScaleDeformableAttention",
    "grounding_dino": "MultiScaleDeformableAttention",
    "mm_grounding_dino": "MultiScaleDeformableAttention",
    "omdet_turbo": "MultiScaleDeformableAttention",
    "rt_detr": "MultiScaleDeformableAttention",
    "mask2former": "multi_scale_deformable_attention",
    "oneformer": "multi_scale_deformable_attention",
    "rt_detr_v2": "multi_scale_deformable_attention_v2",
    "d_fine": "multi_scale_deformable_attention_v2",
}
HW = [(5, 7), (3, 4), (2, 2)]
S = sum(h * w for h, w in HW)


def modeling(family: str) -> Any:
    return import_module(f"transformers.models.{family}.modeling_{family}")


def sample(family: str, points: list[int], method: str = "default") -> list[Tensor]:
    """Call the model's own function; return its result and gradients."""
    random = torch.Generator().manual_seed(0)
    value = torch.randn(2, S, 4, 6, generator=random).double().requires_grad_()
    locations = torch.rand(2, 9, 4, sum(points), 2, generator=random) * 1.4 - 0.2
    locations = locations.double().requires_grad_()
    weights = torch.rand(2, 9, 4, sum(points), generator=random).double().requires_grad_()
    name = FAMILIES[family]
    function = getattr(modeling(family), name)
    if name.endswith("v2"):
        out = function(value, HW, locations, weights, points, method)
    else:
        shape = (2, 9, 4, 3, points[0])
        grid, shares = locations.view(*shape, 2), weights.view(shape)
        if isinstance(function, type):
            out = function()(value, torch.tensor(HW), HW, None, grid, shares, 64)
        else:
            out = function(value, HW, grid, shares)
    leaves = [value, weights] if method == "discrete" else [value, locations, weights]
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


@pytest.fixture
def detector(request: pytest.FixtureRequest) -> DeformableDetrForObjectDetection:
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = DeformableDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=20,
        num_feature_levels=4,
        num_labels=3,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        **request.param,
    )
    model = DeformableDetrForObjectDetection(config).double().train()
    perturb_deformable_attention(model)
    return model


@pytest.mark.parametrize(
    "detector",
    [{}, {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 20}],
    ids=["one_stage", "two_stage"],
    indirect=True,
)
@pytest.mark.usefixtures("marked_layers")
@pytest.mark.parametrize("way", ["replaced", "kernelized"])
def test_deformable_detr_computes_the_same(
    detector: DeformableDetrForObjectDetection, way: str
) -> None:
    image = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    # The second photo is smaller: padding is masked.
    mask = torch.ones(2, 96, 128, dtype=torch.long)
    mask[1, 64:], mask[1, :, 96:] = 0, 0

    def run() -> list[Tensor]:
        out = detector(image, pixel_mask=mask)
        return [out.logits, out.pred_boxes]

    before, gradients_before, none = outputs_and_gradients(detector, run)
    with replace_mmcv_op() if way == "replaced" else kernelized(detector):
        after, gradients_after, calls = outputs_and_gradients(detector, run)
    *_, none_again = outputs_and_gradients(detector, run)

    # Two layers of the encoder and two of the decoder.
    assert calls == {"ms_deform_attn": 4, "ms_deform_attn_backward": 4}
    assert not none and not none_again
    torch.testing.assert_close(after, before)
    assert any("sampling_offsets" in name for name in gradients_before)
    torch.testing.assert_close(gradients_after, gradients_before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_samples_the_same(family: str) -> None:
    wanted = sample(family, [4, 4, 4])
    with replace_mmcv_op(), Calls() as calls:
        got = sample(family, [4, 4, 4])
    assert calls.counts["ms_deform_attn"] == 1
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("family", ["rt_detr_v2", "d_fine"])
def test_levels_may_differ_in_their_number_of_points(family: str) -> None:
    wanted = sample(family, [3, 6, 2])
    with replace_mmcv_op(), Calls() as calls:
        got = sample(family, [3, 6, 2])
    assert calls.counts["ms_deform_attn"] == 3
    torch.testing.assert_close(got, wanted)


def test_discrete_sampling_stays_the_original() -> None:
    wanted = sample("rt_detr_v2", [4, 4, 4], "discrete")
    with replace_mmcv_op(), Calls() as calls:
        got = sample("rt_detr_v2", [4, 4, 4], "discrete")
    assert not calls.counts
    torch.testing.assert_close(got, wanted)


def test_every_source_that_samples_is_replaced() -> None:
    with replace_mmcv_op() as replacement:
        replaced = {str(target).split(".")[2] for target in replacement.targets}
    assert set(FAMILIES) <= replaced


def test_replacing_twice_is_replacing_once() -> None:
    module = modeling("mask2former")
    original = module.multi_scale_deformable_attention
    first = replace_mmcv_op()
    ours = module.multi_scale_deformable_attention
    second = replace_mmcv_op()
    assert module.multi_scale_deformable_attention is ours is not original
    first.undo()
    assert module.multi_scale_deformable_attention is ours
    second.undo()
    assert module.multi_scale_deformable_attention is original


@pytest.mark.parametrize("coordinates", [2, 4])
def test_our_module_takes_the_weights_of_theirs(coordinates: int) -> None:
    config = DeformableDetrConfig(d_model=32, num_feature_levels=3)
    torch.manual_seed(0)
    theirs = modeling("deformable_detr").DeformableDetrMultiscaleDeformableAttention(config, 4, 2)
    perturb_deformable_attention(theirs)
    ours = MSDeformAttn(32, 3, 4, 2)
    ours.load_state_dict(theirs.state_dict())
    query, features = torch.randn(2, 9, 32), torch.randn(2, S, 32)
    points, valid = torch.rand(2, 9, 3, coordinates), torch.rand(2, S) > 0.3
    wanted, _ = theirs(
        query,
        valid,
        features,
        reference_points=points,
        spatial_shapes=torch.tensor(HW),
        spatial_shapes_list=HW,
    )
    got = ours(query, points, features, torch.tensor(HW), None, ~valid)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("detector", [{}], ids=[""], indirect=True)
def test_our_module_starts_as_theirs(detector: DeformableDetrForObjectDetection) -> None:
    theirs = detector.model.encoder.layers[0].self_attn
    ours = MSDeformAttn(32, 4, 4, 4).double()
    # Their angles are float32.
    torch.testing.assert_close(
        ours.sampling_offsets.bias, theirs.sampling_offsets.bias, rtol=0, atol=1e-6
    )


KERNELIZED = [family for family, called in FAMILIES.items() if called[0].isupper()]


@pytest.fixture
def marked_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers marks its layers by itself where it accepts the version of kernels.

    That of 5.24 is 0.18.2 and newer, of which PyPI had none when this was written.
    """
    for family in KERNELIZED:
        layer = getattr(modeling(family), FAMILIES[family])
        monkeypatch.setattr(layer, "kernel_layer_name", FAMILIES[family], raising=False)


@contextmanager
def kernelized(model: torch.nn.Module) -> Iterator[None]:
    """Transformers' own way to run a layer on other kernels, for the time of a block."""
    mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
    with kernels.use_kernel_mapping(KERNEL_MAPPING, inherit_mapping=False):
        kernels.kernelize(model, mode=mode, device="cpu")
    yield
    for module in model.modules():
        vars(module).pop("forward", None)


@pytest.mark.usefixtures("marked_layers")
@pytest.mark.parametrize("family", KERNELIZED)
def test_every_layer_of_the_mapping_takes_it(family: str) -> None:
    layer = getattr(modeling(family), FAMILIES[family])()
    with kernelized(layer):
        assert layer.forward.__func__ is MultiScaleDeformableAttention.forward
        assert "forward" not in vars(type(layer)()), "only one model's modules are changed"
