// Histories: what was written to a storage that has no memory yet.
//
// A node is one write (an ATen operator, bytes of a file, a quantization, a decoding). Nodes are
// immutable values: they point only to earlier nodes and to buffers, so histories form a directed
// graph without cycles, replaying one changes nothing in it, and any number of storages may be
// derived from the same node.
//
//   StorageImpl --(DataPtr context)--> History { buffer, tail } --> Node --> earlier Nodes
//
// A Buffer is only the identity of the bytes that a run of nodes reads and writes; it never points
// to a node.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "random/position.h"
#include "record/decoder.h"
#include "record/geometry.h"
#include "record/quantizer.h"
#include "record/source.h"
#include "system/export.h"

namespace dormant::record {

/// The bytes of one storage, before it has any: an identity that replay maps to memory.
struct Buffer : c10::intrusive_ptr_target {
  explicit Buffer(size_t bytes) : nbytes(bytes), owner(c10::intrusive_ptr<c10::StorageImpl>()) {}
  const size_t nbytes;
  c10::weak_intrusive_ptr<c10::StorageImpl>
      owner;  ///< the lazy storage it belongs to, if that lives
};
using BufferPtr = c10::intrusive_ptr<Buffer>;

struct Node;
using NodePtr = c10::intrusive_ptr<Node>;

/// A tensor that a node reads or writes: either lazy (a buffer as `before` left it) or captured
/// (real, a copy).
struct Operand {
  Geometry geometry;
  BufferPtr buffer;     ///< null for a captured tensor
  NodePtr before;       ///< the last write that this operand must see; null when it needs none
  at::Tensor captured;  ///< a private copy of a real tensor; undefined for a lazy one
  bool written = false;
};

/// Argument slots. A tensor is an index into Node::operands; -1 stands for None.
struct TensorSlot {
  int32_t operand;
};
struct TensorListSlot {
  std::vector<int32_t> operands;
  bool optional_elements;
};
/// Replaced by a generator that stands at Node::position.
struct GeneratorSlot {};
using Argument = std::variant<c10::IValue, TensorSlot, TensorListSlot, GeneratorSlot>;

enum class NodeKind : uint8_t {
  /// op(arguments) writes its mutable operands.
  in_place,
  /// op(arguments) returns new tensors, which are the operands from `first_result` on.
  functional,
  /// operands[0], all bytes of its buffer, are those of `source` from `source_offset` on.
  read,
  /// operands[1..] are what `quantizer` makes of operands[0].
  quantize,
  /// operands[0], all of its buffer, is what `decoder` makes of operands[1..].
  decode,
};

struct Node : c10::intrusive_ptr_target {
  explicit Node(c10::OperatorHandle handle) : op(std::move(handle)) {}
  ~Node() override;

  uint64_t sequence = 0;  ///< order of recording: every node a node depends on has a smaller one
  NodeKind kind = NodeKind::in_place;
  c10::OperatorHandle op;
  std::vector<Argument> arguments;
  std::vector<Operand> operands;
  size_t first_result = 0;                   ///< functional: operands[first_result..] are results
  std::optional<random::Position> position;  ///< where its random numbers start
  std::shared_ptr<const Source> source;
  uint64_t source_offset = 0;  ///< in bytes
  std::shared_ptr<const Quantizer> quantizer;
  std::shared_ptr<const Decoder> decoder;
  /// How many threads PyTorch used: reductions split their sums by it. The default dtype is
  /// nowhere: what is recorded does not depend on it (default_dtype.h).
  int32_t threads = 1;

 private:
  /// Gives up a reference; a node that nobody else refers to waits for the outermost destructor.
  static void release(NodePtr node) noexcept;

  Node* next_dying_ = nullptr;
};

/// Whether the node gives elements their first values: a fill, or random numbers.
bool initializes(const Node& node);

/// A number for the next node; grows over the whole process.
uint64_t next_sequence();

/// The nodes that `tails` depend on, themselves included, in the order in which they were recorded.
std::vector<Node*> closure(c10::ArrayRef<Node*> tails);

/// Full names of the operators that a history ends in, in the order of recording.
DORMANT_BINDINGS_API std::vector<std::string> operator_names(const NodePtr& tail);

/// Names of the files, and of other memory, that it reads.
DORMANT_BINDINGS_API std::set<std::string> source_names(const NodePtr& tail);

/// Bytes of a file.
struct FileRange {
  std::string name;
  uint64_t begin;
  uint64_t end;

  auto operator<=>(const FileRange& other) const = default;
};

/// The tensors of files that it reads, whole or in part, in the order of their places; not memory
/// that somebody holds.
DORMANT_BINDINGS_API std::set<FileRange> file_ranges(const NodePtr& tail);

/// "aten::normal_" or "aten::add.Tensor".
DORMANT_BINDINGS_API std::string full_name(const c10::OperatorHandle& op);

}  // namespace dormant::record
