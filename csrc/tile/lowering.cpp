// How a history becomes a program, or why it cannot.
#include "tile/program.h"

#include <ATen/core/MT19937RNGEngine.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <utility>

#include "random/exact_path.h"
#include "record/operator_traits.h"
#include "record/replay.h"
#include "tile/layout.h"
#include "tile/walk.h"

namespace dormant::tile {

using record::Geometry;
using record::Node;
using record::NodePtr;
using record::Operand;
using record::TileRule;

namespace {

// Chains of copies deeper than this, or programs that read more sources than this, are replayed
// instead: their cost would no longer be in proportion to what is wanted.
constexpr int kMaxDepth = 32;
// Boxes may read several elements for one, at every level.
constexpr int kDepthOfBoxes = 8;
constexpr int kMaxSources = 64;
// Parts of a cat or stack are made one or the other: only their number in all is bounded, since
// each tile looks at every part's region.
constexpr int kMaxPrograms = 16'384;

// A random operator that has no kernel here but few elements is run once, whole, and kept as a
// table.
constexpr int64_t kMaxTable = 4096;

/// Whether the operator of `node`, which writes in place or returns a tensor, computes elements
/// that are the same wherever a tile starts.
bool computes_anywhere(const Node& node, const record::OperatorTraits& traits) {
  if (node.kind == record::NodeKind::functional) {
    return traits.tile == TileRule::compute || traits.tile == TileRule::compute_functional;
  }
  const bool in_place = traits.written == std::vector<size_t>{0};  // not out=
  return in_place &&
         (traits.tile == TileRule::compute || traits.tile == TileRule::compute_in_place);
}

/// Whether `node` is a sum with a factor. ATen's add rounds alpha * other + self once in vectors
/// and twice in the elements left over (aten/src/ATen/native/cpu/BinaryOpsKernel.cpp), so the bits
/// depend on where these begin.
bool has_factor(const Node& node) {
  const auto alpha = node.op.schema().argumentIndexWithName("alpha");
  if (!alpha) {
    return false;
  }
  const auto factor = std::get<c10::IValue>(node.arguments[static_cast<size_t>(*alpha)]).toScalar();
  return !factor.equal(1);
}

double number(const record::Argument& argument) {
  return std::get<c10::IValue>(argument).toScalar().toDouble();
}

/// Draws of one element, where an operator without kernel takes a fixed number for each; 0 where it
/// doesn't.
uint64_t draws_per_element(const Node& node, TileRule rule, c10::ScalarType dtype) {
  if (rule == TileRule::draw_twice) {
    return 2;
  }
  if (rule == TileRule::draw_integer && node.op.operator_name().overload_name.empty()) {
    return dtype == c10::ScalarType::Long || dtype == c10::ScalarType::Double ? 2 : 1;
  }
  return 0;
}

bool is_plain(const Geometry& geometry) {
  return !geometry.conjugate && !geometry.negative && !geometry.wrapped_number;
}

}  // namespace

class Lowering {
 public:
  std::shared_ptr<const Program> lower(const record::Buffer& buffer, NodePtr tail, int depth) {
    if (depth > kMaxDepth || ++sources_ > kMaxSources || ++programs_ > kMaxPrograms) {
      return nullptr;
    }
    std::vector<NodePtr> nodes;
    for (auto node = std::move(tail); node;) {
      const auto* written = written_operand(*node, buffer);
      if (written == nullptr) {
        return nullptr;
      }
      auto before = written->before;
      nodes.push_back(std::move(node));
      node = std::move(before);
    }
    std::reverse(nodes.begin(), nodes.end());
    auto program = std::make_shared<Program>();
    if (!nodes.empty()) {
      program->dtype_ = written_operand(*nodes.front(), buffer)->geometry.dtype;
    }
    program->itemsize_ = c10::elementSize(program->dtype_);
    if (buffer.nbytes % program->itemsize_ != 0) {
      return nullptr;
    }
    program->numel_ = static_cast<int64_t>(buffer.nbytes / program->itemsize_);
    for (const auto& node : nodes) {
      if (!add(*program, node, *written_operand(*node, buffer), depth)) {
        return nullptr;
      }
    }
    return program;
  }

