# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Models whose linear layers have weights of 8 bits: near the model, alike in all forms."""

import copy
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitadapter_fast as vf
from vitadapter_fast import CheckpointError, ViTAdapter
from vitadapter_fast.costs import cost
from vitadapter_fast.export import export_onnx, export_program, export_pt2
from vitadapter_fast.fused import Int8Linear
from vitadapter_fast.model.vit import Attention
from vitadapter_fast.ops.int8_linear import cpu
from vitadapter_fast.weights import load_checkpoint

Tiny = Callable[..., ViTAdapter]
ROUNDED = {"qkv", "proj", "fc1", "fc2", "w12", "w3", "value_proj", "output_proj"}
KINDS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "swiglu": {"ffn": "swiglu"},
    "no_cffn": {"with_cffn": False},
    "no_layer_scale": {"layer_scale": False},
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Processors without the kernel say so; that is told by one test."""
    caplog.set_level(logging.ERROR, "vitadapter_fast")


def run(model: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(model(image))


def distance(got: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True))


def image(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def names(model: nn.Module) -> set[str]:
    found = (name for name, each in model.named_modules() if type(each) is Int8Linear)
    return {name.rpartition(".")[2] for name in found}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["fused", "plain", "autocast", "bfloat16", "batch_of_one"])
def test_maps_are_near_those_of_the_model(kind: str, form: str, tiny: Tiny) -> None:
    model = tiny(**KINDS[kind]).eval()
    wanted = run(model, image())
    quantized = vf.quantize(model)
    if form == "plain":
        with vf.backend("reference"):
            got = run(quantized, image())
    elif form == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            got = run(quantized, image())
    elif form == "bfloat16":
        got = run(quantized.bfloat16(), image().bfloat16())
    else:
        got = run(quantized, image())
    limit = 0.03 if form in ("autocast", "bfloat16") else 0.02
    assert distance([each.float() for each in got], wanted) < limit
    assert distance(run(model, image()), wanted) == 0  # it stays as it was


def test_all_large_layers_are_rounded_and_nothing_else(tiny: Tiny) -> None:
    model = tiny()
    quantized = vf.quantize(model)
    assert names(quantized) == ROUNDED - {"w12", "w3"}
    linear = (name for name, each in quantized.named_modules() if type(each) is nn.Linear)
    left = {name.rpartition(".")[2] for name in linear}
    assert left == {"sampling_offsets", "attention_weights"}
    assert not names(model)
    shared = {each.data_ptr() for each in model.parameters()}
    assert shared.isdisjoint(each.data_ptr() for each in quantized.parameters())
    assert type(quantized) is ViTAdapter and quantized.training == model.training


def test_boxes_run_fused_with_rounded_layers(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    model = vf.quantize(tiny().eval())
    caplog.set_level(logging.DEBUG, "vitadapter_fast")
    run(model, image())
    told = [each.getMessage() for each in caplog.records if "runs plain" in each.getMessage()]
    assert told == []


def test_in_place_it_is_the_same_model(tiny: Tiny) -> None:
    model = tiny().eval()
    wanted = run(vf.quantize(model), image())
    assert vf.quantize(model, inplace=True) is model
    assert distance(run(model, image()), wanted) == 0


def test_state_dict_goes_into_another_quantized_model(tiny: Tiny) -> None:
    model = vf.quantize(tiny().eval())
    memory = io.BytesIO()
    torch.save(model.state_dict(), memory)
    memory.seek(0)
    other = vf.quantize(tiny(), inplace=True).eval()
    for each in other.state_dict().values():
        each.zero_()
    other.load_state_dict(torch.load(memory, weights_only=True), strict=True)
    assert distance(run(other, image()), run(model, image())) == 0
    with pytest.raises(RuntimeError, match=r"weight|scales"):
        other.load_state_dict(tiny().state_dict())


def test_copies_and_pickles_compute_the_same(tiny: Tiny) -> None:
    model = vf.quantize(tiny().eval())
    memory = io.BytesIO()
    torch.save(model, memory)
    memory.seek(0)
    for other in (copy.deepcopy(model), torch.load(memory, weights_only=False)):
        assert distance(run(other, image()), run(model, image())) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_scales_stay_as_they_are_in_any_dtype(dtype: torch.dtype, tiny: Tiny) -> None:
    model = vf.quantize(tiny().eval())
    wanted = {name: each.clone() for name, each in model.named_buffers() if "scales" in name}
    model = model.to(dtype).float()
    found = {name: each for name, each in model.named_buffers() if "scales" in name}
    assert wanted and all(torch.equal(found[name], each) for name, each in wanted.items())


def test_moving_to_another_device_moves_all(tiny: Tiny) -> None:
    model = vf.quantize(tiny()).to("meta")
    assert all(each.is_meta for each in model.state_dict().values())


def test_a_touched_layer_stays_and_is_told(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "vitadapter_fast")
    model = tiny().eval()
    calls = []
    model.blocks[1].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    quantized = vf.quantize(model)
    assert type(quantized.blocks[1].mlp.fc1) is nn.Linear
    assert type(quantized.blocks[1].mlp.fc2) is Int8Linear
    assert "blocks.1.mlp.fc1 stays as it is: a Linear in it has hooks" in caplog.text
    run(quantized, image())
    assert calls == [1]


def test_a_touched_rounded_layer_is_called(tiny: Tiny) -> None:
    model = vf.quantize(tiny().eval())
    calls = []
    model.blocks[0].attn.qkv.register_forward_hook(lambda *_: calls.append(1))
    run(model, image())
    assert calls == [1]


def test_gradients_reach_what_can_be_trained(tiny: Tiny) -> None:
    model = vf.quantize(tiny(drop_path_rate=0.0)).train()
    sum(each.square().sum() for each in model(image())).backward()
    missing = [name for name, each in model.named_parameters() if each.grad is None]
    assert missing == [] and all(each.grad.isfinite().all() for each in model.parameters())
    float_model = tiny(drop_path_rate=0.0).train()
    sum(each.square().sum() for each in float_model(image())).backward()
    wanted = dict(float_model.named_parameters())
    for name, each in model.named_parameters():
        cosine = torch.cosine_similarity(each.grad.flatten(), wanted[name].grad.flatten(), 0)
        assert cosine > 0.9 or wanted[name].grad.norm() < 1e-3, name


def test_compiled_whole_it_is_the_same(tiny: Tiny) -> None:
    model = vf.quantize(tiny().eval())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert distance(run(compiled, image()), run(model, image())) < 0.02


def test_exported_program_is_the_same(tiny: Tiny) -> None:
    model = vf.quantize(tiny().eval())
    with torch.no_grad():
        program = torch.export.export(model, (image(),)).module()
    assert distance(run(program, image()), run(model, image())) < 0.02


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "decomposed"])
def test_files_for_others_are_refused(suffix: str, tiny: Tiny, tmp_path: Path) -> None:
    model, path = vf.quantize(tiny().eval()), tmp_path / f"model.{suffix}"
    write: dict[str, Callable[[], object]] = {
        "onnx": lambda: export_onnx(model, path, (64, 64)),
        "pt2": lambda: export_pt2(model, path, (64, 64)),
        "decomposed": lambda: export_program(model, (64, 64), decompose=True),
    }
    with pytest.raises(ValueError, match=r"export: .* before vitadapter_fast\.quantize"):
        write[suffix]()
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_other_kind_is_told(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()
    rounded = vf.quantize(model)
    paths = {}
    for name, each in (("floating", model), ("rounded", rounded)):
        paths[name] = tmp_path / f"{name}.pth"
        torch.save(each.state_dict(), paths[name])
    with pytest.raises(CheckpointError, match=r"load it before vitadapter_fast\.quantize"):
        load_checkpoint(rounded, paths["floating"])
    with pytest.raises(CheckpointError, match="call vitadapter_fast.quantize on the model before"):
        load_checkpoint(model, paths["rounded"])
    other = vf.quantize(tiny(), inplace=True)
    load_checkpoint(other, paths["rounded"])
    assert distance(run(other.eval(), image()), run(rounded.eval(), image())) == 0


def test_costs_count_rounded_weights(tiny: Tiny) -> None:
    model = tiny()
    boxes = [
        {box.name: box.parameter_bytes for box in cost(each, 64).boxes}
        for each in (model, vf.quantize(model))
    ]
    for name in ("vit_attention", "vit_ffn"):
        assert 0.25 < boxes[1][name] / boxes[0][name] < 0.4
    assert all(boxes[1][name] <= boxes[0][name] for name in boxes[0])


def test_a_model_on_the_meta_device_takes_a_file(tiny: Tiny) -> None:
    model = vf.quantize(tiny().eval())
    with torch.device("meta"):
        other = vf.quantize(tiny().eval())
    assert all(each.is_meta for each in other.state_dict().values())
    other.load_state_dict(model.state_dict(), assign=True)
    assert distance(run(other, image()), run(model, image())) == 0


def test_type_changes_norms_alone(tiny: Tiny) -> None:
    model = vf.quantize(tiny().eval())
    wanted = run(model, image())
    assert distance(run(model.type(torch.float32), image()), wanted) == 0


def test_a_layer_of_two_names_is_rounded_once(tiny: Tiny) -> None:
    for inplace in (True, False):
        model = tiny(mlp_ratio=1.0).eval()
        model.blocks[0].mlp.fc2 = model.blocks[0].mlp.fc1
        mlp = vf.quantize(model, inplace=inplace).blocks[0].mlp
        assert type(mlp.fc1) is Int8Linear and mlp.fc2 is mlp.fc1


def test_layers_of_a_subclass_are_rounded(tiny: Tiny) -> None:
    class Own(Attention):
        pass

    model = tiny().eval()
    model.blocks[0].attn.__class__ = Own
    assert type(vf.quantize(model).blocks[0].attn.qkv) is Int8Linear


def test_what_is_quantized_in_inference_mode_takes_part_in_training(tiny: Tiny) -> None:
    model = tiny()
    with torch.inference_mode():
        vf.quantize(model, inplace=True)
    sum(each.sum() for each in model.train()(image())).backward()


def test_tokens_of_another_size_are_refused(tiny: Tiny) -> None:
    layer = Int8Linear(nn.Linear(31, 8))
    with pytest.raises(
        ValueError, match=r"Int8Linear: tokens must have 31 channels, got \(2, 30\)"
    ):
        layer(torch.rand(2, 30))


class Detector(nn.Module):
    """A model of somebody else around a backbone."""

    def __init__(self, backbone: ViTAdapter) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(4, 4)


def test_within_a_detector_only_the_backbone_is_rounded(tiny: Tiny) -> None:
    detector = vf.quantize(Detector(tiny()))
    assert names(detector) and type(detector.head) is nn.Linear


def test_what_has_no_layer_or_no_number_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="quantize: Linear has no linear layer of a ViT-Adapter"):
        vf.quantize(nn.Linear(3, 3))
    model = tiny()
    with pytest.raises(ValueError, match="not quantized before"):
        vf.quantize(vf.quantize(model))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="stays as it is: there are hooks for all modules"):
        vf.quantize(model)
    handle.remove()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"quantize: blocks\.0\.mlp\.fc1: .*must be finite"):
        vf.quantize(model, inplace=True)
    assert not names(model)  # nothing was changed


def test_a_processor_without_the_kernel_is_told(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "vitadapter_fast")
    monkeypatch.setattr(cpu, "processor_reason", lambda: "no VNNI")
    model = vf.quantize(tiny().eval())
    assert "slower than float32, since no VNNI" in caplog.text
    assert distance(run(model, image()), run(tiny().eval(), image())) < 0.02
