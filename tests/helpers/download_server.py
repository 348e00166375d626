# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A server on this machine that sends checkpoints."""

from pathlib import Path

from checkpoint_cases import published_size, saved

SMALL = "/d/dinov2_vits14/dinov2_vits14_pretrain.pth"
SMALL_REG = "/d/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"


class Server:
    """What the loopback server sends for each path, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requested: list[str] = []
        # Bytes that the header announces beyond those sent.
        self.num_withheld = 0
        self.address = ""


def pth_bytes(name: str, tmp_path: Path) -> bytes:
    return saved(published_size(name), tmp_path / "served.pth").read_bytes()
