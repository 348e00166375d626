# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The backbone as OpenMMLab's frameworks use it: its keywords, modes, weights and errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from checkpoint_cases import adapted, official, saved
from tiny import TINY, WINDOWED
from torch import Tensor, nn

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")

from mmengine.fileio import LocalBackend, register_backend  # noqa: E402
from mmengine.model import BaseModule  # noqa: E402
from mmengine.optim import LinearLR, OptimWrapper, build_optim_wrapper  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402
from mmengine.runner import load_checkpoint  # noqa: E402

import vitadapter_fast  # noqa: E402
from vitadapter_fast import CheckpointError  # noqa: E402
from vitadapter_fast.integrations.mmdet import (  # noqa: E402
    SegmentationViTAdapter,
    ViTAdapter,
    ViTAdapterLayerDecay,
)

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def build(**overrides: Any) -> ViTAdapter:
    torch.manual_seed(0)
    backbone: ViTAdapter = MODELS.build({"type": "ViTAdapter", **WINDOWED, **overrides})
    return backbone


def image() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(left: nn.Module, right: dict[str, Tensor]) -> bool:
    state = left.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in right.items())


@pytest.mark.parametrize("framework", ["mmdet", "mmseg"])
def test_is_registered_with_framework(framework: str) -> None:
    registry = pytest.importorskip(f"{framework}.registry").MODELS
    wanted = SegmentationViTAdapter if framework == "mmseg" else ViTAdapter
    assert registry.get("ViTAdapter") is registry.get(f"{framework}.ViTAdapter") is wanted


def test_maps_are_those_of_the_plain_model() -> None:
    backbone = build().eval()
    plain = vitadapter_fast.ViTAdapter(**WINDOWED).eval()
    plain.load_state_dict(backbone.state_dict())
    maps = backbone(image())
    assert isinstance(maps, tuple) and isinstance(backbone, BaseModule)
    for ours, theirs in zip(maps, plain(image()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), [1, 3], (2,)])
def test_out_indices_select_maps(indices: Any) -> None:
    every = build().eval()(image())
    some = build(out_indices=indices).eval()(image())
    assert len(some) == len(indices)
    assert all(torch.equal(some[i], every[index]) for i, index in enumerate(indices))


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1, 3), (2,)])
def test_every_trainable_parameter_gets_a_gradient(indices: tuple[int, ...]) -> None:
    backbone = build(out_indices=indices, init_values=1.0)
    sum(out.square().sum() for out in backbone(image())).backward()
    wanted = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert gradients(backbone).keys() == wanted


@pytest.mark.parametrize("stages", [0, 1, 3, 4])
def test_frozen_stages_fix_the_first_blocks_and_the_embedding(stages: int) -> None:
    backbone = build(frozen_stages=stages, init_values=1.0, drop_path_rate=0.5).train()
    sum(out.square().sum() for out in backbone(image())).backward()
    named = gradients(backbone)
    assert "pos_embed" not in named and "patch_embed.proj.weight" not in named
    for index, block in enumerate(backbone.blocks):
        is_fixed = index < stages
        assert (f"blocks.{index}.attn.qkv.weight" in named) is not is_fixed
        assert all(part.training is not is_fixed for part in block.modules())
    assert "interactions.0.injector.gamma" in named
    assert "interactions.0.extractor.attn.value_proj.weight" in named


def test_no_stage_is_frozen_by_default() -> None:
    assert all(p.requires_grad for p in build().parameters())


def test_norm_eval_keeps_running_statistics_in_training() -> None:
    backbone = build(norm_eval=True).train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone(image())
    assert backbone.training and same(backbone, before)
    assert not any(m.training for m in backbone.modules() if isinstance(m, BATCH_NORM))
    trained = build().train()
    trained(image())
    assert not same(trained, before)


