#include "random/law_check.h"

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <gtest/gtest.h>

#include <vector>

namespace dormant::random {
namespace {

using Arguments = c10::ArrayRef<c10::IValue>;

// What uniform_ draws from a generator for a float tensor, give or take `kExtra`.
template <int kExtra>
Draw one_draw_each(Arguments args, at::CPUGeneratorImpl& generator) {
  for (int64_t i = 0; i < args[0].toTensor().numel() + kExtra; ++i) {
    generator.random();
  }
  return Draw::skipped;
}

Draw refuses(Arguments, at::CPUGeneratorImpl&) { return Draw::unknown; }

c10::OperatorHandle uniform() {
  return c10::Dispatcher::singleton().findSchemaOrThrow("aten::uniform_", "");
}

std::vector<c10::IValue> uniform_arguments(at::ScalarType dtype) {
  return {at::empty({5}, dtype), 0.0, 1.0, c10::IValue()};
}

TEST(LawHolds, ForALawThatIsTrue) {
  EXPECT_TRUE(law_holds(uniform(), uniform_arguments(at::kFloat), one_draw_each<0>));
}

TEST(LawHolds, NotForALawThatIsOffByOneDraw) {
  EXPECT_FALSE(law_holds(uniform(), uniform_arguments(at::kFloat), one_draw_each<1>));
  EXPECT_FALSE(law_holds(uniform(), uniform_arguments(at::kFloat), one_draw_each<-1>));
}

TEST(LawHolds, NotForADtypeThatDrawsMore) {
  EXPECT_FALSE(law_holds(uniform(), uniform_arguments(at::kDouble), one_draw_each<0>));
}

TEST(LawHolds, NotForALawThatForgetsTheCachedNormal) {
  const auto normal = c10::Dispatcher::singleton().findSchemaOrThrow("aten::normal_", "");
  const std::vector<c10::IValue> arguments = {at::empty({5}), 0.0, 1.0, c10::IValue()};
  EXPECT_FALSE(law_holds(normal, arguments, one_draw_each<16>));
}

TEST(LawHolds, WhereItCannotBeTried) {
  EXPECT_TRUE(law_holds(uniform(), uniform_arguments(at::kFloat), refuses));
  const auto dropout = c10::Dispatcher::singleton().findSchemaOrThrow("aten::native_dropout", "");
  EXPECT_TRUE(
      law_holds(dropout, std::vector<c10::IValue>{at::ones({5}), 0.5, true}, one_draw_each<1>));
}

TEST(LawHolds, WithoutTouchingTheDefaultGeneratorOrAnActiveMode) {
  const auto& default_generator = at::detail::getDefaultCPUGenerator();
  const at::Tensor before = default_generator.get_state();
  const std::vector<c10::IValue> arguments = uniform_arguments(at::kFloat);
  bool holds = false;
  {
    // The key that recording includes: an operator that met it would be recorded, or would throw.
    const c10::impl::IncludeDispatchKeyGuard recording(c10::DispatchKey::DeferredInit);
    holds = law_holds(uniform(), arguments, one_draw_each<0>);
  }
  EXPECT_TRUE(holds);
  EXPECT_TRUE(at::equal(default_generator.get_state(), before));
}

}  // namespace
}  // namespace dormant::random
