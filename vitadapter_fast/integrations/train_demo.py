# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Photos with boxes in; a detector trained from scratch, its scores, loss curve and detections out.

``python -m vitadapter_fast.integrations.train_demo --data FOLDER --out FOLDER``; needs torchvision,
pycocotools and the [cli] extra.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from ..commands.termination import tidy_termination
from ..errors import CommandError
from ..files import make_folder, replacing
from ..model import ViTAdapter
from .torchvision import faster_rcnn
from .train_demo_data import (
    Photo,
    Scores,
    Split,
    Target,
    batches,
    detections_as_coco,
    read_split,
    score,
)

_FPN_CHANNELS = 64
_HEAD_CHANNELS = 256
# In pixels, one for each of the strides 4, 8, 16, 32, 64: platelets, red cells, white cells.
_ANCHORS = ((20,), (52,), (76,), (104,), (136,))
_WARM_UP = 0.1
_MAX_GRADIENT = 5.0


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        epochs: Passes over the training photos.
        batch: Photos in a step.
        learning_rate: Of AdamW at its peak: a tenth of the steps it rises, then falls as a cosine.
        weight_decay: Of AdamW.
        seed: Of weights, order and variation of the photos.
    """

    epochs: int = 30
    batch: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise CommandError for what cannot be trained with."""
        for name in ("epochs", "batch", "learning_rate"):
            if not getattr(self, name) > 0:
                raise CommandError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a step.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        epoch: Epochs done or begun.
        losses: Of the step, by name.
    """

    step: int
    steps: int
    epoch: int
    losses: dict[str, float]

    @property
    def loss(self) -> float:
        """Sum of the losses."""
        return sum(self.losses.values())


def build_detector(num_classes: int, seed: int = 0) -> FasterRCNN:
    """Build a small Faster R-CNN with random weights for photos of 320 x 240.

    Args:
        num_classes: Without the background.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    adapter = ViTAdapter(
        pretrain_size=320,
        img_size=320,
        embed_dim=128,
        depth=4,
        num_heads=4,
        conv_inplane=32,
        deform_num_heads=4,
        deform_ratio=0.5,
        interaction_indexes=[[0, 0], [1, 1], [2, 2], [3, 3]],
        window_attn=[True, False, True, False],
        window_size=8,
        # As batch norm, but for batches of any size.
        norm="GN",
    )
    return faster_rcnn(
        adapter,
        num_classes=None,
        out_channels=_FPN_CHANNELS,
        fpn_norm="GN",
        min_size=240,
        max_size=320,
        rpn_anchor_generator=AnchorGenerator(_ANCHORS, ((1.0,),) * len(_ANCHORS)),
        rpn_pre_nms_top_n_train=400,
        rpn_pre_nms_top_n_test=400,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=200,
        box_batch_size_per_image=96,
        box_head=TwoMLPHead(_FPN_CHANNELS * 7 * 7, _HEAD_CHANNELS),
        box_predictor=FastRCNNPredictor(_HEAD_CHANNELS, num_classes + 1),
    )


def train(
    detector: FasterRCNN,
    photos: Sequence[Photo],
    settings: Settings,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Progress]:
    """Train ``detector`` in place; return every step.

    Args:
        detector: As for ``build_detector``.
        photos: At least a batch of them.
        settings: How to.
        report: Called after each step.

    Raises:
        CommandError: There are fewer photos than a batch has, or the loss is not finite.
    """
    if len(photos) < settings.batch:
        raise CommandError(
            f"train: wanted at least one batch of {settings.batch} photos, got {len(photos)}"
        )
    random = torch.Generator().manual_seed(settings.seed)
    # The detector draws the boxes it learns from.
    torch.manual_seed(settings.seed)
    steps = settings.epochs * (len(photos) // settings.batch)
    optimizer = torch.optim.AdamW(
        _groups(detector, settings.weight_decay), lr=settings.learning_rate
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    detector.train()
    done: list[Progress] = []
    for epoch in range(1, settings.epochs + 1):
        for batch in batches(photos, settings.batch, random):
            images = [photo.image for photo in batch]
            losses = detector(images, [photo.target for photo in batch])
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), _MAX_GRADIENT)
            optimizer.step()
            schedule.step()
            values = {name: each.item() for name, each in losses.items()}
            done.append(Progress(len(done) + 1, steps, epoch, values))
            if not math.isfinite(done[-1].loss):
                raise CommandError(f"train: the loss of step {len(done)} is {done[-1].loss}")
            report(done[-1])
    return done


