#include "random/draws.h"

// The operators that the headers below would pull in are not needed.
#define AT_PER_OPERATOR_HEADERS
#include <ATen/ExpandUtils.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "random/kernel_draws.h"
#include "random/law_check.h"

namespace dormant::random {

using at::ScalarType;
using Arguments = c10::ArrayRef<c10::IValue>;

// A law, and the dtypes of the first tensor for which it was tried in this process. Threads may try
// at the same time; they come to the same result.
struct CheckedLaw {
  CheckedLaw(Law law)
      : law(law) {}  // NOLINT(google-explicit-constructor): the table below lists laws

  bool holds(const c10::OperatorHandle& op, Arguments args) {
    const auto tensor = std::find_if(args.begin(), args.end(),
                                     [](const c10::IValue& value) { return value.isTensor(); });
    static_assert(static_cast<int>(ScalarType::NumOptions) <= 64);
    const uint64_t bit =
        uint64_t{1} << (tensor == args.end() ? 0
                                             : static_cast<int>(tensor->toTensor().scalar_type()));
    if ((tried.load(std::memory_order_acquire) & bit) == 0) {
      if (!law_holds(op, args, law)) {
        failed.fetch_or(bit, std::memory_order_relaxed);
      }
      tried.fetch_or(bit, std::memory_order_release);
    }
    return (failed.load(std::memory_order_relaxed) & bit) == 0;
  }

