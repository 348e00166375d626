# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Of several sets of weights in a file one is taken, by name if asked; the others are named."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import adapted, assert_same, official, saved, tiny_model
from torch import Tensor

from vitadapter_fast import CheckpointError
from vitadapter_fast.commands.convert import main
from vitadapter_fast.weights import LoadReport, load_checkpoint, read_checkpoint

# Each set of weights is made from a seed of its own.
RAW, AVERAGED, THIRD = (official(patch=16, seed=seed) for seed in (1, 2, 3))
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def loaded_from(content: Any, tmp_path: Path, **options: Any) -> tuple[int, LoadReport]:
    """Seed of the weights that were loaded, and the report."""
    model = tiny_model()
    path = saved(content, tmp_path / "several.pth")
    report = load_checkpoint(model, path, **options)
    state = model.state_dict()
    (seed,) = [
        seed
        for seed, tensors in ((1, RAW), (2, AVERAGED), (3, THIRD))
        if all(torch.equal(state[name], tensor) for name, tensor in adapted(tensors).items())
    ]
    return seed, report


# Who writes it -> (content, seed taken unasked, where it lay, what is left, {prefer: seed}).
FILES: dict[str, tuple[Any, int, str, tuple[str, ...], dict[str, int]]] = {
    "timm": (
        {"epoch": 3, "state_dict": RAW, "optimizer": OPTIMIZER, "state_dict_ema": AVERAGED},
        1,
        "state_dict",
        ("optimizer", "state_dict_ema"),
        {"ema": 2, "state_dict_ema": 2, "state_dict": 1},
    ),
    "deit, convnext": (
        {"model": RAW, "model_ema": AVERAGED, "optimizer": OPTIMIZER},
        1,
        "model",
        ("model_ema", "optimizer"),
        {"ema": 2, "model_ema": 2, "model": 1},
    ),
    "torchvision": (
        {
            "model": RAW,
            "model_ema": {"n_averaged": torch.tensor(3), **under("module.", AVERAGED)},
        },
        1,
        "model",
        ("model_ema",),
        {"ema": 2},
    ),
    # Its EMAHook exchanges the two: what is called EMA was trained, what is not was averaged.
    "mmengine": (
        {
            "meta": {"epoch": 3},
            "state_dict": under("backbone.", AVERAGED),
            "ema_state_dict": {"steps": torch.tensor(3), **under("module.backbone.", RAW)},
            "optimizer": OPTIMIZER,
        },
        2,
        "state_dict",
        ("ema_state_dict", "optimizer"),
        {"ema": 2, "ema_state_dict": 1, "state_dict": 2},
    ),
    "lightning": (
        {
            "state_dict": under("model.", AVERAGED),
            "current_model_state": under("model.", RAW),
            "averaging_state": {"n_averaged": torch.tensor(3)},
            "optimizer_states": [OPTIMIZER],
        },
        2,
        "state_dict",
        ("current_model_state", "averaging_state"),
        {"ema": 2, "current_model_state": 1, "current": 1},
    ),
    "another trainer's ema_state_dict": (
        {"state_dict": RAW, "ema_state_dict": under("module.", AVERAGED)},
        1,
        "state_dict",
        ("ema_state_dict",),
        {"ema": 2},
    ),
    "dino": (
        {
            "student": under("module.backbone.", RAW),
            "teacher": under("backbone.", AVERAGED),
            "optimizer": OPTIMIZER,
        },
        2,
        "teacher",
        ("student", "optimizer"),
        {"teacher": 2, "student": 1},
    ),
    "detectron2": (
        {"model": RAW, "optimizer": OPTIMIZER, "iteration": 3},
        1,
        "model",
        ("optimizer",),
        {"model": 1},
    ),
    "d2go": (
        {"model": RAW, "ema_state": {"state": AVERAGED}, "iteration": 3},
        1,
        "model",
        ("ema_state",),
        {"ema": 2, "ema_state.state": 2},
    ),
    "rt-detr": (
        {"model": RAW, "ema": {"module": AVERAGED, "updates": 3}},
        1,
        "model",
        ("ema",),
        {"ema": 2, "ema.module": 2},
    ),
    "nested": (
        {"model": {"state_dict": RAW, "state_dict_ema": AVERAGED}, "scaler": {"scale": 2.0}},
        1,
        "model.state_dict",
        ("model.state_dict_ema",),
        {"ema": 2, "model.state_dict_ema": 2},
    ),
    "deepspeed": (
        {"module": RAW, "buffer_names": ["a"], "optimizer": OPTIMIZER},
        1,
        "module",
        ("optimizer",),
        {},
    ),
    "average alone": ({"state_dict_ema": AVERAGED}, 2, "state_dict_ema", (), {"ema": 2}),
    "student alone": ({"student": RAW, "epoch": 3}, 1, "student", (), {"student": 1}),
    "unknown key": ({"visual_encoder": RAW, "epoch": 3}, 1, "visual_encoder", (), {}),
    "one set": (RAW, 1, "", (), {}),
}


