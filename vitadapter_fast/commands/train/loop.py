# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A folder of photos with boxes in; a detector that learned them, its log and its scores out.

What a step draws depends on the seed and the step alone, so a run that goes on from its last
checkpoint ends as one that was never stopped, bit for bit where the operators are deterministic.
"""

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ...errors import CommandError
from ...files import first_sentence, make_folder, replacing
from ...optim import layer_decay_groups
from ...version import __version__
from .data import Photo, Split, Target, load, vary
from .detector import RESULT, build_detector
from .scores import Row, Scores, as_coco, score
from .settings import Settings

LAST, LOG = "last.pt", "log.jsonl"
_MAX_GRADIENT = 5.0
_WARM_UP, _MOST_WARM_UP = 0.1, 1000


class Processes(NamedTuple):
    """Those that train together.

    Attributes:
        rank: Of this one; 0 alone writes.
        size: Number of all.
        device: Of this one.
    """

    rank: int
    size: int
    device: torch.device

    def wait(self) -> None:
        """Go on when all are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did, for a block."""
    if not distributed.is_torchelastic_launched():
        yield Processes(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()


class State:
    """What changes in a training.

    Attributes:
        detector: What learns.
        ema: The average of its weights, which is the result.
        optimizer: Of the detector.
        step: Steps done.
    """

    def __init__(
        self, settings: Settings, num_classes: int, device: torch.device, weights: str | None
    ) -> None:
        """Build the start of a training, with these weights of the backbone or random ones."""
        _seed(settings.seed)
        self.detector = build_detector(settings, num_classes, weights).to(device).train()
        average = partial(_average, most=settings.ema)
        self.ema = AveragedModel(self.detector, multi_avg_fn=average)
        self.optimizer = torch.optim.AdamW(
            layer_decay_groups(
                self.detector,
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                layer_decay=settings.layer_decay,
            )
        )
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return all of it for a file."""
        parts = {"detector": self.detector, "ema": self.ema, "optimizer": self.optimizer}
        return {"step": self.step, **{name: part.state_dict() for name, part in parts.items()}}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Become what ``state_dict`` returned."""
        self.step = stored["step"]
        self.detector.load_state_dict(stored["detector"])
        self.ema.load_state_dict(stored["ema"])
        self.optimizer.load_state_dict(stored["optimizer"])


class Log:
    """What happened in each step and evaluation, also in a file with one line for each.

    Attributes:
        losses: Of each step, by name.
        scores: Of the last evaluation.
        epoch: The last, from 1.
    """

    def __init__(self, file: Path, step: int, *, is_written: bool) -> None:
        """Go on after a step: what the file says of later ones is dropped."""
        self.losses: list[dict[str, float]] = []
        self.scores: Scores = {}
        self.epoch = 1
        self._file = file
        self._is_written = is_written
        kept: list[str] = []
        for line in file.read_text(encoding="utf-8").splitlines() if step else ():
            # The last one of a run that was killed may be cut short.
            with suppress(ValueError):
                entry = json.loads(line)
                if entry["step"] <= step:
                    kept.append(f"{line}\n")
                    self._note(entry)
        if is_written:
            with replacing(file, CommandError) as part:
                part.write_text("".join(kept), encoding="utf-8")

    def add(self, entry: dict[str, Any]) -> None:
        """Add ``step``, ``epoch``, and ``losses`` or ``scores``."""
        self._note(entry)
        if not self._is_written:
            return
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(f"{json.dumps(entry)}\n")
        except OSError as error:
            raise CommandError(f"{self._file}: cannot be written: {error.strerror}") from error

    def _note(self, entry: dict[str, Any]) -> None:
        self.epoch = entry["epoch"]
        self.scores = entry.get("scores", self.scores)
        if "losses" in entry:
            self.losses.append(entry["losses"])


def read_last(run: Path) -> dict[str, Any] | None:
    """Return the last checkpoint of a run, with ``Settings`` inside, or None if it has none.

    Raises:
        CommandError: It cannot be read.
    """
    file = run / LAST
    if not os.path.isfile(file):
        return None
    try:
        stored: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        stored["settings"] = Settings.from_dict(stored["settings"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, UnpicklingError) as error:
        raise CommandError(
            f"{file}: cannot be read: {first_sentence(error)}; delete it to begin anew"
        ) from error
    return stored


def train(
    splits: tuple[Split, Split],
    run: Path,
    settings: Settings,
    group: Processes,
    *,
    data: Path = Path(),
    workers: int = 0,
    save_minutes: float = 10.0,
    report: Callable[[int, int, Log], None] = lambda step, steps, log: None,
) -> tuple[State, Log]:
    """Train a detector, from the last checkpoint of ``run`` if there is one.

    Args:
        splits: What to learn, and what is held out.
        run: Folder of the checkpoint, the log and the result; made if it is missing.
        settings: How to.
        group: Processes that train together.
        data: Where the photos are, for who resumes the run.
        workers: Processes beside this one that read photos.
        save_minutes: From one checkpoint to the next within an epoch.
        report: Called after each step and evaluation with the number of steps, of all, and the log.

    Raises:
        CommandError: The photos are too few, the checkpoint is of other settings or photos, a file
            cannot be read or written, or the loss is not finite.
        CheckpointError: The weights cannot be read or do not fit.
    """
    training, held_out = splits
    if settings.batch % group.size or len(training) < settings.batch:
        raise CommandError(
            f"train: wanted at least one batch of {settings.batch} photos, got {len(training)}, "
            f"and a batch that {group.size} processes can share"
        )
    digest = hashlib.sha256(training.file.read_bytes()).hexdigest()
    about = {"settings": settings.to_dict(), "data": str(data.resolve()), "digest": digest}
    stored = read_last(run)
    if stored is not None:
        _check_same(run, stored, settings, training, digest)
    is_writer = group.rank == 0
    if is_writer:
        make_folder(run, CommandError)
    # The first process downloads weights for all.
    if group.rank > 0:
        group.wait()
    weights = settings.weights if stored is None else None
    state = State(settings, len(training.classes), group.device, weights)
    if group.rank == 0:
        group.wait()
    if stored is not None:
        state.load_state_dict(stored)
        stored = None  # as large as the state
    log = Log(run / LOG, state.step, is_written=is_writer)

    def save() -> None:
        if is_writer:
            with replacing(run / LAST, CommandError) as part:
                torch.save({**about, **state.state_dict()}, part)

    devices = [group.device] if group.device.type == "cuda" else None
    model: nn.Module = state.detector
    if group.size > 1:
        model = DistributedDataParallel(state.detector, device_ids=devices)
    per_epoch = len(training) // settings.batch
    steps = settings.epochs * per_epoch
    saved = time.monotonic()
    while state.step < steps:
        epoch = state.step // per_epoch
        batches = _batches(len(training), settings, epoch, group)[state.step % per_epoch :]
        for photos in load(training, batches, workers):
            _seed(settings.seed, state.step + 1, group.rank)
            rate = _rate(state.step, steps)
            losses = _take_step(state, model, photos, settings, rate, group.device)
            place = {"step": state.step, "epoch": epoch + 1}
            log.add({**place, "lr": settings.lr * rate, "losses": losses})
            report(state.step, steps, log)
            if state.step % per_epoch and time.monotonic() - saved >= 60 * save_minutes:
                save()
                saved = time.monotonic()
        rows = detect_all(state.ema.module, held_out, group, workers)
        if is_writer:
            log.add({**place, "scores": score(held_out, rows)})
            _write_result(run / RESULT, state, settings, training)
            report(state.step, steps, log)
        save()
        saved = time.monotonic()
    return state, log


def detect(detector: nn.Module, image: Tensor, device: torch.device) -> Target:
    """Return boxes, labels and scores, and masks if it has any, that a detector finds.

    Args:
        detector: In eval mode.
        image: [3, H, W], uint8.
        device: Of the detector.
    """
    with torch.inference_mode():
        found: Target = detector([image.to(device).float() / 255])[0]
    return {name: each.cpu() for name, each in found.items()}


def detect_all(detector: nn.Module, split: Split, group: Processes, workers: int = 0) -> list[Row]:
    """Return what is found in the photos of a split, which the processes share, in COCO's form."""
    detector.eval()
    own = [[index] for index in range(group.rank, len(split), group.size)]
    ids = list(split.classes)
    rows: list[Row] = []
    for (photo,) in load(split, own, workers):
        rows += as_coco(photo.id, detect(detector, photo.image, group.device), ids)
    if group.size == 1:
        return rows
    shares: list[list[Row]] = [[] for _ in range(group.size)]
    distributed.all_gather_object(shares, rows)
    return [row for share in shares for row in share]


