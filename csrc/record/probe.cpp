#include "record/probe.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "system/dispatch_state.h"
#include "system/no_warnings.h"
#include "system/refusal.h"

namespace dormant::record {
namespace {

/// Arguments and results up to so many elements are tried in their true sizes.
constexpr int64_t kFewElements = 4096;

/// Larger sizes are shrunk to this. 1 would broadcast.
constexpr int64_t kShrunk = 2;

/// What the stand-ins hold, as fraction, integer and bool. The integers of operators that are not
/// pointwise are 0 always: another could be a position that the kernel does not check.
enum class Contents : uint8_t {
  ordinary,      ///< 0.5, which is a probability, too, 1, true
  zero,          ///< 0, 0, false
  negative,      ///< -1, -1, true
  not_a_number,  ///< NaN, 1, false
};

enum class Dtypes : uint8_t {
  own,
  float_for_fractions,  ///< float32 for every other floating or complex dtype
  float_for_all,        ///< float32 for integers and bool, too
  integer_for_all,      ///< int64 for every dtype
  bool_for_all,
};

struct Trial {
  bool whole = false;          ///< true sizes
  bool short_numbers = false;  ///< sizes among the integer arguments are shrunk as well
  bool only_sizes = false;     ///< 1 for every Python scalar, memory of its own for every tensor
  Dtypes dtypes = Dtypes::own;
  Contents values = Contents::ordinary;
};

enum class Verdict : uint8_t { accepted, refused, index_error, other_geometry };

c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

/// The bytes of a storage that its tensors among the arguments reach.
struct Span {
  int64_t begin = std::numeric_limits<int64_t>::max();
  int64_t end = 0;

  void add(const at::Tensor& tensor) {
    const auto size = static_cast<int64_t>(tensor.element_size());
    int64_t last = tensor.numel() == 0 ? -1 : 0;
    for (int64_t i = 0; tensor.numel() != 0 && i < tensor.dim(); ++i) {
      last += (tensor.size(i) - 1) * tensor.stride(i);
    }
    // Elements of every dtype are aligned from here on.
    constexpr int64_t kLargestElement = 16;
    begin = std::min(begin, tensor.storage_offset() * size / kLargestElement * kLargestElement);
    end = std::max(end, (tensor.storage_offset() + last + 1) * size);
  }
};

/// `strides` for smaller sizes: dense, in the same order, but where elements share memory.
c10::SmallVector<int64_t, 5> shrunk_strides(c10::IntArrayRef sizes, c10::IntArrayRef strides) {
  const auto dense = at::infer_dense_strides(sizes, strides);
  c10::SmallVector<int64_t, 5> result(dense.begin(), dense.end());
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1 && strides[i] == 0) {
      result[i] = 0;
    }
  }
  return result;
}

int64_t shrunk(int64_t number) { return std::min(number, kShrunk); }

/// Whether an argument's integers may be sizes. Bounds of random numbers and dtypes are none.
bool holds_sizes(const c10::Argument& argument) {
  const auto& name = argument.name();
  const auto type = argument.real_type()->str();
  return (type.find("int") != std::string::npos || type.find("Int") != std::string::npos) &&
         name != "low" && name != "high" && name != "from" && name != "to";
}

/// Whether an argument is a Python scalar, as type promotion sees it.
bool is_scalar(const c10::IValue& value, const c10::Argument& argument) {
  return value.isScalar() && argument.type()->str().find("Scalar") == 0;
}

bool holds_dtype(const c10::Argument& argument) {
  return argument.real_type()->str().find("ScalarType") != std::string::npos;
}

/// The arguments of one trial.
class StandIns {
 public:
  StandIns(const Call& call, const Trial& trial)
      : trial_(trial), pointwise_(call.op.hasTag(at::Tag::pointwise)) {
    if (trial_.whole) {
      for_each_tensor(call, [&](const at::Tensor& tensor) {
        if (!tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
          spans_[storage_of(tensor)].add(tensor);
        }
      });
    }
    const auto arguments = call.arguments();
    const auto& formals = call.op.schema().arguments();
    for (size_t i = 0; i < arguments.size(); ++i) {
      stack_.push_back(argument(arguments[i], formals[i]));
    }
  }

