# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What runs on this machine, whether it is right, and the rule of how far off it may be."""

from .boxes import Box, box_reason, boxes, check_box
from .facts import facts
from .probes import Probe, check, probes, table, why_not

__all__ = [
    "Box",
    "Probe",
    "box_reason",
    "boxes",
    "check",
    "check_box",
    "facts",
    "probes",
    "table",
    "why_not",
]
