#include "random/exact_path.h"

#include <ATen/Version.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>

#include "random/aten_kernels.h"
#include "random/normal_elements.h"
#include "random/stream.h"
#include "random/typed_kernels.h"
#include "simd/kernels.h"

namespace dormant::random {
namespace {

using c10::ScalarType;

constexpr std::array kFloatingTypes = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half,
                                       ScalarType::Double};
constexpr std::array kBernoulliTypes = {ScalarType::Float,  ScalarType::BFloat16, ScalarType::Half,
                                        ScalarType::Double, ScalarType::Bool,     ScalarType::Byte,
                                        ScalarType::Char,   ScalarType::Short,    ScalarType::Int,
                                        ScalarType::Long};

// Elements compared in a trial: a multiple of 16, and enough for a few twists and the rare octants.
// The first part ends at a multiple of 16 inside a twist.
constexpr size_t kElements = 4096;
constexpr size_t kFirstPart = 1040;

using Bytes = std::array<unsigned char, kElements * sizeof(double)>;

struct Arguments {
  double a;
  double b;
};

// One operator under test: `aten` runs ATen's, `kernel` the own one and says whether there is one.
struct Trial {
  void (*aten)(at::mt19937_data_pod& engine, ScalarType dtype, void* out, size_t n,
               Arguments arguments);
  bool (*kernel)(const StreamKernels& kernels, EngineBlock& block, ScalarType dtype, void* out,
                 size_t n, Arguments arguments);
  std::span<const Arguments> arguments;
};

// A product that is rounded before the sum shows, and so does what becomes of a number that is
// rounded to the upper bound: in single precision between the second bounds, in double precision
// between the third.
constexpr std::array kBounds = {Arguments{-0.1, 0.7}, Arguments{1.0, 1.0 + 0x1p-20},
                                Arguments{1.0, 1.0 + 0x1p-50}};
constexpr std::array kMoments = {Arguments{0.0, 1.0}, Arguments{-0.3, 1.7}};
constexpr std::array kProbabilities = {Arguments{0.3, 0.0}, Arguments{0.9, 0.0}};

const Trial kUniform = {
    [](at::mt19937_data_pod& engine, ScalarType dtype, void* out, size_t n, Arguments arguments) {
      aten_uniform(engine, dtype, out, n, arguments.a, arguments.b);
    },
    [](const StreamKernels& kernels, EngineBlock& block, ScalarType dtype, void* out, size_t n,
       Arguments arguments) {
      return kernel_uniform(kernels, block, dtype, out, n, arguments.a, arguments.b);
    },
    kBounds,
};

const Trial kNormal = {
    [](at::mt19937_data_pod& engine, ScalarType dtype, void* out, size_t n, Arguments arguments) {
      aten_normal(engine, dtype, out, n, arguments.a, arguments.b);
    },
    [](const StreamKernels& kernels, EngineBlock& block, ScalarType dtype, void* out, size_t n,
       Arguments arguments) {
      return kernel_block_normal(kernels, block, dtype, out, n, arguments.a, arguments.b);
    },
    kMoments,
};

const Trial kBernoulli = {
    [](at::mt19937_data_pod& engine, ScalarType dtype, void* out, size_t n, Arguments arguments) {
      aten_bernoulli(engine, dtype, out, n, arguments.a);
    },
    [](const StreamKernels& kernels, EngineBlock& block, ScalarType dtype, void* out, size_t n,
       Arguments arguments) {
      return kernel_bernoulli(kernels, block, dtype, out, n, arguments.a);
    },
    kProbabilities,
};

bool same(const at::mt19937_data_pod& a, const at::mt19937_data_pod& b) {
  return a.left_ == b.left_ && a.next_ == b.next_ && a.state_ == b.state_;
}

// A place inside a twist, off every vector's alignment.
at::mt19937_data_pod start() {
  at::mt19937 engine(20260101);
  for (int i = 0; i < 1001; ++i) {
    engine();
  }
  return engine.data();
}

Path check(const StreamKernels& kernels, const Trial& trial, ScalarType dtype) {
  static const at::mt19937_data_pod origin = start();
  const size_t bytes = kElements * c10::elementSize(dtype);
  const size_t first_bytes = kFirstPart * c10::elementSize(dtype);
  bool kernel_equal = true;
  bool parts_equal = true;
  for (const Arguments& arguments : trial.arguments) {
    Bytes expected{};
    at::mt19937_data_pod whole = origin;
    trial.aten(whole, dtype, expected.data(), kElements, arguments);

    Bytes got{};
    Stream stream(origin);
    kernel_equal = kernel_equal &&
                   trial.kernel(kernels, stream.block(), dtype, got.data(), kElements, arguments) &&
                   same(stream.engine(), whole) &&
                   std::memcmp(got.data(), expected.data(), bytes) == 0;

    Bytes parts{};
    at::mt19937_data_pod engine = origin;
    trial.aten(engine, dtype, parts.data(), kFirstPart, arguments);
    trial.aten(engine, dtype, parts.data() + first_bytes, kElements - kFirstPart, arguments);
    parts_equal = parts_equal && same(engine, whole) &&
                  std::memcmp(parts.data(), expected.data(), bytes) == 0;
  }
  if (!parts_equal) {
    return Path::whole;
  }
  return kernel_equal ? Path::kernel : Path::aten;
}

// Whether normal_tail() says where the last elements come from.
bool tail_law_holds(ScalarType dtype) {
  constexpr size_t kNumel = 1003;
  Bytes expected{};
  at::mt19937_data_pod engine = start();
  aten_normal(engine, dtype, expected.data(), kNumel, 0.0, 1.0);

  Bytes tail{};
  const NormalTail law = normal_tail(dtype, kNumel);
  engine = start();
  at::mt19937 positioned;
  positioned.set_data(engine);
  for (uint64_t i = 0; i < law.draw; ++i) {
    positioned();
  }
  engine = positioned.data();
  aten_normal(engine, dtype, tail.data(), kNumel - law.begin, 0.0, 1.0);
  const size_t width = c10::elementSize(dtype);
  return std::memcmp(tail.data(), expected.data() + law.begin * width,
                     (kNumel - law.begin) * width) == 0;
}

void list(std::string& text, std::string_view name, const std::vector<Path>& paths, Path path) {
  std::string types;
  for (const ScalarType dtype : kBernoulliTypes) {
    const auto index = static_cast<size_t>(dtype);
    const bool taken = name == "bernoulli" || c10::isFloatingType(dtype);
    if (taken && paths[index] == path) {
      types += types.empty() ? "" : ", ";
      types += c10::toString(dtype);
    }
  }
  if (!types.empty()) {
    text += text.empty() ? "" : "; ";
    text += std::string(name) + " (" + types + ")";
  }
}

std::string describe(const ExactPath& path) {
  const auto operators = [&](Path which) {
    std::string text;
    list(text, "uniform", path.uniform, which);
    list(text, "normal", path.normal, which);
    list(text, "bernoulli", path.bernoulli, which);
    return text;
  };
  std::string text = std::string(path.kernels->name) + " kernels";
  if (const std::string by_aten = operators(Path::aten); !by_aten.empty()) {
    text += "; by ATen: " + by_aten;
  }
  if (const std::string whole = operators(Path::whole); !whole.empty()) {
    text += "; by ATen, whole tensors only: " + whole;
  }
  return text;
}

}  // namespace