  /// The elements of a tensor over that storage, in logical order.
  std::shared_ptr<const Program> lower(const Geometry& tensor, const record::Buffer& buffer,
                                       NodePtr tail) {
    auto whole = lower(buffer, std::move(tail), 0);
    if (!whole || !is_plain(tensor)) {
      return nullptr;
    }
    const bool written = !whole->steps_.empty();
    if (written && whole->dtype_ != tensor.dtype) {
      return nullptr;
    }
    const auto contiguous = Geometry::contiguous(tensor.sizes, tensor.dtype);
    if (written && tensor.offset == 0 && tensor.numel() == whole->numel_ && is_contiguous(tensor)) {
      return whole;
    }
    auto program = std::make_shared<Program>();
    program->dtype_ = tensor.dtype;
    program->itemsize_ = c10::elementSize(tensor.dtype);
    program->numel_ = tensor.numel();
    if (written && program->numel_ > 0) {
      Step step;
      step.kind = StepKind::copy;
      step.region = *Region::of(contiguous);
      step.inputs.push_back({std::move(whole), *Mapping::between(contiguous, tensor), 0});
      program->steps_.push_back(std::move(step));
    }
    return program;
  }

 private:
  /// The operand through which `node` writes `buffer`; null if it writes anything else too.
  static const Operand* written_operand(const Node& node, const record::Buffer& buffer) {
    const Operand* found = nullptr;
    for (const auto& operand : node.operands) {
      if (operand.written) {
        if (found != nullptr || operand.buffer.get() != &buffer) {
          return nullptr;
        }
        found = &operand;
      }
    }
    return found;
  }

  bool add(Program& program, const NodePtr& node, const Operand& written, int depth) {
    const auto& geometry = written.geometry;
    auto region = Region::of(geometry);
    if (geometry.dtype != program.dtype_ || !is_plain(geometry) || !region) {
      return false;
    }
    if (region->numel() == 0) {
      return true;
    }
    Step step;
    step.region = std::move(*region);
    step.node = node;
    if (node->kind == record::NodeKind::read) {
      step.kind = StepKind::read;
      program.steps_.push_back(std::move(step));
      return true;
    }
    if (node->kind == record::NodeKind::decode) {
      return add_decoded(program, std::move(step), depth);
    }
    const auto& traits = record::traits_of(node->op);
    if (has_factor(*node) || !computes_the_same(*node, written)) {
      return false;
    }
    if (node->position) {
      return add_random(program, std::move(step), geometry, traits.tile);
    }
    const bool functional = node->kind == record::NodeKind::functional;
    switch (traits.tile) {
      case TileRule::copy:
        return add_copy(program, std::move(step), written, depth);
      case TileRule::join:
        return functional && add_joined(program, node, written, depth);
      case TileRule::pad:
        return functional && add_padded(program, std::move(step), written, depth);
      default:
        step.kind = functional ? StepKind::compute : StepKind::in_place;
        return computes_anywhere(*node, traits) &&
               add_operator(program, std::move(step), written, depth);
    }
  }

  /// Whether a tile, which has one dimension, leads to the dtype that the operator computed in.
  static bool computes_the_same(const Node& node, const Operand& written) {
    return std::all_of(node.operands.begin(), node.operands.end(), [&](const Operand& operand) {
      // A tensor without dimensions gives way to one that has some.
      return &operand == &written || !written.geometry.sizes.empty() ||
             operand.geometry.wrapped_number || operand.geometry.dtype == written.geometry.dtype;
    });
  }

  static bool add_random(Program& program, Step step, const Geometry& geometry, TileRule rule) {
    const auto& node = *step.node;
    const auto& path = random::exact_path();
    const auto index = static_cast<size_t>(program.dtype_);
    const auto usable = [&](const std::vector<random::Path>& paths) {
      return index < paths.size() && paths[index] != random::Path::whole;
    };
    if (rule == TileRule::uniform && usable(path.uniform)) {
      step.kind = StepKind::uniform;
      step.a = number(node.arguments[1]);
      step.b = number(node.arguments[2]);
    } else if (rule == TileRule::normal && usable(path.normal) && is_contiguous(geometry) &&
               geometry.numel() >= 16) {
      step.kind = StepKind::normal;
      step.a = number(node.arguments[1]);
      step.b = number(node.arguments[2]);
    } else if (rule == TileRule::bernoulli && usable(path.bernoulli) &&
               node.op.operator_name().overload_name == "float") {
      step.kind = StepKind::bernoulli;
      step.a = number(node.arguments[1]);
    } else if (const auto draws = draws_per_element(node, rule, program.dtype_);
               draws != 0 && is_contiguous(geometry)) {
      step.kind = StepKind::draw;
      step.draws = draws;
    } else if (geometry.numel() <= kMaxTable && node.kind == record::NodeKind::in_place &&
               is_contiguous(geometry) && reads_nothing(node)) {
      return add_table(program, std::move(step), geometry);
    } else {
      return false;
    }
    program.steps_.push_back(std::move(step));
    return true;
  }

