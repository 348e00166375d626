# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model and an image size in; what one forward pass costs out, without running it."""

from .cost import BOXES, BoxCost, Cost, cost

__all__ = ["BOXES", "BoxCost", "Cost", "cost"]
