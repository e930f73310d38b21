#include "record/quantizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "exhausted_memory.h"
#include "record/eager_comparison.h"

namespace dormant::record {
namespace {

using at::Tensor;

constexpr int64_t kUnit = 6;

struct Elements {
  int64_t begin;
  int64_t count;
};

/// Two elements to a byte, in units of six: the signs of both. A second output has the largest
/// magnitude of each unit, which is collected in scratch first, and a third how many threads
/// `finish` was told of.
class Signs final : public Quantizer {
 public:
  std::vector<Geometry> outputs(c10::IntArrayRef sizes) const override {
    const auto numel = c10::multiply_integers(sizes);
    TORCH_CHECK_VALUE(numel % 2 == 0, "signs: ", numel, " elements are not even");
    return {Geometry::contiguous({packed_bytes(numel)}, at::kByte),
            Geometry::contiguous({units(numel)}, at::kFloat), Geometry::contiguous({1}, at::kLong)};
  }
  std::vector<Geometry> scratch(c10::IntArrayRef sizes) const override {
    return {Geometry::contiguous({units(c10::multiply_integers(sizes))}, at::kDouble)};
  }
  int64_t unit(c10::IntArrayRef) const override { return kUnit; }
  int64_t packed_bytes(int64_t count) const override { return count / 2; }

