// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// The gradient of a 3 x 3 convolution's weights: for each row and column of the kernels a matrix
// product over all pixels. A task packs the map once for each column of the kernels, so that two
// pixels side by side are those of the gradient, and with stride 2 once for even and for odd rows;
// then a row of the kernels is an offset of whole rows of pixels. Each channel has a factor of its
// own in each band. 64 channels to 64 of [256, 256] in bfloat16, on two cores of an Intel Xeon
// (model 207): 11.7 ms; copies to float32 and oneDNN 3 and 16.7.
#include <cstring>

#include "common/half_columns.h"
#include "common/half_tile.h"
#include "common/scratch.h"
#include "common/workers.h"
#include "half_conv/gradient_layout.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int64_t kChunk = 3 * kSteps;  // groups of three blocks that stay in L1
constexpr int64_t kMostSums = 4096;     // of a task that adds parts

struct Task {
  const HalfConvGradientParams& p;
  HalfConvGradientLayout layout;
};

template <typename X, typename G>
class Worker {
 public:
  explicit Worker(const Task& task)
      : p_(task.p),
        layout_(task.layout),
        channel_blocks_(ceil_div(p_.num_inputs, kRightRows)),
        zeros_(most_channels()),
        map_pixels_((layout_.rows + 2) * layout_.width),
        grad_pixels_(layout_.rows * layout_.width),
        maps_(p_.stride * plane_bytes()),
        grads_(ceil_div(HalfConvGradientLayout::kMostChannels, kLeftRows) *
               Halves::bytes(groups(layout_.rows), kLeftRows)),
        columns_((layout_.rows + 2) * layout_.width, ceil_div(most_channels(), kRightRows)) {}

  void run(TaskQueue& queue) {
    for (int64_t index; queue.take(&index);) {
      const int64_t part = index / layout_.strips;
      const int64_t first = index % layout_.strips * layout_.kMostChannels;
      const int64_t channels = least(layout_.kMostChannels, p_.num_outputs - first);
      float* const sums = p_.parts + part * layout_.part_numbers + first * 9 * p_.num_inputs;
      std::memset(sums, 0, channels * 9 * p_.num_inputs * sizeof *sums);
      const int64_t end = (part + 1) * layout_.bands / layout_.parts;
      for (int64_t band = part * layout_.bands / layout_.parts; band < end; ++band)
        add_band(band, first, channels, sums);
    }
  }

 private:
  int64_t most_channels() const {
    return p_.num_inputs > p_.num_outputs ? p_.num_inputs : p_.num_outputs;
  }
  int64_t groups(int64_t rows) const { return Halves::groups_of(rows * layout_.width); }
  int64_t plane_bytes() const {
    return 3 * channel_blocks_ * Halves::bytes(groups(layout_.rows + 2), kRightRows);
  }

  void add_band(int64_t band, int64_t channel, int64_t channels, float* sums) {
    const int64_t image = band / layout_.bands_of_image;
    const int64_t first = band % layout_.bands_of_image * layout_.rows;
    const int64_t rows = least(layout_.rows, layout_.out_h - first);
    const Halves grad{grads_, groups(rows), kLeftRows};
    pack_grad(image, first, rows, channel, channels, grad);
    Halves planes[2];
    for (int64_t plane = 0; plane < p_.stride; ++plane) {
      const int64_t plane_rows = rows + (2 - plane) / p_.stride;
      planes[plane] = {maps_ + plane * plane_bytes(), groups(plane_rows), kRightRows};
      pack_map(image, first * p_.stride + plane - 1, plane_rows, planes[plane]);
    }
    for (int64_t dy = 0; dy < 3; ++dy) {
      const Halves& map = planes[dy % p_.stride];
      const int64_t offset = dy / p_.stride * layout_.width / 2;
      float* const to = sums + dy * 3 * p_.num_inputs;
      over_blocks(3 * channel_blocks_, [&](auto many, int64_t block) {
        for (int64_t g = 0; g < rows * layout_.width / 2; g += kChunk) {
          const int64_t count = least(kChunk, rows * layout_.width / 2 - g);
          for (int64_t c = 0; c < channels; c += kLeftRows)
            add_products<many>(grad.block(c / kLeftRows), g, map, block, offset + g, count,
                               least(kLeftRows, channels - c), to + c * 9 * p_.num_inputs);
        }
      });
    }
  }

  void pack_grad(int64_t image, int64_t first, int64_t rows, int64_t channel, int64_t channels,
                 const Halves& out) {
    const G** const pixels = grad_pixels_;
    for (int64_t i = 0; i < rows * layout_.width; ++i) {
      const int64_t y = first + i / layout_.width, x = i % layout_.width;
      pixels[i] = x < layout_.out_w ? static_cast<const G*>(p_.grad) + image * p_.grad_stride_b +
                                          y * p_.grad_stride_h + x * p_.num_outputs + channel
                                    : zeros<G>();
    }
    columns_.pack(channels, rows * layout_.width, kLeftExponent, nullptr, out,
                  [&](int64_t i) { return pixels[i]; });
  }

