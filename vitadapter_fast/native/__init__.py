# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The lowest floor: the compiled extension, matrix products, rows of tokens, memory."""
