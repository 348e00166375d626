# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Training on a folder of drawn photos: what it learns, writes and refuses; a kill."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photos import H, W
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from shapes import write_folder  # noqa: E402

from vitadapter_fast.commands import cli  # noqa: E402
from vitadapter_fast.commands.train import loop  # noqa: E402
from vitadapter_fast.commands.train.data import (  # noqa: E402
    read_folder,
)
from vitadapter_fast.commands.train.detector import load_detector  # noqa: E402
from vitadapter_fast.commands.train.scores import score  # noqa: E402
from vitadapter_fast.commands.train.settings import Settings  # noqa: E402
from vitadapter_fast.errors import CommandError  # noqa: E402

ROOT = Path(__file__).parents[2]
EPOCHS, PER_EPOCH = 5, 3
STEPS = EPOCHS * PER_EPOCH
SMALL = ["--model", "tiny", "--size", "96", "--batch", "2", "--lr", "1e-3", "--device", "cpu"]
SMALL_SETTINGS = Settings(model="tiny", size=(96, 96), batch=2, epochs=1)
ALONE = loop.Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "shapes", 2 * PER_EPOCH)


def command(data: Path, run: Path) -> list[str]:
    return ["train", "--data", str(data), "--out", str(run), *SMALL, "--epochs", str(EPOCHS)]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main(command(data, run)) == 0
    return run


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def flat(state: Any, name: str = "") -> dict[str, Any]:
    """What nested dicts and lists hold, by path."""
    if isinstance(state, (dict, list)):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        return {key: each for n, part in pairs for key, each in flat(part, f"{name}/{n}").items()}
    return {name: state.tolist() if isinstance(state, Tensor) else state}


def test_loss_falls(finished: Path) -> None:
    losses = [sum(entry["losses"].values()) for entry in log_of(finished) if "losses" in entry]
    assert len(losses) == STEPS
    assert np.mean(losses[-PER_EPOCH:]) < 0.8 * np.mean(losses[:PER_EPOCH])


def test_rate_rises_and_falls(finished: Path) -> None:
    rates = [entry["lr"] for entry in log_of(finished) if "lr" in entry]
    peak = int(np.argmax(rates))
    # A tenth of the 15 steps are 2.
    assert rates[:3] == [5e-4, 1e-3, 1e-3] and peak == 1
    assert rates[peak:] == sorted(rates[peak:])[::-1]
    assert rates[-1] < 0.05 * rates[peak]


def test_run_has_its_files(finished: Path) -> None:
    names = {"detections.png", "detector.safetensors", "last.pt", "log.jsonl", "loss.png"}
    assert {path.name for path in finished.iterdir()} == {*names, "results.json"}
    results = json.loads((finished / "results.json").read_text())
    scores = [entry["scores"] for entry in log_of(finished) if "scores" in entry]
    assert len(scores) == EPOCHS and results["scores"] == scores[-1]
    assert results["photos"] == {"train": 2 * PER_EPOCH, "val": 2}
    for name in ("loss.png", "detections.png"):
        with Image.open(finished / name) as picture:
            assert np.array(picture.convert("L")).std() > 10


def test_result_is_the_average_of_the_weights(finished: Path) -> None:
    result = load_file(finished / "detector.safetensors")
    last = torch.load(finished / "last.pt", weights_only=True)
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(result[name], last["ema"][f"module.{name}"])
    assert not torch.equal(result[name], last["detector"][name])


def test_average_follows_quickly_at_first_and_slowly_later() -> None:
    for count, kept in ((1, 2 / 11), (90, 0.91), (10**6, 0.999)):
        average, weight = torch.zeros(2), torch.ones(2)
        loop._average([average], [weight], torch.tensor(count), most=0.999)
        assert average.tolist() == pytest.approx([1 - kept] * 2)


