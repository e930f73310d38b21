// For tests: a decoder gives the same elements whatever range is asked for.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "record/decoder.h"

namespace dormant::decode {

/// Random bytes as a part of these sizes.
inline at::Tensor random_part(const record::Geometry& geometry, uint64_t seed) {
  std::vector<int64_t> sizes(geometry.sizes.begin(), geometry.sizes.end());
  auto part = at::empty(sizes, at::TensorOptions().dtype(geometry.dtype));
  auto* bytes = static_cast<uint8_t*>(part.mutable_data_ptr());
  uint64_t state = seed * 2 + 1;
  for (size_t i = 0; i < part.nbytes(); ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    bytes[i] = static_cast<uint8_t>(state >> 56);
  }
  return part;
}

inline std::vector<at::Tensor> random_parts(const record::Decoder& decoder) {
  std::vector<at::Tensor> parts;
  for (const auto& geometry : decoder.parts()) {
    parts.push_back(random_part(geometry, parts.size() + 1));
  }
  return parts;
}

/// Elements [begin, end) of the result, as bytes.
inline std::string range_of(const record::Decoder& decoder, c10::ArrayRef<at::Tensor> parts,
                            int64_t begin, int64_t end) {
  const auto width = static_cast<int64_t>(c10::elementSize(decoder.output().dtype));
  std::string bytes(static_cast<size_t>((end - begin) * width), '\x55');
  record::run_range(decoder, parts, begin, end - begin, bytes.data());
  return bytes;
}

/// Compares ranges of many lengths with the whole result, which is returned.
inline std::string check_ranges(const record::Decoder& decoder, c10::ArrayRef<at::Tensor> parts) {
  const int64_t numel = decoder.output().numel();
  const int64_t unit = decoder.unit();
  const auto width = static_cast<int64_t>(c10::elementSize(decoder.output().dtype));
  auto whole = range_of(decoder, parts, 0, numel);
  for (int64_t units = 1; units * unit < 2 * numel; units += 1 + units / 2) {
    for (int64_t begin = 0; begin < numel; begin += units * unit) {
      const int64_t end = std::min(begin + units * unit, numel);
      EXPECT_EQ(range_of(decoder, parts, begin, end),
                whole.substr(static_cast<size_t>(begin * width),
                             static_cast<size_t>((end - begin) * width)))
          << decoder.name() << ": " << begin << " to " << end << " of " << numel;
    }
  }
  return whole;
}

}  // namespace dormant::decode
