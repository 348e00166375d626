# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What ``costs`` and ``checks`` give to users, under the name that the README has."""

from .checks import Probe, check, facts, probes, table, why_not
from .costs import BoxCost, Cost, cost

__all__ = ["BoxCost", "Cost", "Probe", "check", "cost", "facts", "probes", "table", "why_not"]
