# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Fuzz the checkpoint reader: mutated files of every format load or give a CheckpointError.

Nothing in a file may run, open, write or connect anything. libFuzzer's ``-timeout`` and
``-rss_limit_mb`` find what hangs or takes too much memory. The first byte of an input selects the
suffix.
"""

import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import atheris

sys.path[:0] = [str(Path(__file__).parents[1] / "helpers")]
with atheris.instrument_imports(
    include=["vitadapter_fast", "torch.serialization", "torch._weights_only_unpickler", "zipfile"]
):
    import torch
    from checkpoint_cases import Payload, as_hf, as_timm, saved, tiny_model

    from vitadapter_fast import CheckpointError
    from vitadapter_fast.weights import convert_14to16, load_checkpoint, read_checkpoint

SUFFIXES = (".pth", ".safetensors")
FORBIDDEN = ("os.", "shutil.", "socket.", "subprocess.", "ctypes.dlopen", "ftplib.", "urllib.")
MODEL = tiny_model()
is_loading = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """End the process, as a crash, on what no checkpoint may do."""
    if not is_loading:
        return
    opens_for_writing = (
        event == "open" and isinstance(arguments[1], str) and "r" not in arguments[1]
    )
    if opens_for_writing or event.startswith(FORBIDDEN):
        sys.stderr.write(f"a checkpoint did {event} {arguments}\n")
        os.abort()


def load(data: bytes) -> None:
    """Load one file in every way."""
    global is_loading
    if not data:
        return
    path = FOLDER / f"case{SUFFIXES[data[0] % 2]}"
    path.write_bytes(data[1:])
    is_loading = True
    try:
        tensors = read_checkpoint(path)
        # Only what is small: the adapter's names and shapes are what matters next.
        if sum(tensor.numel() for tensor in tensors.values()) < 10**7:
            convert_14to16(tensors)
            load_checkpoint(MODEL, path)
    except CheckpointError:
        pass
    finally:
        is_loading = False


def seeds(folder: Path) -> None:
    """Write small files of every kind, each behind the byte that selects its suffix."""
    vit = {
        "cls_token": torch.ones(1, 1, 4),
        "pos_embed": torch.ones(1, 5, 4),
        "patch_embed.proj.weight": torch.ones(4, 3, 14, 14),
        "blocks.0.attn.qkv.weight": torch.ones(12, 4),
        "blocks.0.ls1.gamma": torch.ones(4),
        "norm.weight": torch.ones(4),
    }
    prefixed = {f"backbone.{name}": tensor for name, tensor in vit.items()}
    contents: dict[str, Any] = {
        "official": vit,
        "timm": as_timm(vit),
        "hf": as_hf(vit),
        "detector": {"state_dict": prefixed, "meta": {"epoch": 3, "config": "x"}},
        "nested": {"model": {"state_dict": vit}},
        "half": {name: tensor.half() for name, tensor in vit.items()},
        "payload": {**vit, "payload": Payload(folder / "ran")},
    }
    for name, content in contents.items():
        zipped, old = folder / f"{name}.pth", folder / f"{name}_old.pth"
        saved(content, zipped)
        torch.save(content, old, _use_new_zipfile_serialization=False)
        paths = [zipped, old]
        if all(isinstance(value, torch.Tensor) for value in content.values()):
            paths.append(saved(content, folder / f"{name}.safetensors"))
        for path in paths:
            first = bytes([SUFFIXES.index(path.suffix)])
            path.write_bytes(first + path.read_bytes())


warnings.simplefilter("ignore")
logging.disable()
with tempfile.TemporaryDirectory() as temporary:
    FOLDER = Path(temporary)
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    seeds(corpus)
    sys.addaudithook(watch)
    limits = ["-timeout=20", "-rss_limit_mb=4096", "-max_len=20000"]
    atheris.Setup([*sys.argv, *limits, str(corpus)], load)
    atheris.Fuzz()