@pytest.mark.parametrize(
    ("norm_cfg", "kind"),
    [
        ({"type": "BN", "requires_grad": False, "eps": 1e-3}, nn.BatchNorm2d),
        ({"type": "SyncBN", "requires_grad": True}, nn.SyncBatchNorm),
        ({"type": "GN", "num_groups": 4}, nn.GroupNorm),
    ],
)
def test_norm_cfg_builds_the_adapters_norms(norm_cfg: dict[str, Any], kind: type) -> None:
    backbone = build(norm_cfg=norm_cfg)
    norms = [m for m in backbone.modules() if isinstance(m, kind)]
    assert len(norms) == 4 + 6
    for norm in norms:
        assert norm.weight.requires_grad is norm_cfg.get("requires_grad", True)
        assert norm.eps == norm_cfg.get("eps", 1e-5)
    assert all(isinstance(block.norm1, nn.LayerNorm) for block in backbone.blocks)
    assert len(backbone(image())) == 4


def test_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for with_cp in (False, True):
        backbone = build(with_cp=with_cp, init_values=1.0).train()
        sum(out.square().sum() for out in backbone(image())).backward()
        found.append(gradients(backbone))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def as_pretrained(path: Path) -> dict[str, Any]:
    return {"pretrained": str(path)}


def as_init_cfg(path: Path) -> dict[str, Any]:
    return {"init_cfg": {"type": "Pretrained", "checkpoint": str(path)}}


@pytest.mark.parametrize("given", [as_pretrained, as_init_cfg])
def test_init_weights_loads_a_dinov2_file(given: Any, tmp_path: Path) -> None:
    tensors = official(patch=16)
    path = saved(tensors, tmp_path / "dinov2.pth")
    backbone = build(**given(path))
    drawn = {k: v.clone() for k, v in backbone.state_dict().items() if k.startswith("spm.")}
    assert not same(backbone, adapted(tensors))
    backbone.init_weights()
    assert same(backbone, adapted(tensors)) and same(backbone, drawn)


@pytest.mark.parametrize("prefix", ["teacher.backbone.", "teacher.backbone", "student.backbone"])
def test_prefix_chooses_among_several_vits(prefix: str, tmp_path: Path) -> None:
    held = {}
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        held[name] = vitadapter_fast.ViTAdapter(**WINDOWED).state_dict()
    file = {f"{n}.backbone.{key}": t for n, state in held.items() for key, t in state.items()}
    path = saved(file, tmp_path / "both.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(path), "prefix": prefix}
    backbone = build(init_cfg=init_cfg)
    backbone.init_weights()
    assert same(backbone, held[prefix.partition(".")[0]])


def test_usual_prefix_is_no_choice(tmp_path: Path) -> None:
    """Of a file with an average beside the weights, neither is called so."""
    state = {
        f"backbone.{k}": v for k, v in vitadapter_fast.ViTAdapter(**WINDOWED).state_dict().items()
    }
    path = saved({"state_dict": state, "state_dict_ema": state}, tmp_path / "both.pth")
    backbone = build(
        init_cfg={"type": "Pretrained", "checkpoint": str(path), "prefix": "backbone."}
    )
    backbone.init_weights()
    assert torch.equal(backbone.pos_embed, state["backbone.pos_embed"])


def test_failed_loading_can_be_repeated(tmp_path: Path) -> None:
    tensors = official(patch=16)
    backbone = build(pretrained=str(tmp_path / "late.pth"))
    with pytest.raises(vitadapter_fast.CheckpointError, match="no such file"):
        backbone.init_weights()
    saved(tensors, tmp_path / "late.pth")
    backbone.init_weights()
    assert same(backbone, adapted(tensors))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address under which the files in ``tmp_path`` are."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_pretrained_may_be_a_url(served: str, tmp_path: Path) -> None:
    path = saved(official(patch=16), tmp_path / "dinov2.pth")
    build(pretrained=f"{served}/dinov2.pth").init_weights()
    path.unlink()
    backbone = build(pretrained=f"{served}/dinov2.pth")
    backbone.init_weights()  # once for all processes and runs
    assert same(backbone, adapted(official(patch=16)))


@pytest.mark.parametrize("name", ["cut.pth", "gone.pth"])
def test_url_at_fault_is_named(name: str, served: str, tmp_path: Path) -> None:
    saved({"a": torch.ones(1), "b": 2}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:200])
    with pytest.raises(CheckpointError, match=f"{served}/{name}"):
        build(pretrained=f"{served}/{name}").init_weights()