  const Law law;
  std::atomic<uint64_t> tried = 0;
  std::atomic<uint64_t> failed = 0;
};

namespace {

bool is_plain_cpu_tensor(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided && tensor.is_cpu() &&
         !tensor.is_nested() && !tensor.is_conj() && !tensor.is_neg();
}

FilledTensor in_place(const at::Tensor& tensor) {
  return {tensor.scalar_type(), static_cast<uint64_t>(tensor.numel()), tensor.is_contiguous(),
          at::has_internal_overlap(tensor.unsafeGetTensorImpl()) == at::MemOverlap::Yes};
}

FilledTensor dense(ScalarType dtype, c10::IntArrayRef sizes) {
  return {dtype, static_cast<uint64_t>(c10::multiply_integers(sizes)), /*contiguous=*/true,
          /*overlaps=*/false};
}

// out= after resize_(sizes): the strides stay where the sizes do.
FilledTensor resized(const at::Tensor& out, c10::IntArrayRef sizes) {
  return out.sizes() == sizes ? in_place(out) : dense(out.scalar_type(), sizes);
}

bool is_contiguous(c10::IntArrayRef sizes, c10::IntArrayRef strides) {
  int64_t expected = 1;
  for (size_t i = sizes.size(); i-- != 0;) {
    if (sizes[i] != 1 && strides[i] != expected) {
      return false;
    }
    expected *= sizes[i];
  }
  return true;
}

// tensor.clone(): strides are kept where they are dense, else made dense in the same order.
FilledTensor cloned(const at::Tensor& tensor) {
  FilledTensor target = in_place(tensor);
  target.overlaps = false;
  if (!tensor.is_non_overlapping_and_dense()) {
    target.contiguous =
        target.numel == 0 ||
        is_contiguous(tensor.sizes(), at::infer_dense_strides(tensor.sizes(), tensor.strides()));
  }
  return target;
}

std::optional<std::vector<int64_t>> broadcast(c10::IntArrayRef a, c10::IntArrayRef b) {
  std::vector<int64_t> sizes(std::max(a.size(), b.size()));
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t of_a = i < a.size() ? a[a.size() - 1 - i] : 1;
    const int64_t of_b = i < b.size() ? b[b.size() - 1 - i] : 1;
    if (of_a != of_b && of_a != 1 && of_b != 1) {
      return std::nullopt;
    }
    sizes[sizes.size() - 1 - i] = of_a == 1 ? of_b : of_a;
  }
  return sizes;
}

// NaN, which every law refuses, for anything but a number.
double number(const c10::IValue& value) {
  if (value.isDouble()) {
    return value.toDouble();
  }
  return value.isInt() ? static_cast<double>(value.toInt())
                       : std::numeric_limits<double>::quiet_NaN();
}

// A law sees the tensor to be filled and all arguments of an operator whose numbers stand where
// those of the in-place operator do.
using FillLaw = Draw (*)(const FilledTensor&, Arguments, at::CPUGeneratorImpl&);

Draw normal(const FilledTensor& target, Arguments args, at::CPUGeneratorImpl& generator) {
  return fill_normal(target, /*std=*/number(args[2]), generator);
}

Draw uniform(const FilledTensor& target, Arguments args, at::CPUGeneratorImpl& generator) {
  return fill_uniform(target, number(args[1]), number(args[2]), generator);
}

Draw bernoulli(const FilledTensor& target, Arguments args, at::CPUGeneratorImpl& generator) {
  return fill_bernoulli(target, number(args[1]), generator);
}

Draw bernoulli_of(const FilledTensor& target, Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& probabilities = args[1].toTensor();
  const c10::IntArrayRef sizes = args[0].toTensor().sizes();
  const auto shape = broadcast(sizes, probabilities.sizes());
  return shape && sizes == *shape ? fill_bernoulli(target, probabilities.scalar_type(), generator)
                                  : Draw::unknown;
}

Draw exponential(const FilledTensor& target, Arguments args, at::CPUGeneratorImpl& generator) {
  return fill_exponential(target, number(args[1]), generator);
}

Draw cauchy(const FilledTensor& target, Arguments args, at::CPUGeneratorImpl& generator) {
  return fill_cauchy(target, /*sigma=*/number(args[2]), generator);
}

Draw geometric(const FilledTensor& target, Arguments args, at::CPUGeneratorImpl& generator) {
  return fill_geometric(target, number(args[1]), generator);
}

Draw log_normal(const FilledTensor& target, Arguments args, at::CPUGeneratorImpl& generator) {
  return fill_log_normal(target, /*std=*/number(args[2]), generator);
}

Draw random(const FilledTensor& target, Arguments, at::CPUGeneratorImpl& generator) {
  return fill_integers(target, generator);
}

Draw random_from(const FilledTensor& target, Arguments args, at::CPUGeneratorImpl& generator) {
  const auto to = args[2].isNone() ? std::nullopt : std::optional<int64_t>(args[2].toInt());
  return fill_integers(target, args[1].toInt(), to, generator);
}

Draw random_to(const FilledTensor& target, Arguments args, at::CPUGeneratorImpl& generator) {
  return fill_integers(target, 0, args[1].toInt(), generator);
}

// The forms in which a law occurs. In place:
template <FillLaw kLaw>
Draw on_self(Arguments args, at::CPUGeneratorImpl& generator) {
  return kLaw(in_place(args[0].toTensor()), args, generator);
}

// Functional, generated from the in-place operator: self.clone().op_(...).
template <FillLaw kLaw>
Draw on_clone(Arguments args, at::CPUGeneratorImpl& generator) {
  return kLaw(cloned(args[0].toTensor()), args, generator);
}

// out=, generated from the functional operator, whose result is copied; eager refuses to convert
// it.
template <FillLaw kLaw>
Draw on_clone_to_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const bool accepted = args[0].toTensor().scalar_type() == args.back().toTensor().scalar_type();
  return accepted ? on_clone<kLaw>(args, generator) : Draw::unknown;
}

// Operators of aten/src/ATen/native/Distributions.cpp that fill a new contiguous tensor, or out= of
// the right shape.

Draw bernoulli_like(Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& probability = args[0].toTensor();
  return fill_bernoulli(dense(probability.scalar_type(), probability.sizes()),
                        probability.scalar_type(), generator);
}

Draw bernoulli_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& probability = args[0].toTensor();
  return fill_bernoulli(resized(args.back().toTensor(), probability.sizes()),
                        probability.scalar_type(), generator);
}

Draw bernoulli_p(Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& self = args[0].toTensor();
  return fill_bernoulli(dense(self.scalar_type(), self.sizes()), number(args[1]), generator);
}

Draw normal_tensor_float(Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& mean = args[0].toTensor();
  return fill_normal(dense(mean.scalar_type(), mean.sizes()), number(args[1]), generator);
}

Draw normal_tensor_float_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& out = args.back().toTensor();
  const auto sizes = broadcast(args[0].toTensor().sizes(), out.sizes());
  return sizes ? fill_normal(resized(out, *sizes), number(args[1]), generator) : Draw::unknown;
}

// A tensor of standard deviations: drawn with 1 and scaled afterwards.
Draw normal_float_tensor(Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& std = args[1].toTensor();
  return std.is_complex() ? Draw::unknown
                          : fill_normal(dense(std.scalar_type(), std.sizes()), 1.0, generator);
}

