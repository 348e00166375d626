# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The backbone and its operator inside other frameworks; each module imports only its own."""
