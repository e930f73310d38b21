#include "record/quantizer.h"

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace dormant::record {
namespace {

// A task should take much longer than handing it to a thread: these take some 10 microseconds.
constexpr int64_t kElementsPerTask = 32768;

void check_source(const Quantizer& quantizer, const at::Tensor& source) {
  TORCH_CHECK_VALUE(source.device().is_cpu() && source.is_contiguous(),
                    "dormant: ", quantizer.name(), ": got a source on ", source.device(),
                    " with strides ", source.strides(), " for sizes ", source.sizes(),
                    "; expected a contiguous CPU tensor");
  const auto dtype = source.scalar_type();
  TORCH_CHECK_VALUE(dtype == c10::ScalarType::Float || dtype == c10::ScalarType::BFloat16 ||
                        dtype == c10::ScalarType::Half,
                    "dormant: ", quantizer.name(), ": got a source of ", dtype,
                    "; expected float32, bfloat16 or float16. Convert it first");
}

}  // namespace

void run_whole(const Quantizer& quantizer, const at::Tensor& source,
               c10::ArrayRef<at::Tensor> outputs, int threads) {
  check_source(quantizer, source);
  const auto sizes = source.sizes();
  const auto expected = quantizer.outputs(sizes);
  TORCH_CHECK_VALUE(outputs.size() == expected.size(), "dormant: ", quantizer.name(), ": got ",
                    outputs.size(), " outputs, expected ", expected.size());
  std::vector<void*> memory;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& output = outputs[i];
    TORCH_CHECK_VALUE(output.sizes() == c10::IntArrayRef(expected[i].sizes) &&
                          output.scalar_type() == expected[i].dtype && output.is_contiguous(),
                      "dormant: ", quantizer.name(), ": output ", i, " has sizes ", output.sizes(),
                      ", strides ", output.strides(), " and dtype ", output.scalar_type(),
                      "; expected contiguous ", c10::IntArrayRef(expected[i].sizes), " of ",
                      expected[i].dtype);
    memory.push_back(output.mutable_data_ptr());
  }
  std::vector<c10::DataPtr> scratch;
  for (const auto& geometry : quantizer.scratch(sizes)) {
    scratch.push_back(c10::GetCPUAllocator()->allocate(geometry.nbytes_needed()));
    memory.push_back(scratch.back().get());
  }

  const auto* elements = static_cast<const char*>(source.const_data_ptr());
  const auto width = static_cast<int64_t>(source.element_size());
  const int64_t count = source.numel();
  const int64_t unit = quantizer.unit(sizes);
  const int64_t units = count / unit + (count % unit != 0 ? 1 : 0);
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / unit);
  at::parallel_for(0, units, grain, [&](int64_t first, int64_t last) {
    const int64_t begin = first * unit;
    const int64_t end = last == units ? count : last * unit;  // the last unit may be incomplete
    auto there = memory;
    there[0] = static_cast<char*>(memory[0]) + quantizer.packed_bytes(begin);
    quantizer.run(elements + begin * width, source.scalar_type(), sizes, begin, end - begin, there);
  });
  quantizer.finish(sizes, threads, memory);
}

}  // namespace dormant::record