Draw normal_float_tensor_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& std = args[1].toTensor();
  return std.is_complex()
             ? Draw::unknown
             : fill_normal(resized(args.back().toTensor(), std.sizes()), 1.0, generator);
}

Draw normal_tensor_tensor(Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& mean = args[0].toTensor();
  const at::Tensor& std = args[1].toTensor();
  const auto sizes = broadcast(mean.sizes(), std.sizes());
  return sizes && !std.is_complex() ? fill_normal(dense(mean.scalar_type(), *sizes), 1.0, generator)
                                    : Draw::unknown;
}

Draw normal_tensor_tensor_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& std = args[1].toTensor();
  const auto sizes = broadcast(args[0].toTensor().sizes(), std.sizes());
  return sizes && !std.is_complex()
             ? fill_normal(resized(args.back().toTensor(), *sizes), 1.0, generator)
             : Draw::unknown;
}

// out= factories (aten/src/ATen/native/TensorFactories.cpp): out.resize_(size), then an in-place
// operator. kSize is the index of `size`; a size that is symbolic or negative gives none.
template <size_t kSize>
std::optional<FilledTensor> factory_target(Arguments args) {
  if (!args[kSize].isIntList()) {
    return std::nullopt;
  }
  const std::vector<int64_t> sizes = args[kSize].toIntVector();
  if (std::any_of(sizes.begin(), sizes.end(), [](int64_t size) { return size < 0; })) {
    return std::nullopt;
  }
  return resized(args.back().toTensor(), sizes);
}

Draw rand_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const auto target = factory_target<0>(args);
  return target ? fill_uniform(*target, 0.0, 1.0, generator) : Draw::unknown;
}

Draw randn_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const auto target = factory_target<0>(args);
  return target ? fill_normal(*target, 1.0, generator) : Draw::unknown;
}

Draw normal_float_float_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const auto target = factory_target<2>(args);
  return target ? fill_normal(*target, number(args[1]), generator) : Draw::unknown;
}

Draw randint_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const auto target = factory_target<1>(args);
  return target && args[0].isInt() ? fill_integers(*target, 0, args[0].toInt(), generator)
                                   : Draw::unknown;
}

Draw randint_low_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const auto target = factory_target<2>(args);
  return target && args[0].isInt() && args[1].isInt()
             ? fill_integers(*target, args[0].toInt(), args[1].toInt(), generator)
             : Draw::unknown;
}

Draw randperm_out(Arguments args, at::CPUGeneratorImpl& generator) {
  const ScalarType dtype = args.back().toTensor().scalar_type();
  if (!args[0].isInt() || args[0].toInt() < 0 || !(is_floating(dtype) || is_plain_integer(dtype))) {
    return Draw::unknown;
  }
  const auto n = static_cast<uint64_t>(args[0].toInt());
  // Its values must be distinct in the dtype: check_supported_max_int_with_precision in
  // ATen/native/TensorFactories.h.
  if (n > 0 && !integer_range(dtype, 0, static_cast<int64_t>(n))) {
    return Draw::unknown;
  }
  if (is_floating(dtype) && n > (uint64_t{1} << 11)) {
    return Draw::unknown;
  }
  // From here on each element takes two draws, which no small probe could confirm (law_check.h).
  constexpr uint64_t kNeedsTwoDraws = std::numeric_limits<uint32_t>::max() / 20;
  return n < kNeedsTwoDraws ? take(generator, n - (n != 0)) : Draw::unknown;
}

Draw sample_categories(const at::Tensor& weights, const c10::IValue& samples, bool replacement,
                       at::CPUGeneratorImpl& generator) {
  constexpr int64_t kMostCategories = int64_t{1} << std::numeric_limits<float>::digits;
  const int64_t rows = weights.dim() == 2 ? weights.size(0) : 1;
  if ((weights.dim() != 1 && weights.dim() != 2) || !is_floating(weights.scalar_type()) ||
      !samples.isInt() || samples.toInt() <= 0 || weights.size(-1) > kMostCategories ||
      weights.size(-1) == 0 || (!replacement && samples.toInt() > weights.size(-1))) {
    return Draw::unknown;
  }
  // Without replacement the k best of weights / exponential are taken; with it each sample is one
  // double.
  const bool by_order = !replacement || samples.toInt() == 1;
  return take(generator,
              2 * static_cast<uint64_t>(by_order ? weights.numel() : rows * samples.toInt()));
}

