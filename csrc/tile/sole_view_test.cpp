#include "tile/sole_view.h"

#include <ATen/ops/empty.h>

#include "tile/eager_comparison.h"
#include "tile/engine.h"

namespace dormant::tile {
namespace {

using at::Tensor;

Tensor whole() { return at::empty({4096, 1024}).normal_(); }

/// Without autograd's own reference to what it is a view of.
Tensor rows(const Tensor& tensor, int64_t begin, int64_t count) {
  return tensor.narrow(0, begin, count).detach();
}

TEST(SoleView, IsAViewWhoseStorageNothingElseRefersTo) {
  const auto alone = lazily([] { return rows(whole(), 100, 10); });
  const auto shared = lazily([] { return whole(); });
  const auto part = rows(shared, 5, 5);
  const auto real = at::empty({4});
  const auto views = sole_views({alone, shared, part, real});
  ASSERT_EQ(views.size(), 1U);
  EXPECT_EQ(views.begin()->first, alone.storage().unsafeGetStorageImpl());
  EXPECT_TRUE(views.begin()->second.is_same(alone));
}

TEST(SoleView, NeedsFromItsFirstElementToItsLastWhereThatSavesMuch) {
  const auto lazy = lazily([] { return whole(); });
  const auto program = program_of(lazy);
  ASSERT_TRUE(program);
  const auto needed = [&](const Tensor& view) {
    const auto part = part_of(view, *program, 1);
    return part ? std::make_optional(part->elements) : std::nullopt;
  };
  EXPECT_EQ(needed(lazy.narrow(0, 100, 10)), (tile::Run{100 * 1024, 10 * 1024}));
  EXPECT_EQ(needed(lazy.narrow(0, 100, 2).narrow(1, 5, 7)), (tile::Run{100 * 1024 + 5, 1024 + 7}));
  EXPECT_FALSE(needed(lazy));
  EXPECT_FALSE(needed(lazy.narrow(1, 5, 7)));     // a little of every row
  EXPECT_FALSE(needed(lazy.narrow(0, 0, 4000)));  // less than a megabyte is left out
  EXPECT_FALSE(needed(lazy.view(at::kInt).narrow(0, 0, 1)));
}

TEST(SoleView, ReservedMemoryIsZeroAndCanBeWritten) {
  constexpr size_t kBytes = size_t{1} << 36;  // more than the machine has
  const auto memory = reserve(kBytes);
  if (!memory) {
    GTEST_SKIP() << "this system reserves no memory";
  }
  auto* bytes = static_cast<char*>(memory.get());
  bytes[kBytes - 1] = 7;
  EXPECT_EQ(bytes[kBytes - 1], 7);
  EXPECT_EQ(bytes[kBytes / 2], 0);
}

TEST(SoleView, HasAStorageOfItsPartThatRefusesTheRest) {
  const Build build = [] { return rows(whole(), 1000, 30); };
  const auto lazy = lazily(build);
  Options options;
  options.sole_views = sole_views({lazy});
  materialize({lazy.storage()}, options);
  record::settle(lazy);
  const auto eager = eagerly(build);
  EXPECT_TRUE(same_bits(lazy, eager));
  EXPECT_EQ(lazy.storage_offset(), 0);
  EXPECT_EQ(lazy.storage().nbytes(), lazy.nbytes());
  EXPECT_THROW(lazy.as_strided({4096}, {1}, eager.storage_offset()), c10::Error);
}

TEST(SoleView, AViewMadeMeanwhileGetsTheWholeStorage) {
  const Build build = [] { return rows(whole(), 1000, 30); };
  const auto lazy = lazily(build);
  Tensor other;
  Options options;
  options.sole_views = sole_views({lazy});
  options.on_step = [&](size_t, size_t) {
    if (!other.defined()) {
      other = lazy.as_strided({10}, {1}, 0);
    }
  };
  materialize({lazy.storage()}, options);
  record::settle(lazy);
  record::settle(other);
  const auto eager = eagerly(build);
  EXPECT_TRUE(same_bits(lazy, eager));
  EXPECT_TRUE(same_bits(other, eager.as_strided({10}, {1}, 0)));
}

}  // namespace
}  // namespace dormant::tile
