// What a quantize node computes: several outputs, unit by unit, from the elements of one tensor.
//
// The tensor never has to exist: the tile engine hands its elements over as it makes them, from any
// thread and in any order, so long as each call has whole units.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>
#include <cstdint>
#include <string>
#include <vector>

#include "record/geometry.h"
#include "system/export.h"

namespace dormant::record {

class DORMANT_BINDINGS_API Quantizer {
 public:
  Quantizer() = default;
  virtual ~Quantizer() = default;
  Quantizer(const Quantizer&) = delete;
  Quantizer& operator=(const Quantizer&) = delete;

  /// Contiguous outputs for a source of `sizes`, the packed elements first. ValueError where such a
  /// source can't be quantized.
  virtual std::vector<Geometry> outputs(c10::IntArrayRef sizes) const = 0;

  /// What `run` leaves for `finish` besides the outputs.
  virtual std::vector<Geometry> scratch(c10::IntArrayRef sizes) const = 0;

  /// Elements that are quantized together, at least one: `run` gets multiples of it.
  virtual int64_t unit(c10::IntArrayRef sizes) const = 0;

  /// Bytes that `count` elements from the beginning of a unit take when they are packed.
  virtual int64_t packed_bytes(int64_t count) const = 0;

  /// Quantizes elements [begin, begin + count) of the source, in logical order; `begin` is a
  /// multiple of the unit, and so is `count` unless it reaches the end. `dtype` is float32,
  /// bfloat16 or float16. `memory` begins with where the packed elements of this call go; then
  /// comes that of the other outputs, each whole, then of the scratch. Any number of threads.
  virtual void run(const void* source, c10::ScalarType dtype, c10::IntArrayRef sizes, int64_t begin,
                   int64_t count, c10::ArrayRef<void*> memory) const = 0;

  /// Called once, when all elements have been through `run`, with the memory of the outputs but the
  /// first, which it does not look at, and of the scratch. `threads` is the number that the
  /// library concerned would use (at::get_num_threads() when the node was recorded): sums over many
  /// elements depend on it.
  virtual void finish(c10::IntArrayRef sizes, int threads, c10::ArrayRef<void*> memory) const = 0;

  /// The scheme in words that identify it, such as "nf4, blocks of 64, nested".
  virtual std::string name() const = 0;
};

/// Quantizes a tensor that exists, with PyTorch's threads: what the tile engine does tile by tile.
/// `outputs` have the geometry that the quantizer says, each over memory of its own. ValueError
/// where `source` is not a contiguous CPU tensor of a dtype that `run` takes, or does not fit.
DORMANT_BINDINGS_API void run_whole(const Quantizer& quantizer, const at::Tensor& source,
                                    c10::ArrayRef<at::Tensor> outputs, int threads);

}  // namespace dormant::record
