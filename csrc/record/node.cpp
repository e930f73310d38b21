#include "record/node.h"

#include <algorithm>
#include <atomic>
#include <unordered_set>

namespace dormant::record {
namespace {

std::atomic<uint64_t> sequence_counter{0};

// Releasing a node may release the node before it, and so on down a chain of any length: the
// recursion that intrusive pointers would do overflows the stack. Nodes that die are put on this
// list instead, and whoever started it empties it. Per thread, so no lock is needed.
thread_local std::vector<NodePtr>* pending_release = nullptr;

}  // namespace

Node::~Node() {
  std::vector<NodePtr> dying;
  const bool outermost = pending_release == nullptr;
  if (outermost) {
    pending_release = &dying;
  }
  for (auto& operand : operands) {
    if (operand.before) {
      pending_release->push_back(std::move(operand.before));
    }
  }
  if (outermost) {
    while (!dying.empty()) {
      NodePtr next = std::move(dying.back());
      dying.pop_back();
      next.reset();  // its destructor, if this was the last owner, adds to `dying`
    }
    pending_release = nullptr;
  }
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

bool initialises(const Node& node) {
  const auto& name = node.op.operator_name().name;
  return node.position || name == "aten::fill_" || name == "aten::zero_" ||
         (name == "aten::copy_" && !node.operands[1].buffer);
}

std::string full_name(const c10::OperatorHandle& op) {
  const auto& name = op.operator_name();
  return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

}  // namespace dormant::record
