#include "record/source_node.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace dormant::record {
namespace {

/// Bytes that count up from the offset.
class Counting final : public Source {
 public:
  void read(uint64_t offset, size_t count, void* out) const override {
    for (size_t i = 0; i < count; ++i) {
      static_cast<unsigned char*>(out)[i] = static_cast<unsigned char>(offset + i);
    }
  }
  const std::string& name() const override { return name_; }

 private:
  const std::string name_ = "numbers";
};

/// Keeps the sign of each element, as a byte, and how many threads it was told of.
class Signs final : public Quantizer {
 public:
  std::vector<Geometry> outputs(c10::IntArrayRef sizes) const override {
    return {Geometry::contiguous(sizes, at::kChar), Geometry::contiguous({1}, at::kInt)};
  }
  std::vector<Geometry> scratch(c10::IntArrayRef) const override { return {}; }
  int64_t unit(c10::IntArrayRef) const override { return 1; }
  int64_t packed_bytes(int64_t count) const override { return count; }
  void run(const void* source, c10::ScalarType, c10::IntArrayRef, int64_t, int64_t count,
           c10::ArrayRef<void*> memory) const override {
    for (int64_t i = 0; i < count; ++i) {
      const auto value = static_cast<const float*>(source)[i];
      static_cast<int8_t*>(memory[0])[i] = value < 0 ? -1 : 1;
    }
  }
  void finish(c10::IntArrayRef, int threads, c10::ArrayRef<void*> memory) const override {
    std::memcpy(memory[1], &threads, sizeof(threads));
  }
  std::string name() const override { return "signs"; }
};

at::Tensor alternating() { return at::tensor({1.0F, -2.0F, 3.0F, -4.0F}); }

at::Tensor lazy_alternating() { return read_of(alternating()); }

TEST(SourceNode, AReadTensorHasTheBytesOfItsSource) {
  const auto tensor = make_read_tensor(std::make_shared<Counting>(), 5, {2, 3}, at::kByte);
  EXPECT_TRUE(is_lazy(tensor));
  dormant::materialize(tensor);
  EXPECT_TRUE(tensor.equal(at::arange(5, 11, at::kByte).view({2, 3})));
}

TEST(SourceNode, ARangeThatIsNoWholeNumberOfElementsIsRefused) {
  EXPECT_THROW(make_read_storage(std::make_shared<Counting>(), 0, 6, at::kFloat), c10::ValueError);
}

TEST(SourceNode, ReadOfKeepsTheMemoryOfAViewAlive) {
  auto tensor = at::arange(8, at::kFloat);
  const auto lazy = read_of(tensor.slice(0, 2, 6));
  tensor = at::Tensor();
  EXPECT_TRUE(is_lazy(lazy));
  dormant::materialize(lazy);
  EXPECT_TRUE(lazy.equal(at::arange(2, 6, at::kFloat)));
}

TEST(SourceNode, ReadOfWhatIsLazyIsThatItself) {
  const auto lazy = lazy_alternating();
  EXPECT_TRUE(read_of(lazy).is_same(lazy));
}

TEST(SourceNode, ReadOfRefusesWhatIsNotContiguous) {
  EXPECT_THROW(read_of(at::zeros({2, 3}).t()), c10::ValueError);
}

TEST(SourceNode, QuantizingALazyTensorIsRecorded) {
  const auto source = lazy_alternating();
  const auto outputs = quantize(source, std::make_shared<Signs>());
  ASSERT_EQ(outputs.size(), 2U);
  EXPECT_TRUE(is_lazy(outputs[0]));
  dormant::materialize(outputs);
  EXPECT_TRUE(outputs[0].equal(at::tensor({1, -1, 1, -1}, at::kChar)));
  EXPECT_EQ(outputs[1].item<int>(), at::get_num_threads());
  EXPECT_TRUE(is_lazy(source));
}

TEST(SourceNode, QuantizingARealTensorIsDoneAtOnce) {
  const auto outputs = quantize(alternating(), std::make_shared<Signs>());
  EXPECT_FALSE(is_lazy(outputs[0]));
  EXPECT_TRUE(outputs[0].equal(at::tensor({1, -1, 1, -1}, at::kChar)));
}

TEST(SourceNode, OutputsOfAnEarlierCallGetTheNewHistory) {
  const auto quantizer = std::make_shared<Signs>();
  const auto outputs = quantize(lazy_alternating(), quantizer);
  const auto again = quantize(read_of(alternating().neg()), quantizer, outputs);
  EXPECT_TRUE(again[0].is_same(outputs[0]));
  dormant::materialize(outputs);
  EXPECT_TRUE(outputs[0].equal(at::tensor({-1, 1, -1, 1}, at::kChar)));
}

TEST(SourceNode, QuantizingRefusesOutputsWithMemoryOrTooSmall) {
  const auto quantizer = std::make_shared<Signs>();
  const auto outputs = quantize(lazy_alternating(), quantizer);
  const auto longer = read_of(at::ones({9}));
  EXPECT_THROW(quantize(longer, quantizer, outputs), c10::ValueError);
  dormant::materialize(outputs);
  EXPECT_THROW(quantize(lazy_alternating(), quantizer, outputs), c10::ValueError);
}

TEST(SourceNode, QuantizingRefusesOtherDtypes) {
  EXPECT_THROW(quantize(alternating().to(at::kDouble), std::make_shared<Signs>()), c10::ValueError);
}

}  // namespace
}  // namespace dormant::record