  /// A few random elements: the operator is run now, whole.
  static bool add_table(Program& program, Step step, const Geometry& geometry) {
    auto flat = geometry;
    flat.offset = 0;
    const auto values = flat.over(record::allocate(
        geometry.nbytes_needed() - static_cast<size_t>(geometry.offset) * program.itemsize_));
    record::run_in_place(*step.node, values);
    step.kind = StepKind::copy;
    step.inputs.push_back({table_of(values), *Mapping::between(flat, flat), 0});
    program.steps_.push_back(std::move(step));
    return true;
  }

  bool add_copy(Program& program, Step step, const Operand& written, int depth) {
    const auto& source = step.node->operands[1];
    if (!is_plain(source.geometry)) {
      if (!source.geometry.wrapped_number) {
        return false;
      }
    }
    if (!source.buffer && source.captured.dim() == 0) {
      step.kind = StepKind::in_place;
      program.steps_.push_back(std::move(step));
      return true;
    }
    step.kind = StepKind::copy;
    if (!add_input(step, written.geometry, *written.buffer, 1, depth)) {
      return false;
    }
    program.steps_.push_back(std::move(step));
    return true;
  }

  /// cat and stack: a copy for each part.
  bool add_joined(Program& program, const NodePtr& node, const Operand& written, int depth) {
    const auto rank = static_cast<int64_t>(written.geometry.sizes.size());
    auto dim = std::get<c10::IValue>(node->arguments[1]).toInt();
    dim += dim < 0 ? rank : 0;
    const bool new_dimension = record::traits_of(node->op).geometry == record::GeometryRule::stack;
    auto part = written;
    const auto stride = written.geometry.strides[static_cast<size_t>(dim)];
    // An element is made from the sources of one part, not of all.
    const auto sources = sources_;
    auto most = sources;
    for (const auto index : std::get<record::TensorListSlot>(node->arguments[0]).operands) {
      const auto i = static_cast<size_t>(index);
      const auto& source = node->operands[i];
      if (source.geometry.numel() == 0) {
        continue;  // may have another number of dimensions
      }
      const auto size = new_dimension ? 1 : source.geometry.sizes[static_cast<size_t>(dim)];
      part.geometry.sizes = written.geometry.sizes;
      part.geometry.strides = written.geometry.strides;
      if (new_dimension) {
        part.geometry.sizes.erase(part.geometry.sizes.begin() + dim);
        part.geometry.strides.erase(part.geometry.strides.begin() + dim);
      } else {
        part.geometry.sizes[static_cast<size_t>(dim)] = size;
      }
      sources_ = sources;
      if (!add_part(program, node, part, i, depth)) {
        return false;
      }
      most = std::max(most, sources_);
      part.geometry.offset += size * stride;
    }
    sources_ = most;
    return true;
  }

  /// constant_pad_nd: the constant everywhere, then the source where it lies in the result.
  bool add_padded(Program& program, Step step, const Operand& written, int depth) {
    const auto node = step.node;
    const auto pads = std::get<c10::IValue>(node->arguments[1]).toIntVector();
    const auto value = std::get<c10::IValue>(node->arguments[2]).toScalar();
    auto part = written;
    const auto rank = written.geometry.sizes.size();
    for (size_t i = 0; i < pads.size() / 2; ++i) {
      const auto dim = rank - 1 - i;
      if (pads[2 * i] < 0 || pads[2 * i + 1] < 0) {
        return false;
      }
      part.geometry.sizes[dim] -= pads[2 * i] + pads[2 * i + 1];
      part.geometry.offset += pads[2 * i] * part.geometry.strides[dim];
    }
    step.kind = StepKind::copy;
    const auto constant = at::full({}, value, at::TensorOptions().dtype(program.dtype_));
    step.inputs.push_back(
        {table_of(constant), *Mapping::between(written.geometry, Geometry::of(constant)), 0});
    program.steps_.push_back(std::move(step));
    return part.geometry.numel() == 0 || add_part(program, node, part, 0, depth);
  }

