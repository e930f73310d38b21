// Checks that the decoders of packed integers share: what the tensors of one layer say about each
// other. Everything comes from a file of anyone.
#pragma once

#include <c10/util/ArrayRef.h>
#include <cstdint>
#include <string>
#include <vector>

#include "record/decoder.h"
#include "record/geometry.h"
#include "simd/format.h"

namespace dormant::decode {

/// Sizes beyond this are refused, so that products of two of them with a few bits don't overflow.
constexpr int64_t kMostElementsOfADimension = int64_t{1} << 31;

/// ValueError for a value in a tensor of `module`, the layer that it belongs to.
[[noreturn]] void refuse_value(const std::string& module, const std::string& what);

/// ValueError for sizes, dtypes and settings, which whoever makes a decoder tells with names.
[[noreturn]] void refuse(const std::string& what);

/// Refuses where a dimension is empty or too large, or there are not so many of them.
void check_dimensions(const char* tensor, const record::Geometry& geometry, size_t dimensions);

/// Refuses other sizes; `why` says what they follow from.
void check_sizes(const char* tensor, const record::Geometry& geometry, c10::IntArrayRef expected,
                 const std::string& why);

void check_dtype(const char* tensor, const record::Geometry& geometry, c10::ScalarType expected);

/// Of scales: float32, bfloat16 or float16; others are refused.
simd::Format scale_format(const char* tensor, c10::ScalarType dtype);

/// How many words of 32 bits `count` codes of `bits` bits take.
constexpr int64_t words_of(int64_t count, int64_t bits) { return (count * bits + 31) / 32; }

/// The words that hold codes [begin, end), from one that begins with a whole byte before `begin`.
struct Words {
  int64_t begin;
  int64_t count;
  int64_t skipped_bytes;  ///< of the first word, before the byte in which the codes begin
  int64_t skipped_codes;  ///< in that byte and those after it, before `begin`
};
Words words_with(int64_t begin, int64_t end, int64_t bits);

/// Appends a run, as part of the last one where it follows it.
void append_run(int64_t begin, int64_t count, std::vector<record::ElementRun>& runs);

}  // namespace dormant::decode
