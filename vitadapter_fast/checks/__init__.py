# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What runs on this machine, whether it is right, and the rule of how far off it may be."""

from .facts import facts
from .probes import Probe, check, probes, table, why_not

__all__ = ["Probe", "check", "facts", "probes", "table", "why_not"]
