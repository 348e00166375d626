// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Every CPU launcher from several threads at once, each with several workers, on shared inputs: for
// ThreadSanitizer, which Python and torch would drown in reports. Prints "clean" if every result is
// that of one thread; with the argument "race" it plants a race instead, which must be told.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "batch_norm/params.h"
#include "common/convert.h"
#include "common/isa.h"
#include "common/kept_memory.h"
#include "common/workers.h"
#include "dwconv_gelu/params.h"
#include "half_conv/gradient_layout.h"
#include "half_conv/layout.h"
#include "half_linear/params.h"
#include "int8_linear/params.h"
#include "ms_deform_attn/params.h"
#include "patch_embed/params.h"
#include "token_rows/params.h"
#include "window_attention/params.h"

namespace vitadapter {
#ifdef __x86_64__
namespace avx512vnni {
void int8_linear(const Int8LinearParams&);
}
namespace avx512fp16 {
void half_linear(const HalfLinearParams&);
void half_conv(const HalfConvParams&);
void half_conv_gradient(const HalfConvGradientParams&);
void window_attention_forward_half(const WindowAttentionParams&);
void window_attention_backward_half(const WindowAttentionParams&);
}  // namespace avx512fp16
namespace avx512bf16 {
void window_attention_forward_half(const WindowAttentionParams&);
void window_attention_backward_half(const WindowAttentionParams&);
}  // namespace avx512bf16
#endif
namespace {

constexpr int kCallers = 4, kWorkers = 3, kRepeats = 6;

using Numbers = std::vector<float>;
// Takes a number of threads, returns every result.
using Step = std::function<std::vector<Numbers>(int)>;

// Numbers in -1 ... 1.
Numbers numbers(int64_t count) {
  static uint32_t state = 1;
  Numbers result(count);
  for (float& number : result) {
    state = state * 1664525u + 1013904223u;
    number = static_cast<float>(state >> 8) / (1 << 23) - 1;
  }
  return result;
}

Step attention(std::vector<SizeHW> query_hw) {
  const std::vector<SizeHW> levels{{7, 9}, {3, 4}, {1, 2}};
  constexpr int64_t B = 2, S = 63 + 12 + 2, Q = 11 * 13 + 6, M = 3, D = 24, L = 3, P = 4;
  const Numbers value = numbers(B * S * M * D), points = numbers(B * Q * M * L * P * 2),
                weights = numbers(B * Q * M * L * P), grad_out = numbers(B * Q * M * D);
  return [=](int num_threads) {
    std::vector<Numbers> results{Numbers(grad_out.size()), Numbers(value.size()),
                                 Numbers(points.size()), Numbers(weights.size())};
    MsDeformAttnParams p{};
    p.value = value.data(), p.points = points.data(), p.weights = weights.data();
    p.value_stride_s = M * D, p.value_stride_b = S * M * D;
    p.points_stride_q = M * L * P * 2, p.points_stride_b = Q * M * L * P * 2;
    p.weights_stride_q = M * L * P, p.weights_stride_b = Q * M * L * P;
    p.batch = B, p.tokens = S, p.queries = Q, p.heads = M, p.channels = D, p.num_points = P;
    p.level_hw = levels.data(), p.levels = L;
    p.query_hw = query_hw.empty() ? nullptr : query_hw.data(), p.query_grids = query_hw.size();
    p.out = results[0].data(), p.grad_out = grad_out.data();
    p.grad_out_stride_q = M * D, p.grad_out_stride_b = Q * M * D;
    p.grad_value = results[1].data(), p.grad_points = results[2].data();
    p.grad_weights = results[3].data();
    p.num_threads = num_threads;
    ms_deform_attn_forward_cpu(p);
    ms_deform_attn_backward_cpu(p);
    return results;
  };
}

Step convolution() {
  const std::vector<SizeHW> grids{{17, 13}, {5, 7}, {2, 1}};
  constexpr int64_t B = 2, N = 17 * 13 + 35 + 2, C = 40;
  const Numbers tokens = numbers(B * N * C), weight = numbers(C * kTaps), bias = numbers(C),
                grad_out = numbers(B * N * C);
  return [=](int num_threads) {
    std::vector<Numbers> results{Numbers(tokens.size()), Numbers(tokens.size()),
                                 Numbers(weight.size()), Numbers(bias.size())};
    DwconvGeluParams p{};
    p.tokens = tokens.data(), p.weight = weight.data(), p.bias = bias.data();
    p.tokens_stride_n = p.grad_out_stride_n = C, p.tokens_stride_b = p.grad_out_stride_b = N * C;
    p.batch = B, p.num_tokens = N, p.channels = C;
    p.grid_hw = grids.data(), p.grids = grids.size();
    p.out = results[0].data(), p.grad_out = grad_out.data(), p.grad_tokens = results[1].data();
    p.grad_weight = results[2].data(), p.grad_bias = results[3].data();
    p.num_threads = num_threads;
    dwconv_gelu_forward_cpu(p);
    dwconv_gelu_backward_cpu(p);
    return results;
  };
}

Step windows() {
  constexpr int64_t B = 2, N = 9 * 11, M = 3, D = 24;
  const Numbers qkv = numbers(B * N * 3 * M * D), grad_out = numbers(B * N * M * D);
  return [=](int num_threads) {
    std::vector<Numbers> results{Numbers(grad_out.size()), Numbers(B * N * M), Numbers(qkv.size())};
    WindowAttentionParams p{};
    p.qkv = qkv.data(), p.qkv_stride_n = 3 * M * D, p.qkv_stride_b = N * 3 * M * D;
    p.batch = B, p.heads = M, p.channels = D, p.hw = {9, 11}, p.window_size = 4;
    p.out = results[0].data(), p.logsumexp = results[1].data(), p.grad_out = grad_out.data();
    p.grad_out_stride_n = M * D, p.grad_out_stride_b = N * M * D;
    p.grad_qkv = results[2].data();
    p.num_threads = num_threads;
    window_attention_forward_cpu(p);
    window_attention_backward_cpu(p);
    return results;
  };
}

Step norm(bool has_planes) {
  constexpr int64_t B = 2, N = 700, C = 40;
  const Numbers tokens = numbers(B * N * C), weight = numbers(C), bias = numbers(C),
                grad_out = numbers(B * N * C);
  return [=](int num_threads) {
    std::vector<Numbers> results{Numbers(tokens.size()), Numbers(C), Numbers(C),
                                 Numbers(tokens.size()), Numbers(C), Numbers(C)};
    BatchNormParams p{};
    p.tokens = tokens.data(), p.weight = weight.data(), p.bias = bias.data(), p.eps = 1e-5;
    p.tokens_stride_n = C, p.tokens_stride_b = N * C;
    p.batch = B, p.num_tokens = N, p.channels = C, p.has_relu = true, p.has_planes = has_planes;
    p.out = results[0].data(), p.mean = results[1].data(), p.variance = results[2].data();
    p.grad_out = grad_out.data(), p.grad_out_stride_b = N * C;
    p.grad_out_stride_row = has_planes ? N : C;
    p.grad_tokens = results[3].data(), p.grad_weight = results[4].data();
    p.grad_bias = results[5].data();
    p.num_threads = num_threads;
    batch_norm_forward_cpu(p);
    batch_norm_backward_cpu(p);
    return results;
  };
}

Step positions() {
  constexpr int kIn = 5, kOut = 9;
  constexpr int64_t B = 2, C = 1040;  // more than one run of channels
  const Numbers table = numbers(kIn * kIn * C), tokens = numbers(B * kOut * kOut * C),
                bias = numbers(C), grad = numbers(kOut * kOut * C);
  return [=](int num_threads) {
    std::vector<Numbers> results{Numbers(tokens.size()), Numbers(table.size())};
    ResizeAddParams p{};
    p.x = p.y = {kIn, kOut, kIn, kOut, false, kOut, 2, (2 * kOut + kIn - 1) / kIn};
    p.batch = B, p.channels = C, p.num_threads = num_threads;
    p.source = table.data(), p.tokens = tokens.data(), p.bias = bias.data();
    p.out = results[0].data();
    patch_embed_resize_add_cpu(p);
    p.is_transposed = true, p.batch = 1, p.tokens = p.bias = nullptr;
    p.source = grad.data(), p.out = results[1].data();
    patch_embed_resize_add_cpu(p);
    return results;
  };
}

Step rows() {
  constexpr int64_t N = 333, C = 43;
  const Numbers tokens = numbers(N * C), weight = numbers(C), bias = numbers(C);
  return [=](int num_threads) {
    std::vector<Numbers> results{Numbers(N * C), Numbers(N),     Numbers(N),
                                 Numbers(N * C), Numbers(N * C), tokens,
                                 tokens,         Numbers(C),     Numbers(C)};
    normalize_rows_cpu({tokens.data(), weight.data(), bias.data(), N, C, 1e-5, results[0].data(),
                        results[1].data(), results[2].data(), results[6].data(), tokens.data(),
                        results[7].data(), results[8].data(), num_threads});
    transpose_rows_cpu({tokens.data(), C, N, C, results[3].data(), DType::kFloat32, num_threads});
    gelu_rows_cpu({tokens.data(), N * C, results[4].data(), results[5].data(), num_threads});
    return results;
  };
}

// Every worker holds two blocks that no other may write to; the odd ones free what is unused.
Step kept_memory() {
  constexpr int64_t kTasks = 24, kMost = 5;  // MiB
  return [](int num_threads) {
    Numbers sums(kTasks);
    const auto worker = [](void* context, TaskQueue& queue) {
      Numbers& sums = *static_cast<Numbers*>(context);
      for (int64_t task; queue.take(&task);) {
        const uint64_t bytes = (uint64_t{1} << 20) * (1 + task % kMost);
        const std::unique_ptr<KeptBlock> blocks[] = {
            std::unique_ptr<KeptBlock>(take_block(bytes)),
            std::unique_ptr<KeptBlock>(take_block(bytes + 1))};
        const int64_t stride = 1 << 12;  // bytes
        for (const auto& block : blocks) {
          auto* data = static_cast<char*>(block->data());
          for (uint64_t i = 0; i < block->bytes(); i += stride) data[i] = char(task);
        }
        if (task % 2) free_kept();
        for (const auto& block : blocks) {
          const auto* data = static_cast<const char*>(block->data());
          for (uint64_t i = 0; i < block->bytes(); i += stride) sums[task] += data[i];
        }
        kept_bytes();
      }
    };
    run_workers(kTasks, num_threads, worker, &sums);
    return std::vector<Numbers>{sums};
  };
}

Step int8() {
  constexpr int64_t N = 301, K = 50, C = 70, kBlocks = 5 * 13 * 64;
  const Numbers x = numbers(N * K), scales = numbers(C), plus = numbers(N * C);
  std::vector<int8_t> weight;
  for (float number : numbers(kBlocks)) weight.push_back(static_cast<int8_t>(127 * number));
  return [=](int num_threads) {
    std::vector<Numbers> results{Numbers(N * C)};
#ifdef __x86_64__
    if (!__builtin_cpu_supports("avx512vnni")) return results;
    std::vector<char> steps((N + 7) * (K + 12));
    avx512vnni::int8_linear({x.data(), weight.data(), scales.data(), nullptr, plus.data(), true, N,
                             K, C, steps.data(), results[0].data(), num_threads});
#else
    (void)num_threads;
#endif
    return results;
  };
}

Step halves() {
  constexpr int64_t N = 301, K = 50, C = 170, kBytes = 38 * (4 * 256 + 64);
  const Numbers x = numbers(N * K), weight = numbers(K * C), bias = numbers(C),
                plus = numbers(N * C), norm = numbers(K);
  return [=](int num_threads) {
    std::vector<Numbers> results{Numbers(N * C), Numbers(N * C), Numbers(N), Numbers(N),
                                 Numbers(N)};
#ifdef __x86_64__
    if (!has_avx512_fp16()) return results;
    std::vector<char> memory(kBytes);
    HalfLinearParams p{};
    p.x = {x.data(), DType::kFloat32, K, 1}, p.weight = {weight.data(), DType::kFloat32, 1, C};
    p.bias = bias.data(), p.plus = plus.data(), p.has_gelu = true, p.sums = results[2].data();
    p.num_rows = N, p.num_inputs = K, p.num_outputs = C, p.halves = memory.data();
    p.out = results[0].data(), p.num_threads = num_threads;
    avx512fp16::half_linear(p);
    p.has_gelu = false, p.out = results[1].data();
    p.norm = {norm.data(), norm.data(), 1e-6, results[3].data(), results[4].data()};
    avx512fp16::half_linear(p);
#else
    (void)num_threads;
#endif
    return results;
  };
}

Step half_convolution() {
  constexpr int64_t B = 2, K = 32, H = 11, W = 13, C = 70;
  const Numbers x = numbers(B * H * W * K), weight = numbers(C * 9 * K), bias = numbers(C);
  const Numbers grad = numbers(B * H * W * C);
  return [=](int num_threads) {
    std::vector<Numbers> results{Numbers(B * H * W * C), Numbers(C * 9 * K)};
#ifdef __x86_64__
    if (!has_avx512_fp16()) return results;
    HalfConvParams p{};
    p.x = x.data(), p.stride_b = H * W * K, p.stride_h = W * K;
    p.weight = weight.data(), p.bias = bias.data(), p.has_relu = true;
    p.batch = B, p.num_inputs = K, p.num_outputs = C, p.hw = {H, W}, p.stride = 1;
    p.pads_rows = true, p.out = results[0].data(), p.num_threads = num_threads;
    std::vector<char> memory(HalfConvLayout(p).bytes(p));
    p.halves = memory.data();
    avx512fp16::half_conv(p);
    HalfConvGradientParams of_weight{};
    of_weight.x = x.data(), of_weight.stride_b = H * W * K, of_weight.stride_h = W * K;
    of_weight.grad = grad.data();
    of_weight.grad_stride_b = H * W * C, of_weight.grad_stride_h = W * C;
    of_weight.batch = B, of_weight.num_inputs = K, of_weight.num_outputs = C;
    of_weight.hw = {H, W}, of_weight.stride = 1, of_weight.num_threads = num_threads;
    Numbers parts(HalfConvGradientLayout(of_weight).bytes() / sizeof(float));
    of_weight.parts = parts.data(), of_weight.out = results[1].data();
    avx512fp16::half_conv_gradient(of_weight);
#else
    (void)num_threads;
#endif
    return results;
  };
}

using Windows = void (*)(const WindowAttentionParams&);

Step half_windows(bool has_them, Windows forward, Windows backward) {
  constexpr int64_t B = 2, N = 9 * 11, M = 3, D = 24;
  std::vector<BFloat16> qkv, grad;
  for (float number : numbers(B * N * 3 * M * D))
    qkv.push_back(VITADAPTER_ISA::to_bfloat16(number));
  grad.assign(qkv.begin(), qkv.begin() + B * N * M * D);
  return [=](int num_threads) {
    // Two finite numbers of 16 bits are one of 32.
    std::vector<Numbers> results{Numbers(B * N * M * D / 2), Numbers(B * N * M),
                                 Numbers(B * N * 3 * M * D / 2)};
    if (!has_them) return results;
    WindowAttentionParams p{};
    p.qkv = qkv.data(), p.qkv_stride_n = 3 * M * D, p.qkv_stride_b = N * 3 * M * D;
    p.dtype = DType::kBFloat16, p.batch = B, p.heads = M, p.channels = D, p.hw = {9, 11};
    p.window_size = 4, p.out = results[0].data(), p.logsumexp = results[1].data();
    p.num_threads = num_threads;
    forward(p);
    p.grad_out = grad.data(), p.grad_out_stride_n = M * D, p.grad_out_stride_b = N * M * D;
    p.grad_qkv = results[2].data();
    backward(p);
    return results;
  };
}

bool is_same_from_many_threads(const Step& step) {
  const std::vector<Numbers> wanted = step(1);
  bool same[kCallers] = {};
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&, i] {
      same[i] = true;
      for (int repeat = 0; repeat < kRepeats; ++repeat) same[i] &= step(kWorkers) == wanted;
    });
  }
  bool result = true;
  for (int i = 0; i < kCallers; ++i) {
    callers[i].join();
    result &= same[i];
  }
  return result;
}