  void run(const void* source, c10::ScalarType dtype, c10::IntArrayRef sizes, int64_t begin,
           int64_t count, c10::ArrayRef<void*> memory) const override {
    const auto values = at::from_blob(const_cast<void*>(source), {count},  // NOLINT
                                      at::TensorOptions().dtype(dtype))
                            .to(at::kDouble);
    const auto* x = values.const_data_ptr<double>();
    for (int64_t i = 0; i < count; i += 2) {
      static_cast<uint8_t*>(memory[0])[i / 2] =
          static_cast<uint8_t>((x[i] < 0 ? 1 : 0) + (x[i + 1] < 0 ? 2 : 0));
    }
    for (int64_t i = 0; i < count; ++i) {
      auto& most = static_cast<double*>(memory[3])[(begin + i) / kUnit];
      most = i % kUnit == 0 ? std::abs(x[i]) : std::max(most, std::abs(x[i]));
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_early = finished_early || finishes > 0;
    seen_sizes.assign(sizes.begin(), sizes.end());
    calls.push_back({begin, count});
  }

  void finish(c10::IntArrayRef sizes, int threads, c10::ArrayRef<void*> memory) const override {
    for (int64_t i = 0; i < units(c10::multiply_integers(sizes)); ++i) {
      static_cast<float*>(memory[1])[i] =
          static_cast<float>(static_cast<const double*>(memory[3])[i]);
    }
    *static_cast<int64_t*>(memory[2]) = threads;
    ++finishes;
  }

  std::string name() const override { return "signs"; }

  static int64_t units(int64_t numel) { return (numel + kUnit - 1) / kUnit; }

  mutable std::vector<Elements> calls;
  mutable std::vector<int64_t> seen_sizes;
  mutable int finishes = 0;
  mutable bool finished_early = false;

 private:
  mutable std::mutex mutex_;
};

std::vector<Tensor> outputs_for(const Quantizer& quantizer, c10::IntArrayRef sizes) {
  std::vector<Tensor> outputs;
  for (const auto& geometry : quantizer.outputs(sizes)) {
    outputs.push_back(at::zeros(geometry.sizes, at::TensorOptions().dtype(geometry.dtype)));
  }
  return outputs;
}

/// What the outputs are to be, computed by PyTorch.
std::vector<Tensor> expected(const Tensor& source, int threads) {
  const auto flat = source.flatten().to(at::kFloat);
  const auto negative = flat.lt(0).to(at::kByte).view({-1, 2});
  const auto units = Signs::units(flat.numel());
  const auto padded = at::constant_pad_nd(flat, {0, units * kUnit - flat.numel()}, 0);
  return {negative.select(1, 0) + negative.select(1, 1) * 2,
          std::get<0>(padded.abs().view({units, kUnit}).max(1)), at::full({1}, threads, at::kLong)};
}

Tensor source_of(int64_t rows, int64_t columns, at::ScalarType dtype = at::kFloat) {
  auto generator = at::detail::createCPUGenerator(4);
  return at::empty({rows, columns}, dtype).normal_(0, 1, generator);
}

TEST(RunWhole, GivesTheOutputsOfAllElementsInEveryDtypeItTakes) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Signs quantizer;
    const auto source = source_of(77, 50, dtype);  // the last unit is incomplete
    const auto outputs = outputs_for(quantizer, source.sizes());
    run_whole(quantizer, source, outputs, 3);
    const auto wanted = expected(source, 3);
    for (size_t i = 0; i < outputs.size(); ++i) {
      EXPECT_TRUE(same_bits(outputs[i], wanted[i])) << i << " of " << dtype;
    }
    EXPECT_EQ(quantizer.seen_sizes, source.sizes());
  }
}

TEST(RunWholeThreads, EachElementIsQuantizedOnceInWholeUnitsAndThenAllAreFinishedOnce) {
  const exhausted::Threads threads(4);
  const Signs quantizer;
  const auto source = source_of(1001, 250);
  const auto outputs = outputs_for(quantizer, source.sizes());
  run_whole(quantizer, source, outputs, 1);
  auto calls = quantizer.calls;
  EXPECT_GT(calls.size(), 1U);
  std::sort(calls.begin(), calls.end(),
            [](const auto& a, const auto& b) { return a.begin < b.begin; });
  int64_t next = 0;
  for (const auto& [begin, count] : calls) {
    EXPECT_EQ(begin, next);
    EXPECT_EQ(begin % kUnit, 0);
    EXPECT_TRUE(count % kUnit == 0 || begin + count == source.numel()) << begin;
    next = begin + count;
  }
  EXPECT_EQ(next, source.numel());
  EXPECT_EQ(quantizer.finishes, 1);
  EXPECT_FALSE(quantizer.finished_early);
  EXPECT_TRUE(same_bits(outputs[0], expected(source, 1)[0]));
}

TEST(RunWhole, OfNothingIsFinishedAllTheSame) {
  const Signs quantizer;
  const auto source = at::empty({0, 4});
  const auto outputs = outputs_for(quantizer, source.sizes());
  run_whole(quantizer, source, outputs, 5);
  EXPECT_TRUE(quantizer.calls.empty());
  EXPECT_EQ(quantizer.finishes, 1);
  EXPECT_EQ(outputs[2].item<int64_t>(), 5);
}

/// What the refusal says; empty where it is accepted. Outputs must be as they were.
std::string refusal(const Tensor& source, const std::vector<Tensor>& outputs) {
  const Signs quantizer;
  std::vector<Tensor> before;
  for (const auto& output : outputs) {
    before.push_back(output.clone());
  }
  try {
    run_whole(quantizer, source, outputs, 1);
  } catch (const c10::ValueError& error) {
    EXPECT_TRUE(quantizer.calls.empty());
    EXPECT_EQ(quantizer.finishes, 0);
    for (size_t i = 0; i < outputs.size(); ++i) {
      EXPECT_TRUE(same_bits(outputs[i].contiguous(), before[i].contiguous())) << i;
    }
    return error.what_without_backtrace();
  }
  return "";
}

/// Whether `message` has all `parts`.
bool says(const std::string& message, const std::vector<std::string>& parts) {
  return std::all_of(parts.begin(), parts.end(),
                     [&](const auto& part) { return message.find(part) != std::string::npos; });
}

TEST(RunWhole, SourcesThatRunCannotTakeAreRefused) {
  const auto source = source_of(8, 12);
  const auto outputs = outputs_for(Signs(), source.sizes());
  const auto turned = refusal(source.t(), outputs);
  EXPECT_TRUE(says(turned, {"signs", "strides [1, 12]", "sizes [12, 8]", "contiguous"})) << turned;
  const auto meta = refusal(source.to(at::kMeta), outputs);
  EXPECT_TRUE(says(meta, {"signs", "meta", "CPU"})) << meta;
  for (const auto dtype : {at::kDouble, at::kInt, at::kComplexFloat, at::kFloat8_e4m3fn}) {
    const auto other = refusal(source.to(dtype), outputs);
    EXPECT_TRUE(says(other, {"signs", c10::toString(dtype), "float32, bfloat16 or float16"}))
        << other;
  }
  EXPECT_EQ(refusal(source_of(3, 5), outputs), "signs: 15 elements are not even");
}

TEST(RunWhole, OutputsOfAnotherGeometryAreRefused) {
  const auto source = source_of(8, 12);
  const auto right = outputs_for(Signs(), source.sizes());
  EXPECT_TRUE(says(refusal(source, {right[0], right[1]}), {"got 2 outputs, expected 3"}));
  const auto with = [&](size_t i, const Tensor& output) {
    auto outputs = right;
    outputs[i] = output;
    return refusal(source, outputs);
  };
  EXPECT_TRUE(says(with(0, at::zeros({47}, at::kByte)), {"output 0", "[47]", "[48]"}));
  EXPECT_TRUE(says(with(0, at::zeros({48}, at::kChar)), {"output 0", "Char", "Byte"}));
  EXPECT_TRUE(says(with(1, at::zeros({16, 2}).select(1, 0)), {"output 1", "strides [2]"}));
  EXPECT_EQ(refusal(source, right), "");
}

TEST(RunWhole, OutputsMayBeViewsAndNothingBesideThemIsWritten) {
  const Signs quantizer;
  const auto source = source_of(8, 12);
  auto outputs = outputs_for(quantizer, source.sizes());
  const auto around = at::full({50}, 9, at::kByte);
  outputs[0] = around.narrow(0, 1, 48);
  run_whole(quantizer, source, outputs, 1);
  EXPECT_TRUE(same_bits(outputs[0], expected(source, 1)[0]));
  EXPECT_EQ(around[0].item<int>(), 9);
  EXPECT_EQ(around[49].item<int>(), 9);
}

}  // namespace
}  // namespace dormant::record