const StreamKernels& stream_kernels() {
  static const StreamKernels& kernels = []() -> const StreamKernels& {
    const std::string aten = at::get_cpu_capability();
    const simd::Level level = aten == "AVX512" ? simd::Level::avx512
                              : aten == "AVX2" ? simd::Level::avx2
                                               : simd::Level::portable;
    return simd::kernels<StreamKernels>(std::min(level, simd::highest()));
  }();
  return kernels;
}

ExactPath check_exactness(const StreamKernels& kernels) {
  constexpr auto kTypes = static_cast<size_t>(ScalarType::NumOptions);
  ExactPath path{&kernels,
                 std::vector<Path>(kTypes, Path::whole),
                 std::vector<Path>(kTypes, Path::whole),
                 std::vector<Path>(kTypes, Path::whole),
                 {}};
  for (const ScalarType dtype : kFloatingTypes) {
    const auto index = static_cast<size_t>(dtype);
    path.uniform[index] = check(kernels, kUniform, dtype);
    path.normal[index] = tail_law_holds(dtype) ? check(kernels, kNormal, dtype) : Path::whole;
  }
  for (const ScalarType dtype : kBernoulliTypes) {
    path.bernoulli[static_cast<size_t>(dtype)] = check(kernels, kBernoulli, dtype);
  }
  path.description = describe(path);
  return path;
}

const ExactPath& exact_path() {
  static const ExactPath path = check_exactness(stream_kernels());
  return path;
}

}  // namespace dormant::random
