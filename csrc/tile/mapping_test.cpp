#include "tile/mapping.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>

namespace dormant::tile {
namespace {

using record::Geometry;

/// Source elements of positions [begin, begin + count), one by one.
std::vector<int64_t> elements(const Mapping& mapping, int64_t begin, int64_t count) {
  std::vector<tile::Run> runs;
  mapping.append(begin, count, runs);
  EXPECT_EQ(total(runs), count);
  EXPECT_LE(static_cast<int64_t>(runs.size()), mapping.most_runs(count, 1));
  std::vector<int64_t> found;
  for (const auto& run : runs) {
    for (int64_t i = 0; i < run.count; ++i) {
      found.push_back(run.begin + i);
    }
  }
  return found;
}

/// Which source element ATen's copy_ puts at each element of the destination's memory.
std::vector<int64_t> copied(const at::Tensor& destination, const at::Tensor& source) {
  destination.copy_(source);
  const auto flat = destination.as_strided({destination.numel()}, {1});
  const auto* data = flat.const_data_ptr<int64_t>();
  return {data, data + flat.numel()};
}

TEST(Mapping, ReadsWhatACopyReads) {
  const auto base = at::arange(4 * 6 * 10).view({4, 6, 10});
  const std::vector<at::Tensor> sources = {
      base,
      base.narrow(0, 1, 2),
      base.narrow(1, 2, 3),
      base.narrow(2, 3, 5),
      base.narrow(2, 3, 5).narrow(1, 1, 4),
      base.select(0, 3),
      base.select(1, 2),
      base.slice(0, 0, 4, 2),
      base.slice(1, 1, 6, 3),
      base.transpose(0, 1),
      base.view({24, 10}).narrow(1, 9, 1),
      base.select(2, 4).narrow(0, 2, 1).narrow(1, 3, 1),
      base.narrow(0, 1, 1).expand({3, 6, 10}),
  };
  std::mt19937 random(1);  // NOLINT: the same ranges every time
  for (const auto& source : sources) {
    const auto destination = at::empty(source.sizes(), source.options());
    const auto mapping = Mapping::between(Geometry::of(destination), Geometry::of(source));
    ASSERT_TRUE(mapping) << source.sizes() << source.strides();
    const auto expected = copied(destination, source);
    EXPECT_EQ(elements(*mapping, 0, source.numel()), expected);
    for (int i = 0; i < 50; ++i) {
      const auto begin = static_cast<int64_t>(random() % source.numel());
      const auto count = static_cast<int64_t>(random() % (source.numel() - begin + 1));
      EXPECT_EQ(elements(*mapping, begin, count),
                std::vector<int64_t>(expected.begin() + begin, expected.begin() + begin + count))
          << source.sizes() << source.strides() << " from " << begin;
    }
  }
}

TEST(Mapping, FollowsTheMemoryOrderOfTheDestination) {
  const auto source = at::arange(2 * 3 * 4).view({2, 3, 4}).permute({2, 0, 1});
  const auto destination = at::empty_like(source);
  ASSERT_EQ(destination.strides(), source.strides());
  const auto mapping = Mapping::between(Geometry::of(destination), Geometry::of(source));
  ASSERT_TRUE(mapping);
  EXPECT_EQ(elements(*mapping, 0, 24), copied(destination, source));
}

TEST(Mapping, AContiguousSourceIsOneRun) {
  const auto source = at::arange(3 * 5 * 7).view({3, 5, 7}).narrow(0, 1, 2);
  const auto destination = at::empty(source.sizes(), source.options());
  const auto mapping = Mapping::between(Geometry::of(destination), Geometry::of(source));
  std::vector<tile::Run> runs;
  mapping->append(4, 40, runs);
  EXPECT_EQ(runs, (std::vector<tile::Run>{{35 + 4, 40}}));
}

TEST(Mapping, RefusesSizesThatDoNotBroadcast) {
  const auto base = at::arange(24).view({4, 6});
  const auto between = [](const at::Tensor& destination, const at::Tensor& source) {
    return Mapping::between(Geometry::of(destination), Geometry::of(source)).has_value();
  };
  EXPECT_TRUE(between(at::empty({4, 6}), base));
  EXPECT_TRUE(between(at::empty({2, 4, 6}), base));
  EXPECT_TRUE(between(at::empty({4, 6}), base.narrow(1, 2, 1)));
  EXPECT_FALSE(between(at::empty({4, 5}), base));
  EXPECT_FALSE(between(at::empty({6}), base));
  EXPECT_FALSE(between(at::empty({6, 4}), base));
}

/// What reading the boxes of `places` gives: source elements in the order of places.
std::vector<int64_t> read_in_boxes(const Mapping& mapping, Runs places, const int64_t* source) {
  std::vector<Box> boxes;
  mapping.append(places, boxes);
  std::vector<int64_t> out(static_cast<size_t>(total(places)), -1);
  for (const auto& box : boxes) {
    const auto reading = reading_of(box);
    std::vector<int64_t> buffer;
    auto last = std::numeric_limits<int64_t>::min();
    for (const auto& run : reading.runs) {
      EXPECT_GT(run.begin, last) << "descending runs cost a jump each";
      last = run.begin;
      buffer.insert(buffer.end(), source + run.begin, source + run.begin + run.count);
    }
    c10::SmallVector<int64_t, 6> sizes;
    c10::SmallVector<int64_t, 6> strides;
    for (const auto& dimension : box.dimensions) {
      sizes.push_back(dimension.size);
      strides.push_back(dimension.out_stride);
    }
    const auto to = at::from_blob(out.data() + box.out, sizes, strides, at::kLong);
    EXPECT_LE(static_cast<int64_t>(buffer.size()), kMostReadPerElement * to.numel());
    to.copy_(at::from_blob(buffer.data(), sizes, reading.strides, at::kLong));
  }
  return out;
}

TEST(Mapping, BoxesReadWhatACopyReads) {
  const auto base = at::arange(4 * 6 * 300).view({4, 6, 300});
  const std::vector<at::Tensor> sources = {
      base.transpose(1, 2),
      base.permute({2, 1, 0}),
      base.permute({2, 0, 1}),
      base.permute({1, 2, 0}),
      base.slice(2, 1, 300, 2),
      base.slice(2, 0, 300, 70),
      base.slice(1, 1, 6, 2).transpose(0, 2),
      base.narrow(2, 3, 50).transpose(0, 1).transpose(1, 2),
      base.select(2, 7),
      base.narrow(0, 1, 1).expand({5, 6, 300}),
      base.narrow(2, 4, 1).expand({4, 6, 9}),
      base.narrow(1, 2, 1).expand({4, 5, 300}).transpose(1, 2),
  };
  std::mt19937 random(2);  // NOLINT: the same places every time
  const auto* data = base.const_data_ptr<int64_t>();
  for (const auto& source : sources) {
    SCOPED_TRACE(::testing::Message() << source.sizes() << source.strides());
    const auto destination = at::empty(source.sizes(), source.options());
    const auto mapping = Mapping::between(Geometry::of(destination), Geometry::of(source));
    ASSERT_TRUE(mapping);
    const auto expected = copied(destination, source);
    const auto numel = source.numel();
    const auto whole = read_in_boxes(*mapping, tile::Run{0, numel}, data);
    EXPECT_EQ(whole, expected);
    for (int i = 0; i < 100; ++i) {
      // Rows of a rectangle, as of a tile, and any runs.
      const auto begin = static_cast<int64_t>(random() % numel);
      const auto count = static_cast<int64_t>(1 + random() % std::min<int64_t>(numel - begin, 40));
      auto step = static_cast<int64_t>(1 + random() % 700);
      if (i % 2 == 0) {
        step = source.stride(0) > 0 ? source.size(-1) : source.size(-1) * source.size(-2);
      }
      std::vector<tile::Run> places;
      for (auto at = begin; at + count <= numel && places.size() < 9; at += step) {
        places.push_back({at, count});
      }
      if (i % 5 == 0) {
        places.push_back({0, std::min<int64_t>(numel, 5)});
      }
      std::vector<int64_t> wanted;
      for (const auto& run : places) {
        wanted.insert(wanted.end(), expected.begin() + run.begin,
                      expected.begin() + run.begin + run.count);
      }
      EXPECT_EQ(read_in_boxes(*mapping, places, data), wanted)
          << count << " from " << begin << " every " << step;
    }
  }
}

TEST(Mapping, ATransposedTileIsOneBoxThatIsReadInRowsOfTheSource) {
  const auto source = at::empty({1000, 700});
  const auto mapping =
      Mapping::between(Geometry::of(at::empty({700, 1000})), Geometry::of(source.t()));
  ASSERT_TRUE(mapping);
  EXPECT_FALSE(mapping->in_rows());
  // Rows 32 to 63 of the source, as a tile of the destination: all its rows, 32 places of each.
  std::vector<tile::Run> places;
  for (int64_t row = 0; row < 700; ++row) {
    places.push_back({row * 1000 + 32, 32});
  }
  std::vector<Box> boxes;
  mapping->append(places, boxes);
  ASSERT_EQ(boxes.size(), 1U);
  EXPECT_EQ(reading_of(boxes.front()).runs, (std::vector<tile::Run>{{32 * 700, 32 * 700}}));
}

}  // namespace
}  // namespace dormant::tile
