#include "record/node.h"

#include <algorithm>
#include <atomic>
#include <unordered_set>
#include <utility>

#include "record/operator_traits.h"

namespace dormant::record {
namespace {

std::atomic<uint64_t> sequence_counter{0};

// Releasing a node may release the node before it, and so on down a chain of any length: the
// recursion that intrusive pointers would do overflows the stack. Nodes of which this thread was
// the last owner are linked into this list instead, and the outermost destructor empties it. It
// allocates nothing: histories are also released where memory is exhausted.
struct DyingNodes {
  Node* first = nullptr;
  bool emptied = false;  ///< whether some destructor on this thread's stack empties it
};
thread_local DyingNodes dying;

}  // namespace

void Node::release(NodePtr node) noexcept {
  // Two owners that let go at once may both see the other: then the last of them destroys the node,
  // and its destructor is nested in this one.
  if (node && node.use_count() == 1) {
    node->next_dying_ = std::exchange(dying.first, node.get());
    static_cast<void>(node.release());
  }
}

Node::~Node() {
  for (auto& operand : operands) {
    release(std::move(operand.before));
  }
  if (dying.emptied) {
    return;
  }
  dying.emptied = true;
  while (dying.first != nullptr) {
    auto next = NodePtr::reclaim(dying.first);
    dying.first = next->next_dying_;
    next.reset();  // its destructor adds to the list
  }
  dying.emptied = false;
}

uint64_t next_sequence() { return sequence_counter.fetch_add(1, std::memory_order_relaxed) + 1; }

std::vector<Node*> closure(c10::ArrayRef<Node*> tails) {
  std::vector<Node*> found;
  std::unordered_set<Node*> seen;
  const auto visit = [&](Node* node) {
    if (node != nullptr && seen.insert(node).second) {
      found.push_back(node);
    }
  };
  for (auto* tail : tails) {
    visit(tail);
  }
  for (size_t i = 0; i < found.size(); ++i) {
    for (const auto& operand : found[i]->operands) {
      visit(operand.before.get());
    }
  }
  std::sort(found.begin(), found.end(),
            [](const Node* a, const Node* b) { return a->sequence < b->sequence; });
  return found;
}

bool initializes(const Node& node) {
  switch (traits_of(node.op).write) {
    case WriteRule::always:
    case WriteRule::value:
      return true;
    case WriteRule::copy:
      return !node.operands[1].buffer;
    default:
      return node.position.has_value();
  }
}

std::vector<std::string> operator_names(const NodePtr& tail) {
  std::vector<std::string> names;
  for (const auto* node : closure({tail.get()})) {
    names.push_back(full_name(node->op));
  }
  return names;
}

std::set<std::string> source_names(const NodePtr& tail) {
  std::set<std::string> names;
  for (const auto* node : closure({tail.get()})) {
    if (node->source) {
      names.insert(node->source->name());
    }
  }
  return names;
}

std::set<FileRange> file_ranges(const NodePtr& tail) {
  std::set<FileRange> ranges;
  for (const auto* node : closure({tail.get()})) {
    if (node->source && node->source->memory().empty()) {
      ranges.insert({node->source->name(), node->source_offset,
                     node->source_offset + node->operands[0].buffer->nbytes});
    }
  }
  return ranges;
}

std::string full_name(const c10::OperatorHandle& op) {
  const auto& name = op.operator_name();
  return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

}  // namespace dormant::record