def test_killed_run_goes_on_and_ends_as_one_that_was_not(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*command(data, run), "--save-minutes", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    threads = f"torch.set_num_threads({torch.get_num_threads()})"
    code = f"import sys, torch; {threads}; from vitadapter_fast.commands.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment) as process:
        deadline = time.monotonic() + 100
        while not (run / "last.pt").exists() or lines_of(run) < PER_EPOCH + 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    stopped = torch.load(run / "last.pt", weights_only=True)["step"]
    assert PER_EPOCH < stopped < STEPS
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "epo')
    assert not (run / "results.json").exists()
    assert cli.main(arguments) == 0
    assert log_of(run) == log_of(finished)
    for name in ("results.json", "detector.safetensors"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    states = [flat(torch.load(each / "last.pt", weights_only=True)) for each in (run, finished)]
    assert len(states[0]) > 1000 and states[0] == states[1]


def lines_of(run: Path) -> int:
    return (run / "log.jsonl").read_text().count("\n")


def test_finished_run_stays_as_it_is(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert cli.main(["train", "--resume", str(finished), "--device", "cpu"]) == 0
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    assert f"step {STEPS} of 2 photos" in " ".join(capsys.readouterr().out.split())


def one_line_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_other_settings_do_not_go_on_with_a_run(
    data: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = one_line_of([*command(data, finished), "--seed", "1"], capsys)
    assert "holds a run of other settings: seed 0 and not 1;" in told


def test_other_photos_do_not_go_on_with_a_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_folder(tmp_path / "data", 8)
    told = one_line_of(["train", "--resume", str(finished), "--data", str(other)], capsys)
    assert "began with other annotations than" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "wanted --data FOLDER, or --resume RUN"),
        (["--data", "none"], "none: no such folder"),
        (["--resume", "none"], "--resume none: has no checkpoint"),
        (["--resume", "none", "--epochs", "5"], "got epochs 5 and not 12; leave that out"),
        (["--resume", "none", "--out", "run"], "got --out run; leave that out"),
    ],
)
def test_wrong_command_is_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in one_line_of(["train", *arguments], capsys)


@pytest.mark.parametrize("package", ["pycocotools", "torchvision"])
def test_what_is_not_installed_is_told(package: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from vitadapter_fast.commands.cli import main
assert main(["train", "--data", "photos"]) == main(["detect", "run", "photos"]) == 1
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    told = f"error: this command needs {package}: pip install 'vitadapter_fast[train]'"
    assert done.stderr.splitlines() == [told] * 2


def test_damaged_checkpoint_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "last.pt").write_bytes(b"PK\3\4")
    told = one_line_of(["train", "--resume", str(tmp_path)], capsys)
    assert "last.pt: cannot be read" in told and "delete it to begin anew" in told


PROCESS = """
import hashlib, json, sys
from pathlib import Path
data, run, out = map(Path, sys.argv[1:])
written = []

def note(event, arguments):
    if event == "open" and set(arguments[1] or "") & set("wax+"):
        written.append(str(arguments[0]))
    elif event in ("os.rename", "os.remove", "os.mkdir"):
        written.append(str(arguments[0]))

import torch
from vitadapter_fast.commands.train.data import read_folder
from vitadapter_fast.commands.train.loop import processes, train
from vitadapter_fast.commands.train.settings import Settings
sys.addaudithook(note)
settings = Settings(model="tiny", size=(96, 96), batch=2, epochs=1)
with processes(torch.device("cpu")) as group:
    state, log = train(read_folder(data), run, settings, group)
told = {"written": [name for name in written if name.startswith(str(run))], "losses": log.losses}
for part in ("detector", "ema"):
    digest = hashlib.sha256()
    for tensor in getattr(state, part).state_dict().values():
        digest.update(tensor.numpy().tobytes())
    told[part] = digest.hexdigest()
(out / f"{group.rank}.json").write_text(json.dumps({**told, "step": state.step}))
"""


def test_two_processes_agree_and_the_first_alone_writes(data: Path, tmp_path: Path) -> None:
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, script, data, run, tmp_path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["step"] == second["step"] == PER_EPOCH
    assert (first["detector"], first["ema"]) == (second["detector"], second["ema"])
    assert first["losses"] != second["losses"]  # each has photos of its own
    assert second["written"] == [] and any("last.pt" in name for name in first["written"])


def test_batch_that_processes_cannot_share_is_told(data: Path, tmp_path: Path) -> None:
    group = loop.Processes(0, 3, torch.device("cpu"))
    with pytest.raises(CommandError, match="a batch that 3 processes can share"):
        loop.train(read_folder(data), tmp_path, SMALL_SETTINGS, group)
    with pytest.raises(CommandError, match="one batch of 8 photos, got 6"):
        loop.train(read_folder(data), tmp_path, Settings(batch=8), ALONE)


def test_frozen_vit_stays_and_the_adapter_learns(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = one_line_of([*command(data, tmp_path / "run"), "--frozen-vit"], capsys)
    assert "its ViT is frozen, and without --weights it is random" in told
    body = "backbone.body."
    before = {
        name.removeprefix(body): each
        for name, each in load_file(finished / "detector.safetensors").items()
        if name.startswith(body)
    }
    save_file(before, tmp_path / "adapter.safetensors")
    weights = ["--weights", str(tmp_path / "adapter.safetensors"), "--frozen-vit"]
    assert cli.main([*command(data, tmp_path / "run"), *weights, "--epochs", "1"]) == 0
    after = load_file(tmp_path / "run" / "detector.safetensors")
    changed = {name for name, each in before.items() if not torch.equal(each, after[body + name])}
    assert "spm.fc1.weight" in changed and "up.weight" in changed
    assert not any(name.startswith(("blocks.", "patch_embed.", "pos_embed")) for name in changed)


def test_masks_are_learned_and_found(data: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    arguments = [*command(data, run), "--masks", "--flip", "both", "--epochs", "1"]
    assert cli.main(arguments) == 0
    assert set(log_of(run)[-1]["scores"]) == {"box", "mask"}
    assert cli.main(["detect", str(run), str(data / "valid" / "0.png"), "--out", str(out)]) == 0
    rows = json.loads((out / "detections.json").read_text())
    assert rows and all(row["segmentation"]["size"] == [H, W] for row in rows)


def test_detect_writes_pictures_and_coco_results(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["detect", str(finished), str(data / "valid"), "--out", str(out), "--score", "0.1"]
    assert cli.main(arguments) == 0
    assert {path.name for path in out.iterdir()} == {"0.png", "1.png", "detections.json"}
    rows = json.loads((out / "detections.json").read_text())
    detector, classes = load_detector(finished)
    assert classes == {1: "disk", 2: "square"}
    _, held_out = read_folder(data)
    wanted = loop.detect_all(detector, held_out, ALONE)
    assert [{**row, "image_id": row["image_id"] - 1} for row in rows] == [
        {**row, "file_name": f"{row['image_id']}.png"} for row in wanted
    ]
    # What the run itself found at its end.
    assert score(held_out, wanted) == log_of(finished)[-1]["scores"]
    found = [row for row in rows if row["image_id"] == 1 and row["score"] >= 0.1]
    with Image.open(out / "0.png") as drawn, Image.open(data / "valid" / "0.png") as photo:
        differs = (np.array(drawn) != np.array(photo)).any(axis=2)
    assert drawn.size == photo.size and found
    for left, top, width, height in (row["bbox"] for row in found):
        edge = differs[int(top + height / 2), [int(left), min(W - 1, int(left + width))]]
        assert edge.all(), (left, top, width, height)
    assert f"0.png: {len(found)} found" in capsys.readouterr().out


def test_examples_of_the_help_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blood_cells").symlink_to(data)
    (tmp_path / "photos").symlink_to(data / "valid")
    asked = []

    def briefly(splits: Any, run: Path, settings: Settings, group: Any, **others: Any) -> Any:
        asked.append(settings)
        return train(splits, run, SMALL_SETTINGS, group, **others)

    train = loop.train
    monkeypatch.setattr(loop, "train", briefly)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("train", "detect"):
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        (line,) = re.findall(r"^  python -m vitadapter_fast (.+)$", capsys.readouterr().out, re.M)
        assert cli.main(shlex.split(line)) == 0, capsys.readouterr().err
    assert asked == [Settings(weights="dinov2_vits14")]
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2


def test_detect_tells_what_it_cannot_read(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_text("no photo")
    photos = [str(tmp_path / "a.png"), str(data / "valid" / "1.png")]
    told = one_line_of(["detect", str(finished), *photos, "--out", str(tmp_path / "out")], capsys)
    assert told.endswith("a.png: not a photo in a known format")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"1.png", "detections.json"}
    told = one_line_of(["detect", str(data), *photos], capsys)
    assert "wanted the folder of a run" in told
    (tmp_path / "detector.safetensors").write_bytes(b"cut short")
    told = one_line_of(["detect", str(tmp_path), *photos], capsys)
    assert "detector.safetensors: no detector of this version" in told
    before = (data / "valid" / "1.png").read_bytes()
    told = one_line_of(["detect", str(finished), photos[1], "--out", str(data / "valid")], capsys)
    assert "1.png is one of the inputs and would be overwritten" in told
    assert (data / "valid" / "1.png").read_bytes() == before
