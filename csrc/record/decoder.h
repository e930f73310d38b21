// What a decode node computes: one tensor from the tensors in which a checkpoint keeps it, such as
// packed integers and their scales.
//
// Neither the parts nor the result have to exist whole: the tile engine asks which elements of each
// part a range of the result is made of, reads just these, and hands them over, from any thread and
// in any order.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "record/geometry.h"
#include "system/export.h"

namespace dormant::record {

/// Consecutive elements of a tensor, in logical order.
struct ElementRun {
  int64_t begin;
  int64_t count;

  bool operator==(const ElementRun& other) const = default;
};

/// Made for tensors of certain sizes; immutable.
class DORMANT_BINDINGS_API Decoder {
 public:
  Decoder() = default;
  virtual ~Decoder() = default;
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  /// The result, contiguous, in the order of the parts' bytes as far as possible: where a library
  /// transposes it, so does whoever made the node, and the engine reads the parts in order.
  virtual Geometry output() const = 0;

  /// Sizes and dtypes of the parts, as contiguous tensors: `decode` refuses others. A part may be a
  /// view of any strides over its storage.
  virtual std::vector<Geometry> parts() const = 0;

  /// Elements of the result that are decoded together, at least one: `wanted` and `run` get
  /// multiples of it, but for the last elements of the result. It should be small (a block of a
  /// row): whoever wants less decodes a unit and drops the rest.
  virtual int64_t unit() const = 0;

  /// Appends the elements of part `part` that elements [begin, begin + count) of the result are
  /// made of, in the order in which `run` expects them. `earlier` are those of the parts before it,
  /// as they were wanted: what one part says may decide which elements of a later one are read.
  /// Values come from a file of anyone: ValueError where they lead outside a part.
  virtual void wanted(size_t part, int64_t begin, int64_t count, c10::ArrayRef<const void*> earlier,
                      std::vector<ElementRun>& runs) const = 0;

  /// Whether `wanted` looks at `earlier` for this part, so that nobody can say without reading
  /// which elements of it a range is made of.
  virtual bool depends_on_earlier(size_t part) const {
    static_cast<void>(part);
    return false;
  }

  /// Makes elements [begin, begin + count) of the result at `out` from what was wanted of each
  /// part, the runs one after the other. Any number of threads.
  virtual void run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
                   void* out) const = 0;

  /// The encoding in words that identify it, such as "fp8 e4m3, blocks of 128x128".
  virtual std::string name() const = 0;
};

/// Decodes real contiguous parts on the CPU into `out`, elements [begin, begin + count) of the
/// result. `begin` and `count` are multiples of the unit, but for the end.
DORMANT_BINDINGS_API void run_range(const Decoder& decoder, c10::ArrayRef<at::Tensor> parts,
                                    int64_t begin, int64_t count, void* out);

/// All elements of the result, with PyTorch's threads: what the tile engine does tile by tile.
void run_whole(const Decoder& decoder, c10::ArrayRef<at::Tensor> parts, void* out);

/// ValueError where `runs` lead outside a part of `numel` elements.
void check_wanted(const Decoder& decoder, size_t part, int64_t numel,
                  c10::ArrayRef<ElementRun> runs);

}  // namespace dormant::record
