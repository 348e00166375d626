// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Vec<float> of aarch64: two registers of NEON, which every such processor has.
#pragma once

#include <arm_neon.h>

#include "common/simd_portable.h"

namespace vitadapter::VITADAPTER_ISA {

template <>
struct Vec<float> {
  static constexpr int kLanes = 8;
  float32x4_t low, high;

  static Vec set(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
  static Vec load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
  static Vec load(const BFloat16* from) {
    const uint16x8_t bits = vld1q_u16(reinterpret_cast<const uint16_t*>(from));
    return {vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vget_low_u16(bits)), 16)),
            vreinterpretq_f32_u32(vshlq_n_u32(vmovl_high_u16(bits), 16))};
  }
  static Vec load(const Half* from) {
    const float16x8_t halves =
        vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(from)));
    return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
  }
  void store(float* to) const {
    vst1q_f32(to, low);
    vst1q_f32(to + 4, high);
  }
  void store(BFloat16* to) const {
    vst1q_u16(reinterpret_cast<uint16_t*>(to), vcombine_u16(rounded(low), rounded(high)));
  }
  void store(Half* to) const {
    vst1q_u16(reinterpret_cast<uint16_t*>(to),
              vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(low), high)));
  }
  friend Vec operator+(Vec a, Vec b) {
    return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
  }
  friend Vec operator-(Vec a, Vec b) {
    return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
  }
  friend Vec operator*(Vec a, Vec b) {
    return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
  }
  friend Vec operator/(Vec a, Vec b) {
    return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
  }
  static Vec fma(Vec a, Vec b, Vec c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
  }
  static Vec floor(Vec a) { return {vrndmq_f32(a.low), vrndmq_f32(a.high)}; }
  // Not vminq_f32 and vmaxq_f32: they give NaN where either is.
  static Vec min(Vec a, Vec b) {
    return {vbslq_f32(vcltq_f32(a.low, b.low), a.low, b.low),
            vbslq_f32(vcltq_f32(a.high, b.high), a.high, b.high)};
  }
  static Vec max(Vec a, Vec b) {
    return {vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low),
            vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
  }
  static Vec keep_if_greater(Vec test, Vec bound, Vec a) {
    return {kept(vcgtq_f32(test.low, bound.low), a.low),
            kept(vcgtq_f32(test.high, bound.high), a.high)};
  }
  static Vec drop_if_at_most(Vec test, Vec bound, Vec a) {
    return {kept(vmvnq_u32(vcleq_f32(test.low, bound.low)), a.low),
            kept(vmvnq_u32(vcleq_f32(test.high, bound.high)), a.high)};
  }
  void store_int(int32_t* to) const {
    vst1q_s32(to, vcvtq_s32_f32(low));
    vst1q_s32(to + 4, vcvtq_s32_f32(high));
  }
  static void load_pairs(const float* from, Vec* x, Vec* y) {
    const float32x4x2_t first = vld2q_f32(from), second = vld2q_f32(from + 8);
    *x = {first.val[0], second.val[0]};
    *y = {first.val[1], second.val[1]};
  }
  static void store_pairs(float* to, Vec x, Vec y) {
    vst2q_f32(to, {x.low, y.low});
    vst2q_f32(to + 8, {x.high, y.high});
  }
  static void load_rows(const float* from, Vec row[4]) {
    const float32x4x4_t first = vld4q_f32(from), second = vld4q_f32(from + 16);
    for (int k = 0; k < 4; ++k) row[k] = {first.val[k], second.val[k]};
  }
  static void transpose(Vec rows[8]) {
    float32x4_t a[4], b[4], c[4], d[4];  // a b; c d: the quarters of the square
    for (int i = 0; i < 4; ++i) {
      a[i] = rows[i].low, b[i] = rows[i].high;
      c[i] = rows[i + 4].low, d[i] = rows[i + 4].high;
    }
    for (float32x4_t* square : {a, b, c, d}) transpose_square(square);
    for (int i = 0; i < 4; ++i) {
      rows[i] = {a[i], c[i]};
      rows[i + 4] = {b[i], d[i]};
    }
  }
  static void add_sums(const Vec v[4], float* to) {
    float32x4_t sum[4];
    for (int k = 0; k < 4; ++k) sum[k] = vaddq_f32(v[k].low, v[k].high);
    const float32x4_t sums = vpaddq_f32(vpaddq_f32(sum[0], sum[1]), vpaddq_f32(sum[2], sum[3]));
    vst1q_f32(to, vaddq_f32(vld1q_f32(to), sums));
  }
  static Vec nearest(Vec a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
  static Vec power_of_2(Vec n) { return {power_of_2(n.low), power_of_2(n.high)}; }
  static Vec exp(Vec a) { return exp_of(a); }
  static Vec scale(Vec a, Vec exponent) {
    return {scaled(a.low, exponent.low), scaled(a.high, exponent.high)};
  }

 private:
  static float32x4_t kept(uint32x4_t where, float32x4_t a) {
    return vreinterpretq_f32_u32(vandq_u32(where, vreinterpretq_u32_f32(a)));
  }
  // To the nearest, of two the even one; NaN stays NaN.
  static uint16x4_t rounded(float32x4_t v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t near = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t nan = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), near, nan), 16);
  }
  static float32x4_t power_of_2(float32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
  }
  static float32x4_t scaled(float32x4_t a, float32x4_t exponent) {
    const uint32x4_t n = vshlq_n_u32(vreinterpretq_u32_f32(exponent), 23);
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a), n));
  }
  static void transpose_square(float32x4_t rows[4]) {
    const float32x4_t a = vzip1q_f32(rows[0], rows[2]), b = vzip2q_f32(rows[0], rows[2]);
    const float32x4_t c = vzip1q_f32(rows[1], rows[3]), d = vzip2q_f32(rows[1], rows[3]);
    rows[0] = vzip1q_f32(a, c), rows[1] = vzip2q_f32(a, c);
    rows[2] = vzip1q_f32(b, d), rows[3] = vzip2q_f32(b, d);
  }
};

}  // namespace vitadapter::VITADAPTER_ISA
