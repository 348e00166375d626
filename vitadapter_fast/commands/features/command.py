# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Photos in; a table, a picture of the feature maps of each, and on request the maps out."""

import argparse
import importlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ... import ops
from ...errors import BackendUnavailable, CheckpointError, CommandError
from ...files import make_folder, replacing
from ...images import MAX_BATCH
from ...model import ViTAdapter
from ...ops import _backends
from ...presets import PRESETS
from ...version import __version__
from ...weights import load_checkpoint
from ...weights.download import unasked
from ...weights.read import files_of
from ..options import (
    add_device,
    add_model,
    add_size,
    device_of,
    finite,
    given_path,
    is_out_of_memory,
    model_of,
    size_text,
    whole_number,
)
from .files import check_save_path, picture_paths
from .photos import (
    Photo,
    batches,
    find_photos,
    packaged_photo,
    printable,
    to_tensor,
    unique_names,
)
from .picture import draw_features
from .report import Totals, print_report, progress

# Ops that the model calls, and the module of each.
_OPS = {"patch_embed": "patch_embed", "ms_deform_attn_grid": "ms_deform_attn"}
_log = logging.getLogger("vitadapter_fast")

_DEFAULT_WEIGHTS = "dinov2_vits14"  # 88 MB
_RANDOM = "random"
_OUT_OF_MEMORY = "out of memory; lower --size or --batch, or take a smaller --model"


class _Weights(NamedTuple):
    text: str
    title: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument(
        "photos",
        nargs="*",
        type=given_path,
        metavar="PHOTO",
        help="photos, or folders of them; without any, one that comes with the library",
    )
    add_model(
        parser,
        f"{_DEFAULT_WEIGHTS} for s, and of the others those that were downloaded before; 'random' "
        "is without any",
    )
    add_size(parser, "photos are resized to fit into it, in proportion", (896, 896))
    parser.add_argument(
        "--range",
        type=finite,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that are black and white in gray pictures of more than 8 bits (default: as "
        "the file declares, else by the pixels; see docs/features.md)",
    )
    parser.add_argument(
        "--out",
        type=given_path,
        metavar="PATH",
        help="picture of one photo (default: features.png); for several photos or a folder, the "
        "folder that gets NAME.png of each (default: features)",
    )
    parser.add_argument(
        "--save",
        type=given_path,
        metavar="FILE.safetensors",
        help="keep the maps, as NAME.level1 to NAME.level4, [1, C, h, w]; held in memory until all "
        "photos are done",
    )
    parser.add_argument(
        "--batch",
        type=whole_number(1, MAX_BATCH),
        default=1,
        metavar="N",
        help="photos of one size that run together (default: 1)",
    )
    add_device(parser)
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="seed of random weights (default: 0)",
    )


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
    except (CommandError, CheckpointError, BackendUnavailable) as error:
        failures.append(str(error))
    except (MemoryError, RuntimeError) as error:
        failures.append(_told("features", error))
    for failure in failures:
        sys.stderr.write(f"error: {failure}\n")
    return 1 if failures else 0


def _told(what: str, error: Exception) -> str:
    """Return how to tell an error that ends the work on one photo alone; raise any other."""
    if isinstance(error, CommandError):
        return str(error)
    if is_out_of_memory(error):
        return f"{what}: {_OUT_OF_MEMORY}"
    raise error


def _run(args: argparse.Namespace, failures: list[str]) -> None:
    device = device_of(args.device)
    if args.range is not None and not args.range[0] < args.range[1]:
        low, high = args.range
        raise CommandError(f"--range {low:g} {high:g}: wanted LOW below HIGH")
    with ExitStack() as stack:
        given = args.photos or [stack.enter_context(packaged_photo())]
        paths = find_photos(given, failures)
        names = unique_names(paths)
        is_many = len(given) > 1 or os.path.isdir(given[0])
        inputs = list(paths)
        if args.weights is not None and str(args.weights) != _RANDOM:
            inputs += [args.weights, *files_of(args.weights)]
        targets = picture_paths(names, inputs, args.out, is_many=is_many)
        if args.save is not None:
            check_save_path(args.save, inputs)

        photos = list(zip(names, paths, strict=True))
        todo = batches(photos, args.size, args.batch, failures, args.range)
        # Read before the model is built: without a photo there is nothing to wait for.
        first = next(todo, None)
        if first is None:
            return
        if is_many:
            make_folder(targets[names[0]].parent, CommandError)
        model, weights = _build(args, device)
        title = f"ViT-Adapter-{args.model.upper()}, {weights.title}"
        backends: dict[str, str] = {}
        totals = Totals()
        drawn: list[Path] = []
        kept: dict[str, Tensor] = {}
        with progress(len(photos), is_shown=is_many) as show:
            for batch in itertools.chain([first], todo):
                try:
                    image = to_tensor(batch).to(device)
                    backends = backends or _warm_up(model, image)
                    maps = _forward(model, image, totals)
                except (MemoryError, RuntimeError) as error:
                    failures += [_told(photo.name, error) for photo in batch]
                    continue
                for index, photo in enumerate(batch):
                    try:
                        own = [each[index].cpu() for each in maps]
                        if args.save is not None:
                            kept |= _named(photo, own)
                        _draw(photo, own, title, targets[photo.name])
                    except (CommandError, MemoryError, RuntimeError) as error:
                        failures.append(_told(photo.name, error))
                    else:
                        drawn.append(targets[photo.name])
                    show(len(drawn) + len(failures))
        if totals.photos == 0:
            return
        is_saved = args.save is not None and _save(args, weights, kept, failures)

    facts = {
        "photo": str(paths[0]) if args.photos else f"{paths[0].name}, which comes with the library",
        "model": f"vit_adapter_{args.model}, {_millions(model)} parameters",
        "weights": weights.text,
        "device": _describe(device),
        "backends": ", ".join(f"{op}: {name}" for op, name in backends.items()),
        "time": f"{totals.seconds:.3f} s in the model, after a warm-up run; reading and drawing "
        "not counted",
        "speed": f"{totals.photos / totals.seconds:.2f} images/s",
        "peak memory": _peak_memory(device),
        "picture": str(drawn[0]) if drawn else "none",
    }
    if is_many:
        facts["photo"] = f"{totals.photos} of {len(photos)}"
        facts["speed"] += f" in batches of up to {args.batch}"
        facts["picture"] = f"{len(drawn)} in {targets[names[0]].parent}"
    if is_saved:
        facts["maps"] = str(args.save)
    if failures:
        facts["errors"] = f"{len(failures)}, told below"
    print_report(totals, ViTAdapter.strides, facts)


