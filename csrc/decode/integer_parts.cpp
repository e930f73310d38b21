#include "decode/integer_parts.h"

#include <c10/util/Exception.h>

#include <optional>
#include <sstream>

#include "random/typed_kernels.h"
#include "text/printable.h"

namespace dormant::decode {
namespace {

std::string words_for(c10::IntArrayRef sizes) {
  std::ostringstream out;
  out << sizes;
  return out.str();
}

}  // namespace

void refuse_value(const std::string& module, const std::string& what) {
  TORCH_CHECK_VALUE(false, "dormant: cannot decode ", text::printable(module), ": ", what,
                    ". Cause: the file is damaged, or was written by another program. Next: get "
                    "it again, or open it with decode=False to get the packed tensors");
}

void refuse(const std::string& what) { TORCH_CHECK_VALUE(false, what); }

void check_dimensions(const char* tensor, const record::Geometry& geometry, size_t dimensions) {
  bool fits = geometry.sizes.size() == dimensions;
  for (const auto size : geometry.sizes) {
    fits = fits && size > 0 && size <= kMostElementsOfADimension;
  }
  if (!fits) {
    refuse(std::string(tensor) + " has shape " + words_for(geometry.sizes) + "; expected " +
           std::to_string(dimensions) + " dimensions, each from 1 to " +
           std::to_string(kMostElementsOfADimension));
  }
}

void check_sizes(const char* tensor, const record::Geometry& geometry, c10::IntArrayRef expected,
                 const std::string& why) {
  if (c10::IntArrayRef(geometry.sizes) != expected) {
    refuse(std::string(tensor) + " has shape " + words_for(geometry.sizes) + "; expected " +
           words_for(expected) + ", since " + why);
  }
}

void check_dtype(const char* tensor, const record::Geometry& geometry, c10::ScalarType expected) {
  if (geometry.dtype != expected) {
    refuse(std::string(tensor) + " is " + c10::toString(geometry.dtype) + "; expected " +
           c10::toString(expected));
  }
}

simd::Format scale_format(const char* tensor, c10::ScalarType dtype) {
  const std::optional<simd::Format> format = random::format_of(dtype);
  if (!format.has_value() || *format == simd::Format::float64) {
    refuse(std::string(tensor) + " is " + c10::toString(dtype) +
           "; expected Float, BFloat16 or Half");
  }
  return *format;
}

Words words_with(int64_t begin, int64_t end, int64_t bits) {
  const auto aligned = begin / 8 * 8;
  const auto byte = aligned / 8 * bits;
  const auto first = byte / 4;
  return {first, words_of(end, bits) - first, byte % 4, begin - aligned};
}

void append_run(int64_t begin, int64_t count, std::vector<record::ElementRun>& runs) {
  if (!runs.empty() && runs.back().begin + runs.back().count == begin) {
    runs.back().count += count;
  } else {
    runs.push_back({begin, count});
  }
}

}  // namespace dormant::decode
