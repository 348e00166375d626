# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
#
# Which nvcc compiles the CUDA kernels, and for which GPUs: VITADAPTER_CUDA_ARCHS in, ENV{CUDACXX}
# and cuda_archs out (numbers only, no "native"); or no_cuda_reason, one sentence.

# Where installers leave nvcc without putting it on PATH; torch's users set CUDA_HOME.
set(VITADAPTER_CUDA_HOME "/usr/local/cuda" CACHE STRING "A toolkit, where no other was named")
set(oldest_nvcc 12.0)
set(oldest_arch 75)
# Machine code for A100 and H100 and their like, PTX for what comes after.
set(common_archs 80-real 90-real 90-virtual)

if(NOT "$ENV{CUDACXX}" STREQUAL "")
  separate_arguments(nvcc UNIX_COMMAND "$ENV{CUDACXX}")
  list(GET nvcc 0 nvcc)
  find_program(found_nvcc "${nvcc}" NO_CACHE)
  if(NOT found_nvcc)
    set(no_cuda_reason "no nvcc was found: CUDACXX is $ENV{CUDACXX}")
    return()
  endif()
else()
  file(TO_CMAKE_PATH "$ENV{PATH}" places)
  foreach(home "$ENV{CUDA_HOME}" "$ENV{CUDA_PATH}" "${VITADAPTER_CUDA_HOME}")
    if(home)
      list(APPEND places "${home}/bin")
    endif()
  endforeach()
  find_program(found_nvcc nvcc PATHS ${places} NO_DEFAULT_PATH NO_CACHE)
  if(NOT found_nvcc)
    string(CONCAT no_cuda_reason "no nvcc was found: neither by CUDACXX nor in PATH, CUDA_HOME, "
                                 "CUDA_PATH or ${VITADAPTER_CUDA_HOME}")
    return()
  endif()
  set(ENV{CUDACXX} "${found_nvcc}")
endif()

execute_process(COMMAND ${found_nvcc} --version OUTPUT_VARIABLE told ERROR_QUIET)
if(NOT told MATCHES "release ([0-9]+\\.[0-9]+)")
  set(no_cuda_reason "nvcc does not work")  # the probe may tell more
  set(cuda_archs ${common_archs})
  return()
endif()
set(nvcc_release ${CMAKE_MATCH_1})
if(nvcc_release VERSION_LESS oldest_nvcc)
  string(CONCAT no_cuda_reason "${found_nvcc} is of CUDA ${nvcc_release}, and ${oldest_nvcc} or "
                               "newer is needed")
  return()
endif()
execute_process(COMMAND ${found_nvcc} --list-gpu-code OUTPUT_VARIABLE told ERROR_QUIET)
string(REGEX MATCHALL "sm_[0-9]+" known_archs "${told}")
list(TRANSFORM known_archs REPLACE "sm_" "")
list(SORT known_archs COMPARE NATURAL)

# The numbers of this machine's GPUs, by the driver.
function(find_gpus gpus)
  find_program(nvidia_smi nvidia-smi NO_CACHE)
  set(told "")
  if(nvidia_smi)
    execute_process(COMMAND ${nvidia_smi} --query-gpu=compute_cap --format=csv,noheader TIMEOUT 30
                    OUTPUT_VARIABLE told ERROR_QUIET)
  endif()
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" found "${told}")
  list(TRANSFORM found REPLACE "\\." "")
  list(REMOVE_DUPLICATES found)
  set(${gpus} "${found}" PARENT_SCOPE)
endfunction()

set(cuda_archs "")
if(VITADAPTER_CUDA_ARCHS STREQUAL "")
  set(cuda_archs ${common_archs})
  find_gpus(gpus)
  foreach(gpu ${gpus})
    # Machine code runs on later devices of its major version.
    string(REGEX REPLACE ".$" "" major ${gpu})
    if(NOT cuda_archs MATCHES "${major}[0-9]-real" AND gpu IN_LIST known_archs AND
       gpu GREATER_EQUAL oldest_arch)
      list(APPEND cuda_archs ${gpu}-real)
    endif()
  endforeach()
elseif(VITADAPTER_CUDA_ARCHS STREQUAL "native")
  find_gpus(cuda_archs)
  if(cuda_archs STREQUAL "")
    set(no_cuda_reason "VITADAPTER_CUDA_ARCHS is native, and nvidia-smi names no GPU")
    return()
  endif()
  list(TRANSFORM cuda_archs APPEND "-real")
elseif(VITADAPTER_CUDA_ARCHS MATCHES "^all(-major)?$")
  foreach(arch ${known_archs})
    if(arch GREATER_EQUAL oldest_arch AND
       (arch MATCHES "0$|^${oldest_arch}$" OR VITADAPTER_CUDA_ARCHS STREQUAL "all"))
      list(APPEND cuda_archs ${arch}-real)
    endif()
  endforeach()
  list(GET known_archs -1 newest)
  list(APPEND cuda_archs ${newest}-virtual)
else()
  set(cuda_archs ${VITADAPTER_CUDA_ARCHS})
endif()

foreach(arch ${cuda_archs})
  if(NOT arch MATCHES "^([0-9][0-9]+)[af]?(-real|-virtual)?$")
    message(FATAL_ERROR "VITADAPTER_CUDA_ARCHS must be native, all, all-major or a list such as "
                        "80-real;90, got '${VITADAPTER_CUDA_ARCHS}'")
  endif()
  if(CMAKE_MATCH_1 LESS oldest_arch)
    set(no_cuda_reason "sm_${CMAKE_MATCH_1} is too old: sm_${oldest_arch} or newer is needed")
    return()
  endif()
  if(NOT CMAKE_MATCH_1 IN_LIST known_archs)
    list(JOIN known_archs ", " known)
    string(CONCAT no_cuda_reason "${found_nvcc} of CUDA ${nvcc_release} does not know "
                                 "sm_${CMAKE_MATCH_1}, only ${known}")
    return()
  endif()
endforeach()
