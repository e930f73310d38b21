// For tests of decoders: that any range of the result is what it is in the whole.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "record/decoder.h"

namespace dormant::decode {

/// A tensor that was decoded in one go, with what the decoder says about its parts checked.
inline at::Tensor decoded(const record::Decoder& decoder, const std::vector<at::Tensor>& parts) {
  const auto expected = decoder.parts();
  EXPECT_EQ(expected.size(), parts.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    EXPECT_EQ(expected[i], record::Geometry::of(parts[i])) << "part " << i;
  }
  const auto output = decoder.output();
  const auto result = at::empty(output.sizes, output.dtype);
  record::run_range(decoder, parts, 0, result.numel(), result.mutable_data_ptr());
  return result;
}

/// Decodes some ranges, those at the ends among them.
inline void expect_ranges(const record::Decoder& decoder, const std::vector<at::Tensor>& parts,
                          const at::Tensor& whole, unsigned seed = 1) {
  const auto flat = whole.flatten();
  const auto unit = decoder.unit();
  const auto units = (flat.numel() + unit - 1) / unit;
  std::mt19937 engine(seed);
  for (int i = 0; i < 100; ++i) {
    auto first = static_cast<int64_t>(engine() % static_cast<uint64_t>(units));
    auto last = first + static_cast<int64_t>(engine() % static_cast<uint64_t>(units - first));
    if (i % 2 == 0) {
      last = std::min(last, first + 3);
    }
    first = i == 0 ? 0 : first;
    last = i == 1 ? units - 1 : last;
    const auto begin = first * unit;
    const auto count = std::min((last + 1) * unit, flat.numel()) - begin;
    const auto out = at::full({count + 1}, -77, flat.scalar_type());
    record::run_range(decoder, parts, begin, count, out.mutable_data_ptr());
    ASSERT_TRUE(out.narrow(0, 0, count).equal(flat.narrow(0, begin, count)))
        << decoder.name() << ": elements " << begin << " to " << begin + count << ", seed " << seed;
    ASSERT_EQ(out[count].item<float>(), -77) << decoder.name();
  }
}

/// Whether `make` is refused with a message that has `text` in it.
template <class Make>
void expect_refused(const Make& make, const char* text) {
  try {
    make();
    ADD_FAILURE() << "nothing was refused; expected " << text;
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

}  // namespace dormant::decode