def _take_step(
    state: State,
    model: nn.Module,
    photos: list[Photo],
    settings: Settings,
    rate: float,
    device: torch.device,
) -> dict[str, float]:
    """Learn from photos at a share of the learning rate; return the losses by name."""
    varied = [vary(photo.to(device), settings.flip) for photo in photos]
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.is_amp):
        losses: dict[str, Tensor] = model([p.image for p in varied], [p.target for p in varied])
    values = {name: loss.item() for name, loss in losses.items()}
    if not math.isfinite(sum(values.values())):
        raise CommandError(
            f"train: the loss of step {state.step + 1} is {sum(values.values())}; lower --lr"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = settings.lr * group["lr_scale"] * rate
    state.optimizer.zero_grad()
    torch.autograd.backward(list(losses.values()))
    nn.utils.clip_grad_norm_(state.detector.parameters(), _MAX_GRADIENT)
    state.optimizer.step()
    state.ema.update_parameters(state.detector)
    state.step += 1
    return values


def _average(
    averages: list[Tensor], weights: list[Tensor], count: Tensor | int, *, most: float
) -> None:
    """Let averages follow weights: by as much as ``most`` allows, and faster in the first steps."""
    kept = min(most, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(averages, weights, 1 - kept)


def _seed(*key: int) -> None:
    """Let all that is drawn from now on depend on these numbers alone."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _batches(photos: int, settings: Settings, epoch: int, group: Processes) -> list[list[int]]:
    """Return this process's share of each batch of an epoch; what is left over makes none."""
    order = np.random.default_rng((settings.seed, epoch)).permutation(photos).tolist()
    share = settings.batch // group.size
    starts = range(0, photos - settings.batch + 1, settings.batch)
    return [order[start + group.rank * share :][:share] for start in starts]


def _rate(step: int, steps: int) -> float:
    warm_up = max(1, min(_MOST_WARM_UP, round(_WARM_UP * steps)))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _check_same(
    run: Path, stored: dict[str, Any], settings: Settings, training: Split, digest: str
) -> None:
    if other := stored["settings"].differences(settings):
        raise CommandError(
            f"{run}: holds a run of other settings: {other}; take another --out, or go on with "
            f"--resume {run}, without these options"
        )
    if stored["digest"] != digest:
        raise CommandError(
            f"{run}: began with other annotations than {training.file} has now; bring them back, "
            "or take another --out"
        )


def _write_result(file: Path, state: State, settings: Settings, split: Split) -> None:
    about = {
        "vitadapter_fast": __version__,
        "settings": settings.to_dict(),
        "classes": list(split.classes.items()),
    }
    with replacing(file, CommandError) as part:
        # One entry: safetensors writes several in any order.
        save_file(state.ema.module.state_dict(), part, metadata={"run": json.dumps(about)})
