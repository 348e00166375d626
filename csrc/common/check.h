// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks of what could corrupt memory; everything else was checked in Python.
#pragma once

#include <stdexcept>
#include <string>

#define VITADAPTER_CHECK(condition, message)                                                     \
  do {                                                                                           \
    if (!(condition)) throw std::invalid_argument(std::string("vitadapter_fast: ") + (message)); \
  } while (false)
