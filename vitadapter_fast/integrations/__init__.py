# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The backbone inside other people's frameworks; each module needs its own and imports only that."""