@pytest.mark.parametrize("writer", FILES)
def test_one_set_is_taken_and_the_others_are_named(writer: str, tmp_path: Path) -> None:
    content, seed, taken, left, _ = FILES[writer]
    loaded, report = loaded_from(content, tmp_path)
    assert (loaded, report.taken, report.left) == (seed, taken, left)


@pytest.mark.parametrize(
    ("writer", "prefer"), [(writer, prefer) for writer in FILES for prefer in FILES[writer][4]]
)
def test_preferred_set_is_taken(writer: str, prefer: str, tmp_path: Path) -> None:
    content, *_, seeds = FILES[writer]
    loaded, report = loaded_from(content, tmp_path, prefer=prefer)
    assert loaded == seeds[prefer]
    assert report.taken not in report.left


@pytest.mark.parametrize("writer", FILES)
def test_choice_among_several_is_logged(
    writer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, _, taken, left, _ = FILES[writer]
    path = saved(content, tmp_path / "several.pth")
    with caplog.at_level(logging.INFO, "vitadapter_fast"):
        load_checkpoint(tiny_model(), path)
    notices = [each for each in caplog.records if "took" in each.getMessage()]
    assert len(notices) == bool(left)
    for notice in notices:
        assert f"took {taken}" in notice.getMessage()
        assert f"left {', '.join(left)}" in notice.getMessage()
        # Nobody asked, and nothing but the file's names says which is right.
        is_guess = any(word in " ".join(left) for word in ("ema", "student"))
        is_guess = is_guess and writer not in ("mmengine", "lightning")
        assert notice.levelno == (logging.WARNING if is_guess else logging.INFO)


AMBIGUOUS: dict[str, tuple[Any, str, list[str]]] = {
    "two models": ({"model": RAW, "teacher": AVERAGED}, "model, teacher", ["model", "teacher"]),
    "model and module": ({"model": RAW, "module": AVERAGED}, "model, module", ["model", "module"]),
    "two averages": (
        {"model_ema": RAW, "model_ema_best": AVERAGED},
        "model_ema, model_ema_best",
        ["model_ema", "model_ema_best"],
    ),
    "unknown keys": (
        {"encoder": RAW, "target_encoder": AVERAGED},
        "encoder, target_encoder",
        ["encoder", "target_encoder"],
    ),
    "dinov2 in training": (
        {"model": under("student.backbone.", RAW) | under("teacher.backbone.", AVERAGED)},
        "student.backbone.patch_embed.proj.weight, teacher.backbone.patch_embed.proj.weight",
        ["student", "teacher", "teacher.backbone"],
    ),
    "root and prefix": (
        {"state_dict": RAW | under("momentum.", AVERAGED)},
        "patch_embed.proj.weight, momentum.patch_embed.proj.weight",
        ["momentum"],
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_ambiguous_file_names_its_sets_and_the_keyword(case: str, tmp_path: Path) -> None:
    content, names, prefers = AMBIGUOUS[case]
    path = saved(content, tmp_path / "several.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny_model(), path)
    assert f"({names})" in str(caught.value)
    _, _, advice = str(caught.value).partition('prefer="')
    for prefer in [*prefers, advice.partition('"')[0]]:
        seed, report = loaded_from(content, tmp_path, prefer=prefer)
        is_second = any(word in prefer for word in ("teacher", "module", "best", "target", "mom"))
        assert seed == 1 + is_second
        assert len(report.left) == 1


def test_preferred_prefix_leaves_out_the_other_vits_heads_as_heads(tmp_path: Path) -> None:
    content = under("student.backbone.", RAW) | under("teacher.backbone.", AVERAGED)
    content |= {"student.dino_head.weight": torch.ones(2)}
    _, report = loaded_from(content, tmp_path, prefer="teacher")
    assert (report.taken, report.left) == ("teacher.backbone", ("student.backbone",))
    assert "student.dino_head.weight" in report.dropped


@pytest.mark.parametrize("prefer", ["teacher", "emma", "optimizer"])
@pytest.mark.parametrize("writer", ["timm", "mmengine", "rt-detr", "nested"])
def test_preferring_what_is_not_there_names_what_is(
    writer: str, prefer: str, tmp_path: Path
) -> None:
    content, _, taken, left, _ = FILES[writer]
    path = saved(content, tmp_path / "several.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny_model(), path, prefer=prefer)
    assert prefer in str(caught.value)
    if prefer != "optimizer":
        assert all(name in str(caught.value) for name in (taken, *left) if name != "optimizer")


def test_word_that_fits_several_sets_is_refused(tmp_path: Path) -> None:
    path = saved({"model": RAW, "ema_1": AVERAGED, "ema_2": THIRD}, tmp_path / "several.pth")
    with pytest.raises(CheckpointError, match=r'\(ema_1, ema_2\).*prefer="ema_1"'):
        load_checkpoint(tiny_model(), path, prefer="ema")
    assert_same(read_checkpoint(path, prefer="ema_2"), THIRD)


def test_only_set_is_taken_with_a_warning_that_it_has_another_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seed, _ = loaded_from({"model": RAW, "optimizer": OPTIMIZER}, tmp_path, prefer="ema")
    assert seed == 1
    assert "holds one set of weights, not named 'ema'; took it" in caplog.text


def test_key_that_nothing_tells_to_be_a_model_may_be_preferred(tmp_path: Path) -> None:
    path = saved({"things": {"weight": torch.ones(2)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match='its tensors are under things, .* prefer="things"'):
        read_checkpoint(path)
    assert_same(read_checkpoint(path, prefer="things"), {"weight": torch.ones(2)})


def test_dotted_key_of_a_nested_set_is_found_from_the_root(tmp_path: Path) -> None:
    content = {"runs": {"first": RAW, "second": AVERAGED}, "best": {"net": THIRD}}
    seed, report = loaded_from(content, tmp_path, prefer="runs.second")
    assert (seed, report.taken) == (2, "runs.second")


def test_set_at_the_root_has_a_name_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vitadapter_fast"):
        _, report = loaded_from(RAW | under("ema.", AVERAGED), tmp_path, prefer="ema")
    assert report.left == ("",)
    assert "took ema, left the root" in caplog.text


def test_settings_under_the_name_of_a_model_are_no_candidate(tmp_path: Path) -> None:
    content = {"model": {"name": "vit", "depth": 4}, "state_dict": RAW}
    assert loaded_from(content, tmp_path)[0] == 1


def test_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"optimizer": OPTIMIZER}
    content["model"] = content
    with pytest.raises(CheckpointError, match="nested more than 8 deep"):
        read_checkpoint(saved(content, tmp_path / "loop.pth"))


def test_command_line_prefers_too(tmp_path: Path) -> None:
    content = {"model": official(seed=1), "model_ema": official(seed=2)}
    path = saved(content, tmp_path / "several.pth")
    assert main([str(path), "--prefer", "ema"]) == 0
    converted = torch.load(tmp_path / "several_14to16.pth", weights_only=True)
    assert torch.equal(converted["norm.bias"], official(seed=2)["norm.bias"])
