// Against what bitsandbytes 0.50 makes of the same numbers; tests/cpp/ compares many more.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <dormant/checkpoint.h>
#include <dormant/dormant.h>
#include <dormant/quantize.h>
#include <dormant/save.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/scratch_folder.h"

namespace dormant {
namespace {

using checkpoint::contains;
using checkpoint::message_of;
using checkpoint::ScratchFolder;

/// 3 blocks of 64 and a short one, in 10 rows.
at::Tensor numbers() {
  return (((at::arange(200) * 37).remainder(101) - 50).to(at::kFloat) / 64).reshape({10, 20});
}

std::string hexadecimal(const at::Tensor& tensor) {
  const auto* bytes = static_cast<const uint8_t*>(tensor.const_data_ptr());
  constexpr const char* kDigits = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < tensor.nbytes(); ++i) {
    text += kDigits[bytes[i] >> 4];
    text += kDigits[bytes[i] & 15];
  }
  return text;
}

constexpr const char* kNf4 =
    "04c16e29f3b05d17e29f3c05d18e2af4c16e18e3b05d17e29f3b05d18e2af4c16d18e3b04c17e29f3b05d17e"
    "2af4c06d18e2a04c16e29f3b05d17e29f3c05d18e2af4c16e18e3b05d17e29f3b05d18e2af4c16d18e3b04c1"
    "7e29f3b05d17e2af3c05e18f";
constexpr const char* kFp4 =
    "bf5a92a63c4be5a02d63c4be2a12d73f5a92a63d4bf5a92d63c4be5a12d73c5be2a63d4bf5a92d63c4be5a12"
    "d73c5be2a12d7bf5a92a63c4be5a02d63c4be2a12d73f5a92a63d4bf5a92d63c4be5a12d73c5be2a63d4bf5a"
    "92d63c4be5a12d73c5be2a63";
constexpr const char* kAbsmax = "0000483f0000483f0000483f00002c3f";
constexpr const char* kNestedCodes = "cfcfcf00";
constexpr const char* kNestedAbsmax = "0000a83d";
constexpr const char* kOffset = "0000413f";
constexpr const char* kInt8 =
    "81df3d9af856b41270cd2b89e745a2005ebb1977d53390ee4caa0866c3217fdc3a98f654b10f6dcb2a81e345"
    "9bfd5fb6187ad03289eb4da30567be207fd93993f353ad0d6dc72781e1419bfb5bb51575ce3086e84aa10365"
    "bb1d7fd6388ef052a90b6cc32481df3d9af856b41270cd2b89e745a2005ebb1977d53390ee4caa0866c3217f"
    "dc3a98f654b10f6dc82a81e3459bfd5fb6187ad03289eb4da30567be1f7fd93993f353ad0d6dc72781e1419b"
    "fb5bb51577ce3086e84aa10365bb1d7fd6388ef052a90b6c";
constexpr const char* kScb =
    "0000483f0000483f0000403f0000443f0000403f0000483f0000483f0000403f0000443f0000403f";
constexpr const char* kState =
    R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [10, 20], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.75390625})";

TEST(Quantize, FourBitsAreThoseOfBitsandbytes) {
  for (const auto& [kind, codes] :
       {std::pair(FourBitKind::nf4, kNf4), std::pair(FourBitKind::fp4, kFp4)}) {
    const auto plain = quantize(numbers(), FourBit{.kind = kind, .nested = false});
    EXPECT_EQ(hexadecimal(plain.codes), codes);
    EXPECT_EQ(hexadecimal(plain.absmax), kAbsmax);
    EXPECT_EQ(plain.codes.sizes(), (at::IntArrayRef{100, 1}));
    EXPECT_FALSE(plain.offset.defined());
    const auto nested = quantize(numbers(), FourBit{.kind = kind});
    EXPECT_EQ(hexadecimal(nested.codes), codes);
    EXPECT_EQ(hexadecimal(nested.absmax), kNestedCodes);
    EXPECT_EQ(hexadecimal(nested.nested_absmax), kNestedAbsmax);
    EXPECT_EQ(hexadecimal(nested.offset), kOffset);
  }
}

TEST(Quantize, EightBitsAreThoseOfBitsandbytes) {
  const auto quantized = quantize(numbers(), Int8{});
  EXPECT_EQ(hexadecimal(quantized.codes), kInt8);
  EXPECT_EQ(hexadecimal(quantized.absmax), kScb);
}

