# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Command line in; a training, its scores and pictures out.

What needs torchvision or pycocotools loads when a training begins, not for --help.
"""

import argparse
import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import CheckpointError, CommandError
from ...files import replacing
from ...images import MAX_BATCH
from ...model.norm import NORMS
from ..options import (
    add_device,
    add_model,
    add_size,
    device_of,
    given_path,
    is_out_of_memory,
    number,
    whole_number,
)
from .settings import FLIPS, TINY, Settings

if TYPE_CHECKING:
    from .data import Split
    from .loop import Log, Processes, State

_DEFAULT_RUN = Path("run")
# Val photos in the picture of detections, spread over all, and the score to be drawn.
_SHOWN, _LEAST = 6, 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    default = Settings()
    parser.add_argument(
        "--data",
        type=given_path,
        metavar="FOLDER",
        help="photos with boxes in COCO's format, for train and val; see docs/training.md",
    )
    parser.add_argument(
        "--out",
        type=given_path,
        metavar="RUN",
        help=f"folder of the checkpoint and the results (default: {_DEFAULT_RUN}); if it has a "
        "checkpoint of the same settings, the run goes on from there",
    )
    parser.add_argument(
        "--resume", type=given_path, metavar="RUN", help="go on with a run, with its own settings"
    )
    add_model(parser, "weights are random", [TINY])
    add_size(parser, "photos are resized to fit into it, in proportion", default.size)
    parser.add_argument(
        "--masks", dest="has_masks", action="store_true", help="learn masks too, by a Mask R-CNN"
    )
    parser.add_argument(
        "--frozen-vit",
        dest="has_frozen_vit",
        action=argparse.BooleanOptionalAction,
        help="leave the ViT as it is (default: for DINOv3)",
    )
    parser.add_argument(
        "--norm", choices=NORMS, default=default.norm, help=f"default: {default.norm}"
    )
    for name, kind, value, text in (
        ("epochs", whole_number(1, 100_000), default.epochs, "passes over the photos"),
        ("batch", whole_number(1, MAX_BATCH), default.batch, "photos in a step, of all GPUs"),
        ("lr", number(1e-9, 10), default.lr, "AdamW's rate at its peak, outside the ViT"),
        ("layer-decay", number(0.01, 1), default.layer_decay, "its factor from layer to layer"),
        ("weight-decay", number(0, 10), default.weight_decay, "AdamW's"),
        ("ema", number(0, 1), default.ema, "what averaged weights keep of themselves in a step"),
        ("jitter", number(0, 0.9), default.jitter, "photos are larger or smaller by up to this"),
        ("seed", whole_number(0, 2**63 - 1), default.seed, "of all that is drawn"),
        ("workers", whole_number(0, 1024), None, "processes that read photos"),
        ("save-minutes", number(0, 1e6), 10.0, "between checkpoints within an epoch"),
    ):
        known = "4 on CUDA, else 0" if value is None else value
        parser.add_argument(
            f"--{name}", type=kind, default=value, metavar="N", help=f"{text} (default: {known})"
        )
    parser.add_argument(
        "--flip", choices=FLIPS, default=default.flip, help=f"default: {default.flip}"
    )
    parser.add_argument(
        "--amp",
        dest="is_amp",
        action=argparse.BooleanOptionalAction,
        help="multiply in bfloat16 (default: on CUDA)",
    )
    parser.add_argument(
        "--fix-boxes",
        dest="fixes_boxes",
        action="store_true",
        help="cut boxes at the photo's edge, and leave out those without area, instead of an error",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Do what parsed arguments ask for; results go to stdout, errors to stderr.

    Args:
        args: From a parser with ``add_arguments``.

    Returns:
        Exit status: 0, or 1 if anything failed.
    """
    try:
        _run(args)
    except (CheckpointError, CommandError, ValueError) as error:
        failure = str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = "train: out of memory; lower --size or --batch, or take a smaller --model"
    else:
        return 0
    sys.stderr.write(f"error: {failure}\n")
    return 1


def _run(args: argparse.Namespace) -> None:
    from .data import read_folder
    from .loop import processes, train
    from .report import progress

    device = device_of(args.device)
    run, data, settings = _asked(args, device)
    splits = read_folder(data, has_masks=settings.has_masks, fixes_boxes=settings.fixes_boxes)
    workers = args.workers if args.workers is not None else 4 * (device.type == "cuda")
    start = time.perf_counter()
    with processes(device) as group:
        with progress(is_shown=group.rank == 0) as report:
            state, log = train(
                splits,
                run,
                settings,
                group,
                data=data,
                workers=workers,
                save_minutes=args.save_minutes,
                report=report,
            )
        if group.rank == 0:
            seconds = time.perf_counter() - start
            _tell(run, splits, settings, group, state, log, seconds)


def _asked(args: argparse.Namespace, device: torch.device) -> tuple[Path, Path, Settings]:
    """Return the run, the photos and the settings."""
    from .loop import read_last

    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    if args.resume is None:
        if args.data is None:
            raise CommandError("train: wanted --data FOLDER, or --resume RUN; got neither")
        is_amp = args.is_amp if args.is_amp is not None else device.type == "cuda"
        weights = None if args.weights is None else str(args.weights)
        settings = Settings(**{**given, "is_amp": is_amp, "weights": weights})
        return args.out or _DEFAULT_RUN, args.data, settings
    others = Settings(**{**given, "is_amp": bool(args.is_amp)}).differences(Settings())
    if others or args.out is not None:
        raise CommandError(
            f"--resume {args.resume}: goes on with its own settings, in its own folder, got "
            f"{others or f'--out {args.out}'}; leave that out"
        )
    stored = read_last(args.resume)
    if stored is None:
        raise CommandError(f"--resume {args.resume}: has no checkpoint, last.pt")
    data = args.data if args.data is not None else Path(stored["data"])
    return args.resume, data, stored["settings"]


def _tell(
    run: Path,
    splits: tuple["Split", "Split"],
    settings: Settings,
    group: "Processes",
    state: "State",
    log: "Log",
    seconds: float,
) -> None:
    """Write the scores and the pictures of a training, and print what it did."""
    from .data import load
    from .detector import RESULT
    from .loop import LOG, detect
    from .report import draw_detections, draw_losses, draw_sheet, print_scores

    training, held_out = splits
    draw_losses(run / "loss.png", log.losses, len(training) // settings.batch)
    count = min(_SHOWN, len(held_out))
    picks = np.linspace(0, len(held_out) - 1, count).round().astype(int).tolist()
    names = list(held_out.classes.values())
    detector = state.ema.module.eval()
    pictures = [
        draw_detections(
            photo.image, detect(detector, photo.image, group.device), names, _LEAST, photo.target
        )
        for (photo,) in load(held_out, [[index] for index in picks])
    ]
    draw_sheet(run / "detections.png", pictures)
    counts = {"train": len(training), "val": len(held_out)}
    results = {"scores": log.scores, "photos": counts, "settings": settings.to_dict()}
    with replacing(run / "results.json", CommandError) as part:
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    millions = sum(each.numel() for each in state.detector.parameters()) / 1e6
    print_scores(
        log.scores,
        {
            "photos": f"{len(training)} to train on, {len(held_out)} held out",
            "detector": f"{settings.model}, {millions:.1f} M parameters",
            "time": f"{seconds / 60:.1f} min to step {state.step} of {settings.batch} photos, on "
            f"{group.size} x {group.device.type}, {torch.get_num_threads()} threads",
            "detector's file": str(run / RESULT),
            "log": str(run / LOG),
            "pictures": f"{run / 'loss.png'}, {run / 'detections.png'}",
        },
    )
