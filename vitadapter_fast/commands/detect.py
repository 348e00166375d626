# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m vitadapter_fast detect``: photos in, what a trained detector finds in them out.

What needs torchvision or pycocotools loads when the command runs, not for --help.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from ..errors import CommandError
from ..files import make_folder, replacing
from .options import add_device, device_of, given_path, is_out_of_memory, number

_DEFAULT_OUT = Path("detections")
_RESULTS = "detections.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument(
        "run_folder", type=given_path, metavar="RUN", help="folder that train has written"
    )
    parser.add_argument(
        "photos", nargs="+", type=given_path, metavar="PHOTO", help="photos, or folders of them"
    )
    parser.add_argument(
        "--out",
        type=given_path,
        default=_DEFAULT_OUT,
        metavar="FOLDER",
        help=f"gets NAME.png of each photo, and {_RESULTS}, all detections in COCO's form with "
        f"the names of the photos (default: {_DEFAULT_OUT})",
    )
    parser.add_argument(
        "--score",
        type=number(0, 1),
        default=0.5,
        metavar="N",
        help="least score of what is drawn (default: 0.5)",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Do what parsed arguments ask for; results go to stdout, errors to stderr.

    Args:
        args: From a parser with ``add_arguments``.

    Returns:
        Exit status: 0, or 1 if anything failed.
    """
    failures: list[str] = []
    try:
        _run(args, failures)
    except CommandError as error:
        failures.append(str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failures.append("detect: out of memory; give it smaller photos, or take --device cpu")
    for failure in failures:
        sys.stderr.write(f"error: {failure}\n")
    return 1 if failures else 0


def _run(args: argparse.Namespace, failures: list[str]) -> None:
    from .features.files import picture_paths
    from .features.photos import find_photos, open_photo, printable, unique_names
    from .train.detector import load_detector
    from .train.loop import detect
    from .train.report import draw_detections
    from .train.scores import Row, as_coco

    device = device_of(args.device)
    detector, classes = load_detector(args.run_folder)
    detector = detector.to(device)
    paths = find_photos(args.photos, failures)
    names = unique_names(paths)
    targets = picture_paths(names, paths, args.out, is_many=True)
    make_folder(args.out, CommandError)
    rows: list[Row] = []
    for image_id, (name, path) in enumerate(zip(names, paths, strict=True), start=1):
        try:
            pixels = np.array(open_photo(path))
        except CommandError as error:
            failures.append(str(error))
            continue
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        found = detect(detector, image, device)
        own = as_coco(image_id, found, list(classes))
        rows += [{**row, "file_name": printable(path.name)} for row in own]
        picture = draw_detections(image, found, list(classes.values()), args.score)
        with replacing(targets[name], CommandError) as part:
            picture.save(part, "PNG")
        drawn = int((found["scores"] >= args.score).sum())
        sys.stdout.write(f"{printable(str(path))}: {drawn} found\n")
    with replacing(args.out / _RESULTS, CommandError) as part:
        part.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    sys.stdout.write(f"pictures and {_RESULTS}: {args.out}\n")