Draw multinomial(Arguments args, at::CPUGeneratorImpl& generator) {
  return sample_categories(args[0].toTensor(), args[1], args[2].toBool(), generator);
}

Draw multinomial_out(Arguments args, at::CPUGeneratorImpl& generator) {
  return args.back().toTensor().scalar_type() == ScalarType::Long ? multinomial(args, generator)
                                                                  : Draw::unknown;
}

// The mask is bernoulli_(1 - p) of dtype bool.
Draw native_dropout(Arguments args, at::CPUGeneratorImpl& generator) {
  const at::Tensor& input = args[0].toTensor();
  if (input.numel() == 0 || !(args[2].isNone() || args[2].toBool())) {
    return Draw::none;
  }
  const double keep = 1.0 - number(args[1]);
  return keep >= 0.0 && keep <= 1.0 ? take(generator, 2 * static_cast<uint64_t>(input.numel()))
                                    : Draw::unknown;
}

// Outside training these draw nothing; in training one uniform for each element that is not
// positive.
template <size_t kTraining>
Draw rrelu(Arguments args, at::CPUGeneratorImpl&) {
  return args[kTraining].toBool() ? Draw::value_dependent : Draw::none;
}

Draw by_rejection(Arguments, at::CPUGeneratorImpl&) { return Draw::value_dependent; }

// The CPU kernels refuse dropout.
template <size_t kDropout>
Draw attention(Arguments args, at::CPUGeneratorImpl&) {
  return number(args[kDropout]) == 0.0 ? Draw::none : Draw::unknown;
}

std::unordered_map<c10::OperatorName, CheckedLaw>& laws() {
  static const std::initializer_list<std::pair<c10::OperatorName, Law>> kLaws = {
      {{"aten::normal_", ""}, on_self<normal>},
      {{"aten::normal_functional", ""}, on_clone<normal>},
      {{"aten::normal", "out"}, on_clone_to_out<normal>},
      {{"aten::uniform_", ""}, on_self<uniform>},
      {{"aten::uniform", ""}, on_clone<uniform>},
      {{"aten::uniform", "out"}, on_clone_to_out<uniform>},
      {{"aten::bernoulli_", "float"}, on_self<bernoulli>},
      {{"aten::bernoulli", "float_out"}, on_clone_to_out<bernoulli>},
      {{"aten::bernoulli_", "Tensor"}, on_self<bernoulli_of>},
      {{"aten::bernoulli", "Tensor"}, on_clone<bernoulli_of>},
      {{"aten::bernoulli", "Tensor_out"}, on_clone_to_out<bernoulli_of>},
      {{"aten::exponential_", ""}, on_self<exponential>},
      {{"aten::exponential", ""}, on_clone<exponential>},
      {{"aten::exponential", "out"}, on_clone_to_out<exponential>},
      {{"aten::cauchy_", ""}, on_self<cauchy>},
      {{"aten::cauchy", ""}, on_clone<cauchy>},
      {{"aten::cauchy", "out"}, on_clone_to_out<cauchy>},
      {{"aten::geometric_", ""}, on_self<geometric>},
      {{"aten::geometric", ""}, on_clone<geometric>},
      {{"aten::geometric", "out"}, on_clone_to_out<geometric>},
      {{"aten::log_normal_", ""}, on_self<log_normal>},
      {{"aten::log_normal", ""}, on_clone<log_normal>},
      {{"aten::log_normal", "out"}, on_clone_to_out<log_normal>},
      {{"aten::random_", ""}, on_self<random>},
      {{"aten::random", ""}, on_clone<random>},
      {{"aten::random", "out"}, on_clone_to_out<random>},
      {{"aten::random_", "from"}, on_self<random_from>},
      {{"aten::random", "from"}, on_clone<random_from>},
      {{"aten::random", "from_out"}, on_clone_to_out<random_from>},
      {{"aten::random_", "to"}, on_self<random_to>},
      {{"aten::random", "to"}, on_clone<random_to>},
      {{"aten::random", "to_out"}, on_clone_to_out<random_to>},
      {{"aten::bernoulli", ""}, bernoulli_like},
      {{"aten::bernoulli", "out"}, bernoulli_out},
      {{"aten::bernoulli", "p"}, bernoulli_p},
      {{"aten::normal", "Tensor_float"}, normal_tensor_float},
      {{"aten::normal", "Tensor_float_out"}, normal_tensor_float_out},
      {{"aten::normal", "float_Tensor"}, normal_float_tensor},
      {{"aten::normal", "float_Tensor_out"}, normal_float_tensor_out},
      {{"aten::normal", "Tensor_Tensor"}, normal_tensor_tensor},
      {{"aten::normal", "Tensor_Tensor_out"}, normal_tensor_tensor_out},
      {{"aten::normal", "float_float_out"}, normal_float_float_out},
      {{"aten::rand", "out"}, rand_out},
      {{"aten::rand", "generator_out"}, rand_out},
      {{"aten::randn", "out"}, randn_out},
      {{"aten::randn", "generator_out"}, randn_out},
      {{"aten::randint", "out"}, randint_out},
      {{"aten::randint", "generator_out"}, randint_out},
      {{"aten::randint", "low_out"}, randint_low_out},
      {{"aten::randint", "low_generator_out"}, randint_low_out},
      {{"aten::randperm", "out"}, randperm_out},
      {{"aten::randperm", "generator_out"}, randperm_out},
      {{"aten::multinomial", ""}, multinomial},
      {{"aten::multinomial", "out"}, multinomial_out},
      {{"aten::native_dropout", ""}, native_dropout},
      {{"aten::native_dropout", "out"}, native_dropout},
      {{"aten::rrelu_with_noise", ""}, rrelu<4>},
      {{"aten::rrelu_with_noise", "out"}, rrelu<4>},
      {{"aten::rrelu_with_noise_", ""}, rrelu<4>},
      {{"aten::poisson", ""}, by_rejection},
      {{"aten::poisson", "out"}, by_rejection},
      {{"aten::binomial", ""}, by_rejection},
      {{"aten::binomial", "out"}, by_rejection},
      {{"aten::_standard_gamma", ""}, by_rejection},
      {{"aten::_standard_gamma", "out"}, by_rejection},
      {{"aten::_sample_dirichlet", ""}, by_rejection},
      {{"aten::_sample_dirichlet", "out"}, by_rejection},
      {{"aten::_scaled_dot_product_flash_attention_for_cpu", ""}, attention<3>},
      {{"aten::_fused_sdp_choice", ""}, attention<4>},
  };
  static std::unordered_map<c10::OperatorName, CheckedLaw> table(kLaws.begin(), kLaws.end());
  return table;
}

