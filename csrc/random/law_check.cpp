#include "random/law_check.h"

// The operators that the headers below would pull in are not needed.
#define AT_PER_OPERATOR_HEADERS
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <bit>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "system/no_warnings.h"
#include "system/refusal.h"

namespace dormant::random {
namespace {

using Arguments = c10::ArrayRef<c10::IValue>;

// One block of 16 and a tail; as a matrix it can be transposed.
constexpr int64_t kRows = 7;
constexpr int64_t kColumns = 3;

// Numbers of elements, whatever they count: an operator that is given them runs as long as they
// say.
bool counts_elements(const c10::Argument& argument) {
  return argument.name() == "n" || argument.name() == "num_samples";
}

// Real arguments of the same kinds: tensors hold 0.5, which is a probability, a weight and a
// standard deviation; counts keep what is none, one or several.
std::vector<c10::IValue> probe_arguments(const c10::OperatorHandle& op, Arguments args,
                                         bool transposed, const at::Generator& generator) {
  const auto& parameters = op.schema().arguments();
  std::vector<c10::IValue> probe(args.begin(), args.end());
  for (size_t i = 0; i < probe.size(); ++i) {
    if (parameters[i].name() == "generator") {
      probe[i] = generator;
    } else if (parameters[i].is_out()) {
      probe[i] = at::empty({0}, probe[i].toTensor().scalar_type());
    } else if (probe[i].isTensor()) {
      const at::Tensor matrix = at::full({kRows, kColumns}, 0.5, probe[i].toTensor().scalar_type());
      probe[i] = transposed ? matrix.t() : matrix;
    } else if (probe[i].isInt() && counts_elements(parameters[i])) {
      probe[i] = std::min(probe[i].toInt(), kColumns);
    } else if (probe[i].isIntList()) {
      probe[i] = std::vector<int64_t>{kRows, kColumns};
    }
  }
  return probe;
}

// Inside a block, so that the draws cross into the next.
void start(at::CPUGeneratorImpl& generator, bool cached_normal) {
  constexpr int kDraws = 610;
  generator.set_current_seed(1);
  for (int i = 0; i < kDraws; ++i) {
    generator.random();
  }
  if (cached_normal) {
    generator.set_next_double_normal_sample(0.5);
  }
}

bool same(at::CPUGeneratorImpl& a, at::CPUGeneratorImpl& b) {
  const at::mt19937_data_pod x = a.engine().data();
  const at::mt19937_data_pod y = b.engine().data();
  const auto bits = [](std::optional<double> value) {
    return value ? std::optional(std::bit_cast<uint64_t>(*value)) : std::nullopt;
  };
  return x.left_ == y.left_ && x.next_ == y.next_ && x.state_ == y.state_ &&
         bits(a.next_double_normal_sample()) == bits(b.next_double_normal_sample());
}

}  // namespace

bool law_holds(const c10::OperatorHandle& op, Arguments args, Law law) {
  if (!generator_argument(op.schema())) {
    return true;
  }
  // Straight to the CPU kernels: no recording, no autograd, no mode of Python's.
  const c10::impl::ForceDispatchKeyGuard below_everything(
      c10::DispatchKeySet(c10::DispatchKey::BackendSelect),
      c10::autograd_dispatch_keyset_with_ADInplaceOrView);
  const system::NoWarnings quiet;
  for (const bool second : {false, true}) {
    const auto ran = c10::make_intrusive<at::CPUGeneratorImpl>();
    at::CPUGeneratorImpl skipped;
    start(*ran, second);
    start(skipped, second);
    try {
      std::vector<c10::IValue> probe = probe_arguments(op, args, second, at::Generator(ran));
      const Draw draw = law(probe, skipped);
      if (draw != Draw::skipped && draw != Draw::none) {
        continue;
      }
      op.callBoxed(probe);
    } catch (const std::exception& error) {
      if (!system::is_refusal(error)) {
        throw;
      }
      continue;
    }
    if (!same(*ran, skipped)) {
      return false;
    }
  }
  return true;
}

}  // namespace dormant::random