struct Race {
  std::atomic<int> workers{0};
  int64_t sum = 0;
};

void plant_race() {
  Race race;
  const auto worker = [](void* context, TaskQueue& queue) {
    Race& race = *static_cast<Race*>(context);
    // Or, on a busy machine, one may be done before another begins. Relaxed, to order nothing else.
    race.workers.fetch_add(1, std::memory_order_relaxed);
    while (race.workers.load(std::memory_order_relaxed) < 2) std::this_thread::yield();
    for (int64_t task; queue.take(&task);) race.sum += task;
    race.sum += 1;
  };
  run_workers(1000, kWorkers, worker, &race);
  std::printf("raced to %lld\n", static_cast<long long>(race.sum));
}

}  // namespace
}  // namespace vitadapter

int main(int argc, char** argv) {
  using namespace vitadapter;
  if (argc > 1 && std::strcmp(argv[1], "race") == 0) return plant_race(), 0;
  const std::pair<const char*, Step> steps[] = {
      {"attention", attention({})},
      {"grid", attention({{11, 13}, {2, 3}})},
      {"convolution", convolution()},
      {"windows", windows()},
      {"norm", norm(false)},
      {"norm to planes", norm(true)},
      {"positions", positions()},
      {"rows", rows()},
      {"8 bits", int8()},
      {"16 bits", halves()},
      {"16 bits, convolution", half_convolution()},
#ifdef __x86_64__
      {"float16, windows",
       half_windows(has_avx512_fp16(), avx512fp16::window_attention_forward_half,
                    avx512fp16::window_attention_backward_half)},
      {"bfloat16, windows",
       half_windows(LowProducts().of_avx512_bf16, avx512bf16::window_attention_forward_half,
                    avx512bf16::window_attention_backward_half)},
#endif
      {"kept memory", kept_memory()}};
  for (const auto& [name, step] : steps) {
    if (!is_same_from_many_threads(step)) return std::printf("%s: results differ\n", name), 1;
  }
  std::puts("clean");
  return 0;
}