def test_file_of_another_storage_is_named_as_in_the_config(tmp_path: Path) -> None:
    @register_backend("vault", prefixes="vault", force=True)
    class Vault(LocalBackend):  # type: ignore[misc]
        @contextmanager
        def get_local_path(self, filepath: str) -> Iterator[str]:
            yield str(saved({"a": torch.ones(1)}, tmp_path / "tmp12345"))

    with pytest.raises(CheckpointError, match=r"^vault://dinov2\.pth: not a DINOv2"):
        build(pretrained="vault://dinov2.pth").init_weights()


def test_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tensors = official(patch=16)
    del tensors["blocks.3.norm2.bias"]
    backbone = build(pretrained=str(saved(tensors, tmp_path / "cut.pth")))
    with pytest.raises(vitadapter_fast.CheckpointError, match=r"missing \(1\): blocks.3.norm2.bia"):
        backbone.init_weights()


def test_init_weights_changes_nothing_the_second_time(tmp_path: Path) -> None:
    path = saved(official(patch=16), tmp_path / "dinov2.pth")
    init_cfg = {"type": "Constant", "val": 7.0, "layer": "Conv2d"}
    backbone = build(pretrained=str(path), init_cfg=init_cfg)
    backbone.init_weights()
    assert (backbone.spm.fc1.weight == 7.0).all()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1.0)
    trained = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.init_weights()
    assert same(backbone, trained)


