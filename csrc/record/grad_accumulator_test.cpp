#include "record/grad_accumulator.h"

#include <ATen/ATen.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include <optional>

#include "record/eager_comparison.h"
#include "record/lazy_storage.h"

namespace dormant::record {
namespace {

using torch::autograd::impl::grad_accumulator;

at::Tensor leaf() { return at::ones({2}).set_requires_grad(true); }

/// Gives `tensor` the storage and the geometry of `source`, as a layer does that changes its size.
void set_without_grad(const at::Tensor& tensor, const at::Tensor& source) {
  const at::NoGradGuard no_grad;
  tensor.set_(source);
}

TEST(GradAccumulator, IsMadeAnewAfterAReset) {
  const auto tensor = leaf();
  const auto before = grad_accumulator(tensor);
  EXPECT_EQ(grad_accumulator(tensor), before);
  reset_grad_accumulator(tensor);
  EXPECT_NE(grad_accumulator(tensor), before);
}

TEST(GradAccumulator, ATensorThatAutogradDoesNotKnowIsLeftAlone) {
  const auto tensor = at::ones({2});
  reset_grad_accumulator(tensor);
  EXPECT_EQ(torch::autograd::impl::get_autograd_meta(tensor), nullptr);
}

TEST(GradAccumulator, AGraphOfTheEarlierShapeStillEndsInTheEarlierOne) {
  const auto tensor = leaf();
  const auto sum = tensor.mul(3).sum();
  const auto before = grad_accumulator(tensor);
  reset_grad_accumulator(tensor);
  sum.backward();
  EXPECT_TRUE(same_bits(tensor.grad(), at::full({2}, 3.0)));
}

TEST(GradAccumulator, ALeafThatGetsALazyStorageOfAnotherShapeGetsGradientsOfThatShape) {
  // The graph of the first call keeps the accumulator of the first shape alive.
  const auto run = [](bool lazy) {
    const auto tensor = leaf();
    const auto earlier = tensor.mul(2);
    at::Tensor source;
    {
      std::optional<LazyInit> guard;
      if (lazy) {
        guard.emplace();
      }
      source = at::arange(6, at::kFloat).view({2, 3});
    }
    EXPECT_EQ(is_lazy(source), lazy);
    set_without_grad(tensor, source);
    EXPECT_EQ(is_lazy(tensor), lazy);
    tensor.mul(tensor).sum().backward();
    EXPECT_TRUE(earlier.requires_grad());
    return tensor.grad();
  };
  EXPECT_TRUE(same_bits(run(/*lazy=*/true), run(/*lazy=*/false)));
}

}  // namespace
}  // namespace dormant::record