def _build(args: argparse.Namespace, device: torch.device) -> tuple[ViTAdapter, _Weights]:
    torch.manual_seed(args.seed)
    model, path = model_of(args), _weights_of(args)
    if path is None:
        text = f"random (seed {args.seed}): these are the features of an untrained network"
        return model.eval().to(device), _Weights(text, "random weights")
    found = load_checkpoint(model, path)
    text = f"{printable(str(path))} ({found.format})"
    title = f"weights {printable(path.name)}"
    # Of all formats, only that of trained ViT-Adapters has the adapter.
    if found.format != "upstream":
        text += f": ViT only; the adapter is random (seed {args.seed})"
        title += ", random adapter"
    return model.eval().to(device), _Weights(text, title)


def _weights_of(args: argparse.Namespace) -> Path | None:
    """Return the weights that are asked for, else DINOv2's; None for random ones."""
    if args.weights is not None:
        return None if str(args.weights) == _RANDOM else Path(args.weights)
    if args.model not in PRESETS:
        _log.warning("weights are random: give a file for %s with --weights", args.model)
        return None
    name = f"dinov2_vit{args.model}14"
    try:
        return unasked(name, may_download=name == _DEFAULT_WEIGHTS)
    except CheckpointError as error:
        _log.warning("weights are random: %s", error)
        return None


class _Skips(logging.Handler):
    """Remembers which backends of an op were passed over, as ``choose`` logs them."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen: set[tuple[object, object]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and len(record.args) == 3:
            self.seen.add(record.args[:2])


def _warm_up(model: ViTAdapter, image: Tensor) -> dict[str, str]:
    """Run the model once, and return the backend that each of its ops ran on."""
    try:
        wanted = _backends.requested(None)
    except ValueError as error:
        raise CommandError(str(error)) from error
    logger, skips = logging.getLogger("vitadapter_fast"), _Skips()
    level = logger.level
    logger.addHandler(skips)
    logger.setLevel(logging.DEBUG)
    try:
        with torch.inference_mode():
            model(image)
    finally:
        logger.setLevel(level)
        logger.removeHandler(skips)
    used = {}
    for op, module in _OPS.items():
        if op == "patch_embed" and model.pos_embed is None:
            continue  # it adds the positions of a table
        modules = importlib.import_module(f"{ops.__name__}.{module}").BACKENDS
        names = [_backends.name_of(each) for each in modules]
        used[op] = wanted or next(name for name in names if (op, name) not in skips.seen)
    return used


def _forward(model: ViTAdapter, image: Tensor, totals: Totals) -> list[Tensor]:
    def now() -> float:
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        return time.perf_counter()

    start = now()
    with torch.inference_mode():
        maps: list[Tensor] = model(image)
    totals.add(image, maps, now() - start)
    return maps


def _draw(photo: Photo, maps: Sequence[Tensor], title: str, target: Path) -> None:
    name = printable(photo.name)
    picture = draw_features(photo.pixels, maps, ViTAdapter.strides, title=title, name=name)
    with replacing(target, CommandError) as part:
        picture.save(part, Image.registered_extensions()[target.suffix.lower()])


def _named(photo: Photo, maps: Sequence[Tensor]) -> dict[str, Tensor]:
    name = printable(photo.name)
    # Copied: a view would keep the maps of its whole batch in memory.
    return {f"{name}.level{level}": each[None].clone() for level, each in enumerate(maps, start=1)}


def _save(
    args: argparse.Namespace, weights: _Weights, kept: dict[str, Tensor], failures: list[str]
) -> bool:
    metadata = {
        "format": "pt",
        "model": f"vit_adapter_{args.model}",
        "size": size_text(args.size),
        "weights": weights.text,
        "vitadapter_fast": __version__,
    }
    try:
        with replacing(args.save, CommandError) as part:
            save_file(kept, part, metadata=metadata)
    except CommandError as error:
        failures.append(str(error))
        return False
    return True


def _millions(model: ViTAdapter) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M"


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {torch.get_num_threads()} threads"


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB of tensors on the GPU"
    try:
        import resource
    except ImportError:
        return "not known on this system"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, the others KiB.
    return f"{peak / (2**20 if sys.platform == 'darwin' else 2**10):.0f} MiB of this process"
