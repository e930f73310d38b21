// A history as a program over tiles: it can produce any elements of its storage, in any order, on
// any thread.
//
// A program is the list of writes to one storage. Each write covers a range of elements and is one
// of a few kinds whose result at an element does not depend on where a tile starts; a copy reads
// the program of another storage. What is not of these kinds has no program and is replayed whole.
#pragma once

#include <ATen/core/Tensor.h>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "record/node.h"
#include "tile/mapping.h"
#include "tile/region.h"

namespace dormant::tile {

class Program;

enum class StepKind : uint8_t {
  uniform,    ///< uniform_(a, b)
  normal,     ///< a contiguous normal_(a, b) of at least 16 elements
  bernoulli,  ///< bernoulli_(a)
  draw,       ///< another random operator that draws the same number of times for each element
  in_place,   ///< an elementwise operator on the elements themselves, and on other storages'
  compute,    ///< an elementwise operator on other storages' elements
  copy,       ///< the elements of another storage, cast
  read,       ///< bytes that exist elsewhere
  decode,     ///< what a decoder makes of other storages' elements, the first part first
};

/// Runs of random numbers that lie close together are drawn as one span of at most so many.
constexpr size_t kLongestSpan = 4096;

/// Elements of another storage that a step reads.
struct Input {
  std::shared_ptr<const Program> program;
  Mapping mapping;
  size_t operand = 0;  ///< of the node
};

struct Step {
  StepKind kind = StepKind::in_place;
  Region region;  ///< the elements of the storage that are written
  record::NodePtr node;
  double a = 0;  ///< parameters of the distribution
  double b = 0;
  uint64_t draws = 0;  ///< of an element, where kind is draw
  std::vector<Input> inputs;
};

class Program {
 public:
  /// The program of a history, or null where it has none.
  static std::shared_ptr<const Program> of(const record::Buffer& buffer,
                                           const record::NodePtr& tail);

  /// The same of the elements of a tensor over that storage, in logical order.
  static std::shared_ptr<const Program> of(const record::Geometry& tensor,
                                           const record::Buffer& buffer,
                                           const record::NodePtr& tail);

  c10::ScalarType dtype() const { return dtype_; }
  size_t itemsize() const { return itemsize_; }
  int64_t numel() const { return numel_; }
  const std::vector<Step>& steps() const { return steps_; }

  /// A program that is a table of values instead of steps; undefined otherwise. Contiguous.
  const at::Tensor& table() const { return table_; }

  /// Bytes of a source, in order.
  struct Range {
    std::shared_ptr<const record::Source> source;
    uint64_t offset = 0;
    size_t nbytes = 0;
  };

  /// What all elements are a plain copy of, if they are.
  std::optional<Range> copied_range() const;

  /// Where in a source elements [begin, begin + count) are read from, whatever is made of them.
  std::optional<Range> read_range(int64_t begin, int64_t count) const;

  /// Appends which bytes of sources a reader of `runs` reads, whatever is made of them: exactly
  /// those where it can be told, and in any order.
  void append_reads(Runs runs, std::vector<Range>& ranges) const;

  /// What the elements come from.
  struct Origins {
    size_t read = 0;         ///< bytes of elements that are made from a source's
    size_t initialized = 0;  ///< bytes of elements that are drawn or filled
    std::set<const record::Source*> sources;
  };
  Origins origins() const;

  /// Bytes that a reader of this program needs, besides its result, to read `elements` in `ranges`
  /// runs: buffers, lists of runs and positions in random streams.
  size_t scratch_bytes(int64_t elements, int64_t ranges = 1) const;

 private:
  friend class Lowering;

  size_t scratch_of_parts(const Step& step, int64_t elements, int64_t ranges) const;

  c10::ScalarType dtype_ = c10::ScalarType::Byte;
  size_t itemsize_ = 1;
  int64_t numel_ = 0;
  std::vector<Step> steps_;
  at::Tensor table_;
};

}  // namespace dormant::tile
