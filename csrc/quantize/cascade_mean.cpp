#include "quantize/cascade_mean.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace dormant::quantization {
namespace {

// aten/src/ATen/native/cpu/SumKernel.cpp: a row is added to one of four running sums, each of them
// `kLanes` numbers wide; every so often they move up to a next level and start again, so that few
// small numbers are ever added to a large one.
template <size_t kLanes>
float row_sum(const float* values, int64_t n) {
  constexpr int kLevels = 4;
  constexpr size_t kRows = 4;
  constexpr size_t kWidth = kRows * kLanes;
  constexpr auto kStride = static_cast<int64_t>(kWidth);
  constexpr auto kVector = static_cast<int64_t>(kLanes);

  const int64_t rounds = n / kStride;
  const int ceil_log2 = rounds <= 2 ? 1 : std::bit_width(static_cast<uint64_t>(rounds - 1));
  const int level_bits = std::max(4, ceil_log2 / kLevels);
  const int64_t level_rounds = int64_t{1} << level_bits;

  float sums[kLevels][kWidth] = {};
  const auto add = [](float* to, const float* from, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      to[i] += from[i];
    }
  };
  const float* next = values;
  int64_t round = 0;
  while (round + level_rounds <= rounds) {
    for (int64_t i = 0; i < level_rounds; ++i, next += kStride) {
      add(sums[0], next, kWidth);
    }
    round += level_rounds;
    for (int level = 1; level < kLevels; ++level) {
      add(sums[level], sums[level - 1], kWidth);
      std::fill_n(sums[level - 1], kWidth, 0.0f);
      if ((round & ((level_rounds - 1) << (level * level_bits))) != 0) {
        break;
      }
    }
  }
  for (; round < rounds; ++round, next += kStride) {
    add(sums[0], next, kWidth);
  }
  for (int level = 1; level < kLevels; ++level) {
    add(sums[0], sums[level], kWidth);
  }

  const float* const end = values + n;
  for (; end - next >= kVector; next += kVector) {
    add(sums[0], next, kLanes);
  }
  for (size_t row = 1; row < kRows; ++row) {
    add(sums[0], sums[0] + row * kLanes, kLanes);
  }
  float sum = 0.0f;
  for (; next < end; ++next) {
    sum += *next;
  }
  for (size_t lane = 0; lane < kLanes; ++lane) {
    sum += sums[0][lane];
  }
  return sum;
}

// Eight lanes at every level of ATen: this kernel isn't built for AVX-512.
float serial_sum(const float* values, int64_t n) {
  return n < 8 ? row_sum<1>(values, n) : row_sum<8>(values, n);
}

}  // namespace

float cascade_mean(const float* values, int64_t n, int threads) {
  // aten/src/ATen/native/TensorIteratorReduce.cpp: with several threads each sums a part into its
  // own slot, then the slots are summed. at::internal::GRAIN_SIZE is public, but a number of
  // ATen's that this copies nevertheless: it decides about bits.
  constexpr int64_t kGrain = 32768;
  if (n < kGrain || threads <= 1) {
    return serial_sum(values, n) / static_cast<float>(n);
  }
  const int64_t parts = std::min<int64_t>(threads, (n + kGrain - 1) / kGrain);
  const int64_t part = (n + parts - 1) / parts;
  std::vector<float> sums(static_cast<size_t>(threads), 0.0f);
  for (int64_t i = 0; i * part < n; ++i) {
    sums[static_cast<size_t>(i)] = serial_sum(values + i * part, std::min(part, n - i * part));
  }
  return serial_sum(sums.data(), threads) / static_cast<float>(n);
}

}  // namespace dormant::quantization
