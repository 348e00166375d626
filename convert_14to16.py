# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""DINOv2 checkpoints with patch size 14 in, with patch size 16 out; --help lists the options."""

import sys

from vitadapter_fast.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