  // Every stride-th row of the map from `first`, for each column of the kernels all channels.
  void pack_map(int64_t image, int64_t first, int64_t rows, const Halves& out) {
    const X** const pixels = map_pixels_;
    for (int64_t dx = 0; dx < 3; ++dx) {
      for (int64_t i = 0; i < rows * layout_.width; ++i) {
        const int64_t column = i % layout_.width;
        const int64_t y = first + i / layout_.width * p_.stride;
        const int64_t x = column * p_.stride + dx - 1;
        const bool is_there =
            column < layout_.out_w && y >= 0 && y < p_.hw.h && x >= 0 && x < p_.hw.w;
        pixels[i] = is_there ? static_cast<const X*>(p_.x) + image * p_.stride_b + y * p_.stride_h +
                                   x * p_.num_inputs
                             : zeros<X>();
      }
      columns_.pack(p_.num_inputs, rows * layout_.width, kRightExponent, nullptr,
                    out.block(dx * channel_blocks_), [&](int64_t i) { return pixels[i]; });
    }
  }

  // Some groups of eight channels of the gradient times blocks of the map; all to one row of the
  // kernels.
  template <int kBlocks>
  void add_products(const Halves& grad, int64_t grad_group, const Halves& map, int64_t block,
                    int64_t map_group, int64_t count, int64_t channels, float* to) const {
    const Halves right = map.block(block);
    HalfTile<kBlocks> tile;
    for (int64_t g = 0; g < count; g += kSteps)
      tile.add(grad.data + (grad_group + g) * grad.step(), 4, grad.step(),
               right.data + (map_group + g) * right.step(), Halves::bytes(right.groups, kRightRows),
               least(kSteps, count - g), 1);
    for (int b = 0; b < kBlocks; ++b) {
      const int64_t column = (block + b) / channel_blocks_;
      const int64_t k = (block + b) % channel_blocks_ * kRightRows;
      const __mmask16 lanes = first_lanes(p_.num_inputs - k);
      const __m512 scale = _mm512_loadu_ps(map.block(block + b).inverse());
      for (int r = 0; r < channels; ++r) {
        float* const sums = to + (r * 9 + column) * p_.num_inputs + k;
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(grad.inverse()[r]));
        store(sums, lanes, _mm512_fmadd_ps(tile.sums(r, b), both, load(sums, lanes)));
      }
    }
  }

  template <typename T>
  const T* zeros() {
    return reinterpret_cast<const T*>(static_cast<float*>(zeros_));
  }

  const HalfConvGradientParams& p_;
  const HalfConvGradientLayout& layout_;
  const int64_t channel_blocks_;
  Scratch<float> zeros_;
  Scratch<const X*> map_pixels_;
  Scratch<const G*> grad_pixels_;
  Scratch<uint8_t> maps_, grads_;
  ColumnPacker columns_;
};

template <typename X, typename G>
void multiply(void* context, TaskQueue& queue) {
  Worker<X, G>(*static_cast<const Task*>(context)).run(queue);
}

void add_parts(void* context, TaskQueue& queue) {
  const Task& task = *static_cast<const Task*>(context);
  const int64_t all = task.layout.part_numbers;
  for (int64_t index; queue.take(&index);) {
    const int64_t end = least((index + 1) * kMostSums, all);
    for (int64_t i = index * kMostSums; i < end; i += 16) {
      const __mmask16 lanes = first_lanes(end - i);
      __m512 sum = _mm512_setzero_ps();
      for (int64_t part = 0; part < task.layout.parts; ++part)
        sum = _mm512_add_ps(sum, load(task.p.parts + part * all + i, lanes));
      store(task.p.out + i, lanes, sum);
    }
  }
}

}  // namespace

void half_conv_gradient(const HalfConvGradientParams& p) {
  Task task{p, HalfConvGradientLayout(p)};
  with_numbers(p.x_dtype, p.x, [&](auto* x) {
    with_numbers(p.grad_dtype, p.grad, [&](auto* grad) {
      using X = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
      using G = std::remove_const_t<std::remove_pointer_t<decltype(grad)>>;
      run_workers(task.layout.parts * task.layout.strips, p.num_threads, multiply<X, G>, &task);
    });
  });
  run_workers(ceil_div(task.layout.part_numbers, kMostSums), p.num_threads, add_parts, &task);
}

}  // namespace vitadapter::VITADAPTER_ISA