  torch::jit::Stack& stack() { return stack_; }

 private:
  c10::IValue argument(const c10::IValue& value, const c10::Argument& formal) {
    if (formal.type()->str().find("Generator") != std::string::npos) {
      return at::Generator(c10::make_intrusive<at::CPUGeneratorImpl>());
    }
    if (trial_.only_sizes && is_scalar(value, formal)) {
      return int64_t{1};
    }
    if (trial_.dtypes != Dtypes::own && value.isInt() && holds_dtype(formal)) {
      return static_cast<int64_t>(dtype_for(c10::ScalarType::Float));
    }
    if (trial_.dtypes != Dtypes::own && value.isComplexDouble()) {
      return value.toComplexDouble().real();
    }
    if (trial_.short_numbers && holds_sizes(formal)) {
      if (value.isInt()) {
        return shrunk(value.toInt());
      }
      if (value.isIntList()) {
        auto numbers = value.toIntVector();
        std::transform(numbers.begin(), numbers.end(), numbers.begin(), shrunk);
        return numbers;
      }
    }
    // Lists of numbers stay the caller's: no kernel changes them.
    return map_tensors(value, [&](const at::Tensor& tensor) { return stand_in(tensor); });
  }

  at::Tensor stand_in(const at::Tensor& tensor) {
    const auto dtype = dtype_for(tensor.scalar_type());
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
      return number(tensor, dtype);
    }
    auto geometry = Geometry::of(tensor);
    const auto key = std::make_pair(storage_of(tensor), geometry);
    for (const auto& [known, made] : made_) {
      if (known == key && !trial_.only_sizes) {
        return made;
      }
    }
    geometry.dtype = dtype;
    auto made = trial_.whole ? in_true_size(tensor, geometry) : in_small(geometry);
    made_.emplace_back(key, made);
    return made;
  }

  /// A Python scalar, which stays one.
  at::Tensor number(const at::Tensor& tensor, c10::ScalarType dtype) const {
    const bool loses_imaginary_part = tensor.is_complex() && !c10::isComplexType(dtype);
    if (!trial_.only_sizes && !loses_imaginary_part) {
      return tensor;
    }
    auto result = trial_.only_sizes
                      ? at::scalar_tensor(1, at::kLong)
                      : at::scalar_tensor(tensor.item().toComplexDouble().real(), at::kDouble);
    result.unsafeGetTensorImpl()->set_wrapped_number(true);
    return result;
  }

  at::Tensor in_true_size(const at::Tensor& tensor, Geometry geometry) {
    const auto& span = spans_[storage_of(tensor)];
    auto& storage = storages_[storage_of(tensor)];
    if (!storage) {
      storage =
          memory(static_cast<size_t>(std::max<int64_t>(span.end - span.begin, 0)), geometry.dtype);
    }
    geometry.offset -= span.begin / static_cast<int64_t>(c10::elementSize(geometry.dtype));
    return geometry.over(storage);
  }

  at::Tensor in_small(Geometry geometry) const {
    std::transform(geometry.sizes.begin(), geometry.sizes.end(), geometry.sizes.begin(), shrunk);
    geometry.strides = shrunk_strides(geometry.sizes, geometry.strides);
    geometry.offset = 0;
    return geometry.over(memory(geometry.nbytes_needed(), geometry.dtype));
  }

  /// Bytes that hold the trial's value in every element.
  c10::Storage memory(size_t nbytes, c10::ScalarType dtype) const {
    const auto size = c10::elementSize(dtype);
    const auto elements = static_cast<int64_t>((nbytes + size - 1) / size);
    const at::Tensor flat = at::detail::empty_cpu({elements}, dtype);
    flat.fill_(value_for(dtype));
    return flat.storage();
  }

  c10::Scalar value_for(c10::ScalarType dtype) const {
    constexpr auto kNaN = std::numeric_limits<double>::quiet_NaN();
    constexpr std::array<double, 4> kFractions = {0.5, 0, -1, kNaN};
    constexpr std::array<int64_t, 4> kIntegers = {1, 0, -1, 1};
    constexpr std::array<bool, 4> kBools = {true, false, true, false};
    const auto i = static_cast<size_t>(trial_.values);
    if (dtype == c10::ScalarType::Bool) {
      return kBools[i];
    }
    if (c10::isFloatingType(dtype) || c10::isComplexType(dtype)) {
      return kFractions[i];
    }
    return pointwise_ ? kIntegers[i] : 0;
  }

  c10::ScalarType dtype_for(c10::ScalarType dtype) const {
    switch (trial_.dtypes) {
      case Dtypes::own:
        return dtype;
      case Dtypes::float_for_fractions:
        return c10::isFloatingType(dtype) || c10::isComplexType(dtype) ? c10::ScalarType::Float
                                                                       : dtype;
      case Dtypes::float_for_all:
        return c10::ScalarType::Float;
      case Dtypes::integer_for_all:
        return c10::ScalarType::Long;
      case Dtypes::bool_for_all:
        return c10::ScalarType::Bool;
    }
    return dtype;
  }

  const Trial trial_;
  const bool pointwise_;
  std::map<c10::StorageImpl*, Span> spans_;
  std::map<c10::StorageImpl*, c10::Storage> storages_;
  std::vector<std::pair<std::pair<c10::StorageImpl*, Geometry>, at::Tensor>> made_;
  torch::jit::Stack stack_;
};