  bool add_part(Program& program, const NodePtr& node, const Operand& part, size_t index,
                int depth) {
    Step step;
    step.kind = StepKind::copy;
    step.node = node;
    auto region = Region::of(part.geometry);
    if (!region) {
      return false;
    }
    step.region = std::move(*region);
    if (!add_input(step, part.geometry, *part.buffer, index, depth)) {
      return false;
    }
    program.steps_.push_back(std::move(step));
    return true;
  }

  /// An elementwise operator, with an input for each operand that has elements of its own.
  bool add_operator(Program& program, Step step, const Operand& written, int depth) {
    const auto& node = *step.node;
    for (size_t i = 0; i < node.operands.size(); ++i) {
      const auto& operand = node.operands[i];
      if (operand.written) {
        continue;
      }
      if (!operand.buffer && operand.captured.dim() == 0) {
        continue;  // takes part as it is
      }
      if (operand.geometry.sizes.empty() ||
          !add_input(step, written.geometry, *written.buffer, i, depth)) {
        return false;
      }
    }
    if (step.inputs.empty() && step.kind == StepKind::compute) {
      return false;
    }
    program.steps_.push_back(std::move(step));
    return true;
  }

  /// The parts of a decoded tensor, each in its logical order.
  bool add_decoded(Program& program, Step step, int depth) {
    step.kind = StepKind::decode;
    const auto node = step.node;
    const auto parts = node->decoder->parts();
    for (size_t i = 1; i < node->operands.size(); ++i) {
      if (!add_input(step, parts[i - 1], *node->operands[0].buffer, i, depth)) {
        return false;
      }
    }
    program.steps_.push_back(std::move(step));
    return true;
  }

  /// The elements of an operand for the places of `destination`, a tensor over `written`.
  bool add_input(Step& step, const Geometry& destination, const record::Buffer& written,
                 size_t index, int depth) {
    const auto& source = step.node->operands[index];
    if (source.geometry.conjugate || source.geometry.negative) {
      return false;
    }
    if (!source.buffer) {
      const auto contiguous = source.captured.contiguous();
      auto geometry = Geometry::of(contiguous);
      geometry.offset = 0;
      const auto mapping = Mapping::between(destination, geometry);
      if (!mapping) {
        return false;
      }
      step.inputs.push_back({table_of(contiguous), *mapping, index});
      return true;
    }
    const auto mapping = Mapping::between(destination, source.geometry);
    if (!mapping || source.buffer.get() == &written) {
      return false;
    }
    auto program =
        lower(*source.buffer, source.before, depth + (mapping->in_rows() ? 1 : kDepthOfBoxes));
    if (!program || (program->dtype_ != source.geometry.dtype && !program->steps_.empty())) {
      return false;
    }
    if (program->steps_.empty() && !program->table_.defined()) {
      return false;  // reads memory that nobody initialized
    }
    step.inputs.push_back({std::move(program), *mapping, index});
    return true;
  }

  /// The elements of a contiguous tensor.
  static std::shared_ptr<const Program> table_of(const at::Tensor& values) {
    auto table = std::make_shared<Program>();
    table->table_ = values.view({-1});
    table->dtype_ = values.scalar_type();
    table->itemsize_ = values.element_size();
    table->numel_ = values.numel();
    return table;
  }

  static bool reads_nothing(const Node& node) {
    return std::all_of(node.operands.begin(), node.operands.end(),
                       [](const Operand& operand) { return operand.written; });
  }

  int sources_ = 0;   ///< of an element, at most
  int programs_ = 0;  ///< lowered so far
};

namespace {

/// Only what can be made at a reasonable cost, in order or in rectangles (walk.h), has a program.
std::shared_ptr<const Program> if_possible(std::shared_ptr<const Program> program) {
  return program && walk_of(*program).possible ? program : nullptr;
}

}  // namespace

std::shared_ptr<const Program> Program::of(const record::Buffer& buffer, const NodePtr& tail) {
  return if_possible(Lowering().lower(buffer, tail, 0));
}

std::shared_ptr<const Program> Program::of(const Geometry& tensor, const record::Buffer& buffer,
                                           const NodePtr& tail) {
  return if_possible(Lowering().lower(tensor, buffer, tail));
}

}  // namespace dormant::tile
