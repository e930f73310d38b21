#include "record/decoder.h"

#include <ATen/ATen.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "record/decoder_example.h"
#include "record/node.h"
#include "record/source_node.h"

namespace dormant::record {
namespace {

using at::Tensor;

std::vector<Tensor> lazy(const std::vector<Tensor>& parts) {
  std::vector<Tensor> all;
  for (const auto& part : parts) {
    all.push_back(read_of(part));
  }
  return all;
}

TEST(Decoder, RealPartsAreDecodedAtOnce) {
  const auto decoder = std::make_shared<RowGroups>(900, 72);  // more than one thread's share
  const auto parts = decoder->example();
  const auto decoded = decode(parts, decoder);
  EXPECT_FALSE(is_lazy(decoded));
  EXPECT_TRUE(decoded.equal(RowGroups::expected(parts)));
}

TEST(Decoder, ARangeIsMadeOfNothingElse) {
  const RowGroups decoder(5, 16);
  const auto parts = decoder.example();
  const auto all = RowGroups::expected(parts).flatten();
  for (int64_t begin = 0; begin < 80; begin += RowGroups::kUnit) {
    for (auto end = begin + RowGroups::kUnit; end <= 80; end += RowGroups::kUnit) {
      const auto out = at::full({end - begin + 1}, -1, at::kFloat);
      run_range(decoder, parts, begin, end - begin, out.mutable_data_ptr());
      EXPECT_TRUE(out.narrow(0, 0, end - begin).equal(all.slice(0, begin, end)));
      EXPECT_EQ(out[end - begin].item<float>(), -1);
    }
  }
}

TEST(Decoder, LazyPartsGiveALazyTensor) {
  const auto decoder = std::make_shared<RowGroups>(7, 16);
  const auto parts = decoder->example();
  for (size_t real = 0; real <= parts.size(); ++real) {
    auto some = lazy(parts);
    if (real < parts.size()) {
      some[real] = parts[real].clone();
    }
    const auto decoded = decode(some, decoder);
    EXPECT_TRUE(is_lazy(decoded));
    if (real < parts.size()) {
      some[real].zero_();  // its owner may do so
    }
    dormant::materialize(decoded);
    EXPECT_TRUE(decoded.equal(RowGroups::expected(parts)));
  }
}

TEST(Decoder, PartsMayBeViews) {
  const auto decoder = std::make_shared<RowGroups>(6, 24);
  const auto parts = decoder->example();
  auto views = lazy(parts);
  views[1] = read_of(parts[1].t().contiguous()).t();
  views[2] = read_of(at::cat({parts[2], parts[2]}, 1)).narrow(1, 24, 24);
  const auto decoded = decode(views, decoder);
  dormant::materialize(decoded);
  EXPECT_TRUE(decoded.equal(RowGroups::expected(parts)));
}

TEST(Decoder, PartsOfOtherSizesOrDtypesAreRefused) {
  const auto decoder = std::make_shared<RowGroups>(6, 32);
  const auto parts = decoder->example();
  const auto refused = [&](std::vector<Tensor> wrong) {
    try {
      decode(wrong, decoder);
    } catch (const c10::ValueError& error) {
      return std::string(error.what_without_backtrace());
    }
    return std::string();
  };
  EXPECT_NE(refused({parts[0], parts[1]}).find("got 2 parts, expected 3"), std::string::npos);
  EXPECT_NE(refused({parts[0], parts[1].t(), parts[2]}).find("part 1"), std::string::npos);
  EXPECT_NE(refused({parts[0].to(at::kLong), parts[1], parts[2]}).find("part 0"),
            std::string::npos);
}

TEST(Decoder, ValuesThatLeadOutsideAPartAreRefusedAndTheTensorStaysLazy) {
  const auto decoder = std::make_shared<RowGroups>(7, 16);
  auto parts = decoder->example();
  parts[0][3] = 3;
  EXPECT_THROW(decode(parts, decoder), c10::ValueError);
  const auto decoded = decode(lazy(parts), decoder);
  EXPECT_THROW(dormant::materialize(decoded), c10::ValueError);
  EXPECT_TRUE(is_lazy(decoded));
}

}  // namespace
}  // namespace dormant::record