/// Whether the kernel returned what its Meta kernel promised; of shrunk arguments only the dtypes
/// tell.
bool agree(const torch::jit::Stack& returned, const std::vector<Geometry>& promised, bool whole) {
  std::vector<Geometry> found;
  for (const auto& value : returned) {
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      if (tensor.layout() == c10::kStrided) {
        found.push_back(Geometry::of(tensor));
      }
    });
  }
  return std::equal(found.begin(), found.end(), promised.begin(), promised.end(),
                    [&](const Geometry& a, const Geometry& b) {
                      return a.dtype == b.dtype &&
                             (!whole || (a.sizes == b.sizes && a.strides == b.strides));
                    });
}

/// Whether the arguments, and what comes of them, are small.
bool has_few_elements(const Call& call, const std::vector<Geometry>& results) {
  constexpr int64_t kResultsPerArgument = 4;
  std::map<c10::StorageImpl*, Span> spans;
  for_each_tensor(call, [&](const at::Tensor& tensor) { spans[storage_of(tensor)].add(tensor); });
  int64_t bytes = 0;
  for (const auto& [storage, span] : spans) {
    bytes += std::max<int64_t>(span.end - span.begin, 0);
  }
  int64_t elements = 0;
  for (const auto& result : results) {
    elements += result.numel();
  }
  constexpr int64_t kBytesPerElement = 8;
  return bytes <= kFewElements * kBytesPerElement && elements <= kFewElements * kResultsPerArgument;
}

/// Whether the integers among the arguments, if they are sizes, stay small.
bool has_small_numbers(const Call& call) {
  constexpr int64_t kLargestResult = 65536;
  int64_t product = 1;
  const auto multiply = [&](int64_t number) {
    if (number > kShrunk && product <= kLargestResult) {
      product = number > kLargestResult ? number : product * number;
    }
  };
  const auto arguments = call.arguments();
  const auto& formals = call.op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!holds_sizes(formals[i])) {
      continue;
    }
    if (arguments[i].isInt()) {
      multiply(arguments[i].toInt());
    } else if (arguments[i].isIntList()) {
      for (const auto number : arguments[i].toIntVector()) {
        multiply(number);
      }
    }
  }
  return product <= kLargestResult;
}

/// Integers beside fractions in an operator that neither is pointwise nor moves data are positions,
/// and only running it tells whether they fit. Where there is an index rule, values_in_range has
/// looked.
bool reads_positions(const Call& call) {
  if (call.traits.movement || call.traits.random || call.traits.index != IndexRule::none ||
      call.op.hasTag(at::Tag::pointwise)) {
    return false;
  }
  bool integers = false;
  bool fractions = false;
  const auto arguments = call.arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& written = call.traits.written;
    if (std::find(written.begin(), written.end(), i) != written.end()) {
      continue;
    }
    for_each_tensor(arguments[i], [&](const at::Tensor& tensor) {
      if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
        return;
      }
      const auto dtype = tensor.scalar_type();
      integers = integers || c10::isIntegralType(dtype, /*includeBool=*/false);
      fractions = fractions || c10::isFloatingType(dtype) || c10::isComplexType(dtype);
    });
  }
  return integers && fractions;
}

