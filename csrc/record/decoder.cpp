#include "record/decoder.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace dormant::record {
namespace {

// A task should take much longer than handing it to a thread: these take some 10 microseconds.
constexpr int64_t kElementsPerTask = 32768;

/// The elements of a part that `runs` name, one run after the other in `buffer`; the part's own
/// memory where they are one run.
const void* gathered(const at::Tensor& part, c10::ArrayRef<ElementRun> runs,
                     std::vector<std::byte>& buffer) {
  const auto itemsize = part.element_size();
  const auto* elements = static_cast<const std::byte*>(part.const_data_ptr());
  if (runs.size() == 1) {
    return elements + static_cast<size_t>(runs[0].begin) * itemsize;
  }
  size_t nbytes = 0;
  for (const auto& run : runs) {
    nbytes += static_cast<size_t>(run.count) * itemsize;
  }
  buffer.resize(std::max(buffer.size(), nbytes));
  auto* place = buffer.data();
  for (const auto& run : runs) {
    const auto count = static_cast<size_t>(run.count) * itemsize;
    std::memcpy(place, elements + static_cast<size_t>(run.begin) * itemsize, count);
    place += count;
  }
  return buffer.data();
}

}  // namespace

void check_wanted(const Decoder& decoder, size_t part, int64_t numel,
                  c10::ArrayRef<ElementRun> runs) {
  for (const auto& run : runs) {
    TORCH_CHECK_VALUE(run.begin >= 0 && run.count >= 0 && run.count <= numel - run.begin,
                      "dormant: ", decoder.name(), ": elements ", run.begin, " to ",
                      run.begin + run.count, " of part ", part, " were requested, but it has ",
                      numel);
  }
}

void run_range(const Decoder& decoder, c10::ArrayRef<at::Tensor> parts, int64_t begin,
               int64_t count, void* out) {
  std::vector<std::vector<std::byte>> buffers(parts.size());
  std::vector<const void*> elements;
  std::vector<ElementRun> runs;
  for (size_t i = 0; i < parts.size(); ++i) {
    runs.clear();
    decoder.wanted(i, begin, count, elements, runs);
    check_wanted(decoder, i, parts[i].numel(), runs);
    elements.push_back(gathered(parts[i], runs, buffers[i]));
  }
  decoder.run(begin, count, elements, out);
}

void run_whole(const Decoder& decoder, c10::ArrayRef<at::Tensor> parts, void* out) {
  const auto output = decoder.output();
  const auto count = output.numel();
  const auto itemsize = c10::elementSize(output.dtype);
  const auto unit = decoder.unit();
  const int64_t units = count / unit + (count % unit != 0 ? 1 : 0);
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / unit);
  at::parallel_for(0, units, grain, [&](int64_t first, int64_t last) {
    // Of a large tensor each thread gets much, and what is gathered should stay in its cache.
    for (auto task = first; task < last; task += grain) {
      const auto begin = task * unit;
      const auto end = std::min(std::min(task + grain, last) * unit, count);
      run_range(decoder, parts, begin, end - begin,
                static_cast<std::byte*>(out) + static_cast<size_t>(begin) * itemsize);
    }
  });
}

}  // namespace dormant::record
