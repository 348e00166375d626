// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// CUDA kernels as plain C++, for tests on machines without a GPU: included by device.cuh where the
// compiler is not nvcc. Each thread of a block is a fiber (ucontext) that yields at barriers and
// warp shuffles; blocks, and the fibers between two barriers, run in random order.
//
// It shows: wrong results, out-of-bounds accesses (under AddressSanitizer), undefined arithmetic,
// missing barriers within a block, divergent barriers, results that depend on the order of atomics.
// It cannot show: races between blocks that run at once, the device's memory model, the rounding of
// its approximate instructions, or speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // blocks run one after the other

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace cuda_on_cpu {

constexpr int kWarp = 32;

// Threads that meet: a block, or a warp of it.
struct Meeting {
  int members = 0, arrived = 0, generation = 0;
};

struct Warp {
  Meeting meeting;
  bool has_exited_lane = false;
  uint64_t exchanged[2][kWarp];  // two, so that nobody overwrites what a slower lane still reads
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  unsigned thread;
  bool is_done;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Meeting meeting;
  std::function<void()> body;
  Fiber* current = nullptr;
  ucontext_t scheduler;
  const char* error = nullptr;
  bool has_progressed = false;
};

inline Block block;
inline std::mt19937 order{1};
inline bool has_float4_atomics = true;
inline uint3 thread_index, block_index;
inline dim3 block_size, grid_size;

inline void yield() {
  Fiber* self = block.current;
  swapcontext(&self->context, &block.scheduler);
  thread_index = {self->thread, 0, 0};
}

[[noreturn]] inline void fail(const char* message) {
  block.error = message;
  for (;;) yield();
}

inline void meet(Meeting& meeting) {
  const int generation = meeting.generation;
  block.has_progressed = true;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.generation;
  }
  while (meeting.generation == generation) yield();
}

inline void leave(Meeting& meeting) {
  if (--meeting.members > 0 && meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.generation;
  }
}

inline Warp& warp() { return block.warps[thread_index.x / kWarp]; }

template <typename T>
T exchange(unsigned mask, T value, int source_lane) {
  static_assert(sizeof(T) <= 8);
  Warp& w = warp();
  if (mask != 0xffffffffu) fail("a shuffle must name the whole warp");
  if (w.has_exited_lane) fail("a shuffle names a lane that has returned");
  const int slot = w.meeting.generation & 1;
  std::memcpy(&w.exchanged[slot][thread_index.x % kWarp], &value, sizeof(T));
  meet(w.meeting);
  T result;
  std::memcpy(&result, &w.exchanged[slot][source_lane], sizeof(T));
  return result;
}

inline void fiber_main() {
  block.body();
  Fiber* self = block.current;
  self->is_done = block.has_progressed = true;
  warp().has_exited_lane = true;
  leave(warp().meeting);
  leave(block.meeting);
  yield();
}

inline void run_block() {
  const unsigned threads = block_size.x;
  block.meeting = {static_cast<int>(threads), 0, 0};
  block.warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  block.error = nullptr;
  std::vector<Fiber*> alive;
  for (unsigned t = 0; t < threads; ++t) {
    ++block.warps[t / kWarp].meeting.members;
    Fiber& fiber = block.fibers[t];
    fiber.thread = t;
    fiber.is_done = false;
    constexpr size_t kStack = 64 * 1024;
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    alive.push_back(&fiber);
  }
  while (!alive.empty()) {
    std::shuffle(alive.begin(), alive.end(), order);
    block.has_progressed = false;
    for (Fiber* fiber : alive) {
      block.current = fiber;
      thread_index = {fiber->thread, 0, 0};
      swapcontext(&block.scheduler, &fiber->context);
      if (block.error) throw std::runtime_error(block.error);
    }
    alive.erase(std::remove_if(alive.begin(), alive.end(), [](Fiber* f) { return f->is_done; }),
                alive.end());
    if (!block.has_progressed && !alive.empty())
      throw std::runtime_error("a barrier or shuffle waits for threads that never come");
  }
}

template <typename Kernel, typename Params>
void launch(Kernel kernel, dim3 grid, dim3 threads, const Params& params) {
  block_size = threads;
  grid_size = grid;
  has_float4_atomics = !std::getenv("VITADAPTER_TEST_NO_FLOAT4_ATOMICS");
  if (block.fibers.size() < threads.x) block.fibers.resize(threads.x);
  block.body = [&] { kernel(params); };
  std::vector<uint3> blocks;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
  std::shuffle(blocks.begin(), blocks.end(), order);
  for (const uint3& index : blocks) {
    block_index = index;
    run_block();
  }
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::thread_index)
#define blockIdx (cuda_on_cpu::block_index)
#define blockDim (cuda_on_cpu::block_size)
#define gridDim (cuda_on_cpu::grid_size)

inline void __syncthreads() { cuda_on_cpu::meet(cuda_on_cpu::block.meeting); }
inline void __syncwarp() { cuda_on_cpu::exchange(0xffffffffu, 0, 0); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  const int base = threadIdx.x % 32 / width * width;
  return cuda_on_cpu::exchange(mask, value, base + lane % width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int = 32) {
  return cuda_on_cpu::exchange(mask, value, (threadIdx.x % 32) ^ lane_mask);
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address += value;
  return old;
}
inline float4 atomicAdd(float4* address, float4 value) {
  const float4 old = *address;
  *address = {old.x + value.x, old.y + value.y, old.z + value.z, old.w + value.w};
  return old;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename To, typename From>
To bits_to(From from) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __uint_as_float(unsigned bits) { return bits_to<float>(bits); }
inline unsigned __float_as_uint(float value) { return bits_to<unsigned>(value); }
inline float __int_as_float(int bits) { return bits_to<float>(bits); }
inline int __float_as_int(float value) { return bits_to<int>(value); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
using std::max;
using std::min;