class Probe {
 public:
  Probe(const Call& call, const std::vector<Geometry>& results) : call_(call), results_(results) {}

  bool accepted() const {
    if (has_few_elements(call_, results_)) {
      const Trial trial{.whole = true};
      return run(trial) == Verdict::accepted && accepts_other_values(trial);
    }
    return accepted_when_shrunk();
  }

 private:
  Verdict run(const Trial& trial) const {
    try {
      StandIns stand_ins(call_, trial);
      call_.op.callBoxed(stand_ins.stack());
      const bool comparable =
          call_.traits.route == Route::functional && trial.dtypes == Dtypes::own;
      return !comparable || agree(stand_ins.stack(), results_, trial.whole)
                 ? Verdict::accepted
                 : Verdict::other_geometry;
    } catch (const c10::IndexError&) {
      return Verdict::index_error;
    } catch (const std::exception& error) {
      if (!system::is_refusal(error)) {
        throw;
      }
      return Verdict::refused;
    }
  }

  /// Kernels that look at values refuse one of these.
  bool accepts_other_values(Trial trial) const {
    if (call_.traits.random) {
      return true;  // values_in_range looks at the values themselves
    }
    for (const auto values : {Contents::zero, Contents::negative, Contents::not_a_number}) {
      trial.values = values;
      if (run(trial) != Verdict::accepted) {
        return false;
      }
    }
    return true;
  }

  bool accepted_when_shrunk() const {
    if (call_.traits.write == WriteRule::range) {
      return false;  // it would make as many elements as its numbers say
    }
    const auto trials = [small = has_small_numbers(call_)](Dtypes dtypes) {
      std::vector<Trial> result;
      if (small) {
        result.push_back({.dtypes = dtypes});
      }
      result.push_back({.short_numbers = true, .dtypes = dtypes});
      return result;
    };
    bool index_error = false;
    for (const auto& trial : trials(Dtypes::own)) {
      const auto verdict = run(trial);
      if (verdict == Verdict::accepted) {
        return accepts_other_values(trial);
      }
      if (verdict == Verdict::other_geometry) {
        return false;
      }
      index_error = index_error || (!trial.short_numbers && verdict == Verdict::index_error);
    }
    // If the sizes are fine, it was something else that the kernel refused.
    for (const auto dtypes : {Dtypes::own, Dtypes::float_for_fractions, Dtypes::float_for_all,
                              Dtypes::integer_for_all, Dtypes::bool_for_all}) {
      for (auto trial : trials(dtypes)) {
        trial.only_sizes = true;
        if (run(trial) == Verdict::accepted) {
          return false;
        }
      }
    }
    return !index_error || call_.traits.movement;
  }

  const Call& call_;
  const std::vector<Geometry>& results_;
};

}  // namespace

bool cpu_accepts(const Call& call, const std::vector<Geometry>& results) {
  bool on_cpu = true;
  for_each_tensor(call, [&](const at::Tensor& tensor) { on_cpu = on_cpu && tensor.is_cpu(); });
  if (!on_cpu) {
    return true;
  }
  if (call.traits.random && !call.traits.generator) {
    return false;  // it would draw from the default generator
  }
  if (reads_positions(call)) {
    return false;
  }
  const system::PlainDispatch plain;
  const system::NoWarnings quiet;
  return Probe(call, results).accepted();
}

std::optional<Sample> try_small(const Call& call) {
  if (!has_small_numbers(call)) {
    return std::nullopt;
  }
  const system::PlainDispatch plain;
  const system::NoWarnings quiet;
  try {
    StandIns stand_ins(call, Trial{});
    Sample sample{stand_ins.stack(), {}};
    call.op.callBoxed(stand_ins.stack());
    sample.result = stand_ins.stack().back();
    return sample;
  } catch (const std::exception& error) {
    if (!system::is_refusal(error)) {
      throw;
    }
    return std::nullopt;
  }
}

}  // namespace dormant::record