// A law reads geometry: anything but a defined, dense tensor on the CPU has another kernel.
bool readable(const c10::IValue& value) {
  return !value.isTensor() || is_plain_cpu_tensor(value.toTensor());
}

// Whether the law, if there is one, reads these arguments.
bool applies(const CheckedLaw* law, const c10::OperatorHandle& op, Arguments args) {
  if (law == nullptr) {
    return false;
  }
  TORCH_CHECK_VALUE(args.size() == op.schema().arguments().size(), "skip: ", op.operator_name(),
                    ": got ", args.size(), " arguments, expected ", op.schema().arguments().size(),
                    ". Fill in the schema's defaults.");
  return std::all_of(args.begin(), args.end(), readable);
}

}  // namespace

std::optional<size_t> generator_argument(const c10::FunctionSchema& schema) {
  const auto& arguments = schema.arguments();
  const auto found = std::find_if(arguments.begin(), arguments.end(), [](const auto& argument) {
    const auto* optional = argument.type()->template castRaw<c10::OptionalType>();
    const auto& type = optional ? *optional->getElementType() : *argument.type();
    return type.kind() == c10::TypeKind::GeneratorType;
  });
  return found == arguments.end() ? std::nullopt : std::optional<size_t>(found - arguments.begin());
}

CheckedLaw* law_of(const c10::OperatorHandle& op) {
  const auto law = laws().find(op.operator_name());
  return law == laws().end() ? nullptr : &law->second;
}

void prepare(CheckedLaw* law, const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> args) {
  if (applies(law, op, args)) {
    law->holds(op, args);
  }
}

Draw skip(CheckedLaw* law, const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> args,
          at::CPUGeneratorImpl& generator) {
  if (applies(law, op, args)) {
    return law->holds(op, args) ? law->law(args, generator) : Draw::unknown;
  }
  const bool random = law != nullptr || op.hasTag(at::Tag::nondeterministic_seeded) ||
                      generator_argument(op.schema()).has_value();
  return random ? Draw::unknown : Draw::none;
}

}  // namespace dormant::random
