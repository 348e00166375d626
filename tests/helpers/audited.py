# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A process that uses the library and notes each write and each use of the network.

test_supply_chain.py starts it, in an empty folder that holds ``vit.pth``; it prints paths as JSON.
"""

import json
import os
import sys
from typing import Any

_CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
)
_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
changed: set[str] = set()
connected: list[str] = []


def note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, mode, flags = arguments
        # Numbers are files that are open already; the system's own keep nothing.
        is_file = not isinstance(path, int) and not os.fsdecode(path).startswith(
            ("/dev/", "/proc/")
        )
        if is_file and (set(mode or "") & set("wax+") or flags & _FLAGS):
            changed.add(os.path.abspath(os.fsdecode(path)))
    elif event in _CHANGES:
        changed.update(
            os.path.abspath(os.fsdecode(each)) for each in arguments if type(each) is str
        )
    elif event.startswith(("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.")):
        connected.append(event)


sys.addaudithook(note)

import torch  # noqa: E402

changed.clear()  # what torch does is its own

import vitadapter_fast  # noqa: E402
from vitadapter_fast.commands import cli  # noqa: E402

model = vitadapter_fast.vit_adapter_s(pretrained="vit.pth")
sum(each.mean() for each in model(torch.rand(1, 3, 64, 64))).backward()
assert cli.main(["convert", "vit.pth"]) == 0
options = ["--size", "96", "--device", "cpu", "--weights", "vit.pth", "--out", "photo.png"]
options += ["--save", "maps.safetensors"]
assert cli.main(["features", *options]) == 0
assert cli.main(["configs"]) == 0
sys.stderr.write(json.dumps({"changed": sorted(changed), "connected": connected}))