@pytest.mark.parametrize("is_inside_detector", [False, True])
def test_init_weights_leaves_loaded_weights_alone(is_inside_detector: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = vitadapter_fast.ViTAdapter(**WINDOWED).state_dict()
    named = {f"backbone.{name}": tensor for name, tensor in trained.items()}
    path = saved({"meta": {}, "state_dict": named}, tmp_path / "detector.pth")
    model = BaseModule()
    model.backbone = build(
        pretrained=str(saved(official(patch=16), tmp_path / "dinov2.pth")),
        init_cfg={"type": "Normal", "layer": ["Linear", "Conv2d"]},
    )
    load_checkpoint(model, str(path), strict=True, logger="silent")
    (model if is_inside_detector else model.backbone).init_weights()
    assert same(model.backbone, trained)


def test_init_weights_without_a_file_keeps_the_drawn_weights() -> None:
    backbone = build()
    drawn = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.init_weights()
    assert same(backbone, drawn)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"embed_dims": 32}, TypeError, r"ViTAdapter: unknown keyword 'embed_dims' \(did you mean"),
        ({"out_indices": (0, 4)}, ValueError, r"out_indices must be .* 0 to 3.*got \(0, 4\)"),
        ({"out_indices": (3, 0)}, ValueError, "increasing"),
        ({"out_indices": 3}, ValueError, "got 3"),
        ({"out_indices": ()}, ValueError, r"got \(\)"),
        ({"frozen_stages": 5}, ValueError, "frozen_stages must be from -1 .* to 4 .*got 5"),
        ({"norm_cfg": {"type": "Nope"}}, ValueError, "norm_cfg must be .*Nope"),
        ({"norm_cfg": {"type": "GN"}}, ValueError, r"norm_cfg must be .*num_groups=32\), got"),
        ({"norm_cfg": {"type": "BN", "epsilon": 1.0}}, ValueError, "norm_cfg .*epsilon"),
        ({"norm_cfg": {"type": "BN"}, "norm": "GN"}, ValueError, "norm_cfg or norm, got both"),
        (
            {"pretrained": "a.pth", "init_cfg": {"type": "Pretrained", "checkpoint": "b.pth"}},
            ValueError,
            "wanted one checkpoint, got a.pth and b.pth",
        ),
        (
            {"init_cfg": {"type": "Pretrained", "chekpoint": "b.pth"}},
            TypeError,
            "unknown keyword 'chekpoint' .did you mean 'checkpoint'",
        ),
        ({"init_cfg": {"type": "Pretrained"}}, ValueError, "wants checkpoint=FILE"),
    ],
)
def test_wrong_setting_is_answered_with_the_remedy(
    wrong: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ViTAdapter(**{**TINY, **wrong})


def optimizer_config(**paramwise: Any) -> dict[str, Any]:
    return {
        "constructor": "ViTAdapterLayerDecay",
        "paramwise_cfg": paramwise,
        "optimizer": {"type": "AdamW", "lr": 1e-4, "weight_decay": 0.05},
    }


@pytest.mark.parametrize("name", ["ViTAdapterLayerDecay", "LayerDecayOptimizerConstructor"])
def test_optimizer_constructor_decays_rates_by_layer(name: str) -> None:
    model = nn.Module()
    model.backbone, model.head = build(), nn.Linear(32, 2)
    config = {**optimizer_config(num_layers=4, layer_decay_rate=0.5), "constructor": name}
    wrapper = build_optim_wrapper(model, config)
    groups = {group["group_name"]: group for group in wrapper.optimizer.param_groups}
    first = groups["layer_0_no_decay"]
    assert "backbone.pos_embed" in first["parameter_names"]
    assert (first["lr"], first["weight_decay"]) == (1e-4 * 0.5**5, 0.0)
    last = groups["layer_5_decay"]
    assert "head.weight" in last["parameter_names"]
    assert (last["lr"], last["weight_decay"]) == (1e-4, 0.05)


def test_optimizer_wrapper_takes_another_group_a_schedule_and_its_state() -> None:
    def wrapped(model: nn.Module, extra: nn.Module) -> OptimWrapper:
        config = optimizer_config(num_layers=4, layer_decay_rate=0.5)
        wrapper: OptimWrapper = build_optim_wrapper(model, config)
        wrapper.optimizer.add_param_group({"params": extra.parameters(), "lr": 1.0})
        return wrapper

    model, extra = nn.Module(), nn.Linear(2, 2)
    model.backbone = build()
    wrapper = wrapped(model, extra)
    first = wrapper.get_lr()["lr"]
    wrapper.update_params(extra(torch.ones(1, 2)).sum())
    LinearLR(wrapper, start_factor=0.5, by_epoch=False, end=9)
    assert wrapper.get_lr()["lr"] == pytest.approx([0.5 * rate for rate in first])
    other = wrapped(model, extra)
    other.load_state_dict(wrapper.state_dict())
    assert other.get_lr() == wrapper.get_lr()
    saved, loaded = (each.optimizer.state[extra.weight] for each in (wrapper, other))
    assert saved.keys() == loaded.keys() and all(torch.equal(saved[k], loaded[k]) for k in saved)


@pytest.mark.parametrize(
    ("paramwise", "kind", "message"),
    [
        ({}, ValueError, "wanted a number in paramwise_cfg.layer_decay_rate, got none"),
        ({"layer_decay_rates": 0.5}, TypeError, "did you mean 'layer_decay_rate'"),
        ({"layer_decay_rate": 0.5, "num_layers": 12}, ValueError, "depth, 4, got 12"),
    ],
)
def test_wrong_optimizer_setting_is_refused(
    paramwise: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        build_optim_wrapper(build(), optimizer_config(**paramwise))


def test_optimizer_without_weight_decay_is_refused() -> None:
    config = {"optimizer": {"type": "AdamW", "lr": 1.0}}
    with pytest.raises(ValueError, match="wanted a number in optimizer.weight_decay"):
        ViTAdapterLayerDecay(config, {"layer_decay_rate": 0.5})


def test_loading_is_told_to_the_packages_logger(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    backbone = build(pretrained=str(saved(official(patch=14), tmp_path / "dinov2.pth")))
    with caplog.at_level(logging.INFO, logger="vitadapter_fast"):
        backbone.init_weights()
    assert "patch kernel resized 14 -> 16" in caplog.text