TEST(Quantize, OfALazyTensorEverythingIsLazyAndTheSame) {
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    const auto build = [&] {
      at::manual_seed(3);
      return at::randn({96, 40}).to(dtype);
    };
    at::Tensor lazy;
    {
      const LazyInit guard;
      lazy = build();
    }
    const auto real = build();
    const auto check = [](const Quantized& found, const Quantized& expected) {
      for (const auto& each : found.tensors()) {
        EXPECT_TRUE(is_lazy(each));
      }
      materialize(found.tensors());
      const auto [one, other] = std::pair(found.tensors(), expected.tensors());
      ASSERT_EQ(one.size(), other.size());
      for (size_t i = 0; i < one.size(); ++i) {
        EXPECT_FALSE(is_lazy(other[i]));
        EXPECT_EQ(hexadecimal(one[i]), hexadecimal(other[i])) << i;
      }
    };
    check(quantize(lazy, FourBit{}), quantize(real, FourBit{}));
    check(quantize(lazy.t(), FourBit{.block_size = 32}),
          quantize(real.t(), FourBit{.block_size = 32}));
    check(quantize(lazy, Int8{}), quantize(real, Int8{}));
    EXPECT_TRUE(is_lazy(lazy));
  }
}

TEST(Quantize, WorksWhileRecordingAndAsksForNoGradient) {
  auto weight = numbers().requires_grad_(true);
  const LazyInit guard;
  const auto quantized = quantize(weight, FourBit{});
  EXPECT_FALSE(is_lazy(quantized.codes));
  EXPECT_FALSE(quantized.codes.requires_grad());
  EXPECT_EQ(hexadecimal(quantized.codes), kNf4);
}

TEST(Quantize, AStateDictOfBitsandbytesIsReadBack) {
  const ScratchFolder folder;
  at::Tensor lazy;
  {
    const LazyInit guard;
    lazy = numbers().to(at::kBFloat16);
  }
  const auto quantized = quantize(lazy, FourBit{});
  const auto state = quantized.named_tensors("0.weight");
  EXPECT_TRUE(is_lazy(quantized.codes));
  ASSERT_EQ(state.size(), 6u);
  const auto& [name, text] = state.back();
  EXPECT_EQ(name, "0.weight.quant_state.bitsandbytes__nf4");
  const std::string said(static_cast<const char*>(text.const_data_ptr()), text.nbytes());
  EXPECT_EQ(said, kState);
  save(state, folder.path("m.safetensors"));
  const auto read = open_checkpoint(folder.path("m.safetensors"))["0.weight"];
  EXPECT_EQ(read.sizes(), lazy.sizes());
  EXPECT_EQ(read.scalar_type(), at::kBFloat16);
  // Half of the widest gap between two codes.
  EXPECT_LT((read.to(at::kFloat) - numbers()).abs().max().item<float>(), 0.16f);

  const auto eight = quantize(lazy, Int8{}).named_tensors("a.b.weight");
  ASSERT_EQ(eight.size(), 3u);
  EXPECT_EQ(eight[1].first, "a.b.SCB");
  EXPECT_EQ(eight[2].first, "a.b.weight_format");
}

TEST(Quantize, WhatCannotBeQuantizedIsRefused) {
  EXPECT_TRUE(contains(message_of<c10::ValueError>([] { quantize(at::ones({3}, at::kDouble)); }),
                       "expected float32, bfloat16 or float16"));
  EXPECT_TRUE(contains(message_of<c10::ValueError>([] { quantize(at::ones({0, 3})); }),
                       "expected at least one element"));
  EXPECT_THROW(quantize(at::Tensor()), c10::ValueError);
  EXPECT_THROW(quantize(at::ones({3}), FourBit{.block_size = 48}), c10::ValueError);
  EXPECT_THROW(quantize(at::ones({3}), Int8{}), c10::ValueError);
  EXPECT_THROW(quantize(at::eye(3).to_sparse()), c10::NotImplementedError);
  EXPECT_THROW(quantize(at::ones({3}, at::kMeta)), c10::NotImplementedError);
}

TEST(QuantizeThreads, TwoMayQuantizeAndMaterializeOneTensor) {
  at::Tensor lazy;
  {
    const LazyInit guard;
    lazy = at::ones({256, 64}).mul(0.5);
  }
  std::array<std::string, 2> codes;
  const auto work = [&](size_t i) {
    const auto quantized = quantize(lazy, FourBit{.nested = false});
    materialize(quantized.tensors());
    codes[i] = hexadecimal(quantized.codes);
  };
  std::thread one(work, 0);
  std::thread two(work, 1);
  one.join();
  two.join();
  EXPECT_EQ(codes[0], codes[1]);
  EXPECT_EQ(codes[0],
            hexadecimal(quantize(at::full({256, 64}, 0.5), FourBit{.nested = false}).codes));
}

}  // namespace
}  // namespace dormant
