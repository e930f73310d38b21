#include "random/aten_kernels.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/bernoulli_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/normal_native.h>
#include <ATen/ops/uniform_native.h>

#include <cstdint>

namespace dormant::random {
namespace {

// Calls operate(tensor, generator) with a tensor over `out` and a generator whose engine is
// `engine`.
template <class Operate>
void with_generator(at::mt19937_data_pod& engine, c10::ScalarType dtype, void* out, size_t n,
                    Operate&& operate) {
  at::Generator generator = at::detail::createCPUGenerator();
  auto* const impl = generator.get<at::CPUGeneratorImpl>();
  at::mt19937 positioned;
  positioned.set_data(engine);
  impl->set_engine(positioned);
  at::Tensor tensor =
      at::from_blob(out, {static_cast<int64_t>(n)}, at::TensorOptions().dtype(dtype));
  operate(tensor, generator);
  engine = impl->engine().data();
}

}  // namespace

void aten_uniform(at::mt19937_data_pod& engine, c10::ScalarType dtype, void* out, size_t n,
                  double from, double to) {
  with_generator(engine, dtype, out, n, [&](at::Tensor& tensor, const at::Generator& generator) {
    at::native::uniform_(tensor, from, to, generator);
  });
}

void aten_normal(at::mt19937_data_pod& engine, c10::ScalarType dtype, void* out, size_t n,
                 double mean, double std) {
  with_generator(engine, dtype, out, n, [&](at::Tensor& tensor, const at::Generator& generator) {
    at::native::normal_(tensor, mean, std, generator);
  });
}

void aten_bernoulli(at::mt19937_data_pod& engine, c10::ScalarType dtype, void* out, size_t n,
                    double p) {
  with_generator(engine, dtype, out, n, [&](at::Tensor& tensor, const at::Generator& generator) {
    at::native::bernoulli_(tensor, p, generator);
  });
}

}  // namespace dormant::random