def detect(detector: FasterRCNN, photos: Sequence[Photo]) -> list[Target]:
    """Return boxes, labels and scores that ``detector`` finds in each photo."""
    detector.eval()
    with torch.inference_mode():
        return [detector([photo.image])[0] for photo in photos]


def evaluate(detector: FasterRCNN, split: Split) -> Scores:
    """Return the average precisions of ``detector`` on a split."""
    found = zip(split.photos, detect(detector, split.photos), strict=True)
    return score(split, [row for pair in found for row in detections_as_coco(*pair)])


def _groups(detector: FasterRCNN, weight_decay: float) -> list[dict[str, object]]:
    """Decay matrices and kernels; norms, biases, scales and positions stay free."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in detector.named_parameters():
        is_free = parameter.dim() < 2 or name.endswith(("pos_embed", "level_embed"))
        (free if is_free else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def _rate(step: int, steps: int) -> float:
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@tidy_termination()
def main(argv: Sequence[str] | None = None) -> int:
    """Train, evaluate and write ``--out``: results.json, two pictures, detector.safetensors.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        Exit status: 0, 1 after an error, 130 if interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m vitadapter_fast.integrations.train_demo",
        description="Train a small Faster R-CNN on a ViT-Adapter from scratch, on the CPU.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help=_DATA_HELP)
    parser.add_argument("--out", type=Path, default=Path("train_demo"), metavar="FOLDER")
    for name, default in asdict(Settings()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, type=type(default), default=default, help="default: %(default)s"
        )
    args = parser.parse_args(argv)
    try:
        settings = Settings(**{name: getattr(args, name) for name in asdict(Settings())})
        _run(args.data, args.out, settings)
    except CommandError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


_DATA_HELP = "images/, train.json and val.json, in COCO's format"


def _run(data: Path, out: Path, settings: Settings) -> None:
    from .train_demo_report import draw_detections, draw_losses, print_scores, progress

    training, held_out = read_split(data, "train"), read_split(data, "val")
    make_folder(out, CommandError)
    detector = build_detector(len(training.classes), settings.seed)
    untrained = evaluate(detector, held_out)
    per_epoch = len(training.photos) // settings.batch
    start = time.perf_counter()
    with progress(settings.epochs * per_epoch) as show:
        recent: list[float] = []

        def report(done: Progress) -> None:
            recent.append(done.loss)
            mean = sum(recent[-per_epoch:]) / len(recent[-per_epoch:])
            if done.step % per_epoch == 0:
                show(done.step, f"epoch {done.epoch} of {settings.epochs}, loss {mean:.3f}")

        steps = train(detector, training.photos, settings, report)
    seconds = time.perf_counter() - start
    trained = evaluate(detector, held_out)

    losses = [step.losses for step in steps]
    results = {
        "untrained": untrained._asdict(),
        "trained": trained._asdict(),
        "settings": asdict(settings),
        "seconds": round(seconds, 1),
        "photos": {"train": len(training.photos), "val": len(held_out.photos)},
        "losses": [{name: round(value, 5) for name, value in each.items()} for each in losses],
    }
    draw_losses(out / "loss.png", losses, per_epoch)
    draw_detections(out / "detections.png", held_out, detect(detector, held_out.photos))
    with replacing(out / "detector.safetensors", CommandError) as part:
        save_file(detector.state_dict(), part)
    with replacing(out / "results.json", CommandError) as part:
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_scores(
        untrained,
        trained,
        {
            "photos": f"{len(training.photos)} to train on, {len(held_out.photos)} held out",
            "detector": f"{sum(p.numel() for p in detector.parameters()) / 1e6:.1f} M parameters",
            "time": f"{seconds / 60:.1f} min for {len(steps)} steps of {settings.batch} photos, "
            f"{torch.get_num_threads()} threads",
            "loss": str(out / "loss.png"),
            "detections": str(out / "detections.png"),
            "results": str(out / "results.json"),
        },
    )


if __name__ == "__main__":
    raise SystemExit(main())
