#include "record/replay.h"

#include <ATen/Parallel.h>
#include <ATen/ops/copy.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "record/claims.h"
#include "system/dispatch_state.h"
#include "system/fork.h"
#include "system/freed_memory.h"
#include "system/thread_count.h"

namespace dormant::record {
namespace {

using Clock = std::chrono::steady_clock;

/// The memory of one replay.
class Memory {
 public:
  const c10::Storage& of(const Buffer& buffer) {
    auto& storage = map_[&buffer];
    if (!storage) {
      storage = allocate(buffer.nbytes);
    }
    return storage;
  }
  void adopt(const Buffer& buffer, c10::Storage storage) { map_[&buffer] = std::move(storage); }
  void release(const Buffer& buffer) { map_.erase(&buffer); }

  /// The memory itself, no longer known to this replay.
  c10::DataPtr take(const Buffer& buffer) {
    const auto storage = of(buffer);
    map_.erase(&buffer);
    return std::move(storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks());
  }

 private:
  std::unordered_map<const Buffer*, c10::Storage> map_;
};

/// The arguments of a node, its i-th operand being tensor(i).
template <typename F>
torch::jit::Stack arguments_of(const Node& node, const F& tensor,
                               const at::Generator& generator = {}) {
  torch::jit::Stack stack;
  stack.reserve(node.arguments.size());
  const auto operand = [&](int32_t index) { return tensor(static_cast<size_t>(index)); };
  for (const auto& argument : node.arguments) {
    if (const auto* slot = std::get_if<TensorSlot>(&argument)) {
      stack.emplace_back(operand(slot->operand));
    } else if (const auto* list = std::get_if<TensorListSlot>(&argument)) {
      if (list->optional_elements) {
        c10::List<std::optional<at::Tensor>> tensors;
        for (const auto index : list->operands) {
          tensors.push_back(index < 0 ? std::nullopt : std::make_optional(operand(index)));
        }
        stack.emplace_back(std::move(tensors));
      } else {
        c10::List<at::Tensor> tensors;
        for (const auto index : list->operands) {
          tensors.push_back(operand(index));
        }
        stack.emplace_back(std::move(tensors));
      }
    } else if (std::holds_alternative<GeneratorSlot>(argument)) {
      stack.emplace_back(generator.defined() ? generator : node.position->restore());
    } else {
      stack.push_back(std::get<c10::IValue>(argument));
    }
  }
  return stack;
}

/// Puts what a functional node returned where its result operand says; without a copy where the
/// result's own storage is exactly the memory wanted.
void place_result(const at::Tensor& result, const Operand& wanted, Memory& memory) {
  const auto& storage = result.storage();
  const auto* impl = storage.unsafeGetStorageImpl();
  if (Geometry::of(result) == wanted.geometry && storage.nbytes() == wanted.buffer->nbytes &&
      storage.use_count() == 1 && impl->resizable() &&
      impl->allocator() == c10::GetCPUAllocator()) {
    memory.adopt(*wanted.buffer, storage);
    return;
  }
  TORCH_CHECK(result.sizes() == at::IntArrayRef(wanted.geometry.sizes) &&
                  result.scalar_type() == wanted.geometry.dtype,
              "dormant: replay gave a result of sizes ", result.sizes(), " and dtype ",
              result.scalar_type(), " where ", at::IntArrayRef(wanted.geometry.sizes), " and ",
              wanted.geometry.dtype,
              " were recorded. Cause: the operator's Meta kernel disagrees "
              "with its CPU kernel. Next: report this operator.");
  wanted.geometry.over(memory.of(*wanted.buffer)).copy_(result);
}

/// Bytes of a file, or what quantizing or decoding gives.
void run_without_operator(const Node& node, Memory& memory) {
  if (node.kind == NodeKind::read) {
    const auto& buffer = *node.operands[0].buffer;
    node.source->read(node.source_offset, buffer.nbytes, memory.of(buffer).mutable_data());
    return;
  }
  if (node.kind == NodeKind::decode) {
    std::vector<at::Tensor> parts;
    for (size_t i = 1; i < node.operands.size(); ++i) {
      const auto& part = node.operands[i];
      parts.push_back(part.buffer ? part.geometry.over(memory.of(*part.buffer)).contiguous()
                                  : part.captured);
    }
    run_whole(*node.decoder, parts, memory.of(*node.operands[0].buffer).mutable_data());
    return;
  }
  std::vector<at::Tensor> outputs;
  for (size_t i = 1; i < node.operands.size(); ++i) {
    outputs.push_back(node.operands[i].geometry.over(memory.of(*node.operands[i].buffer)));
  }
  const auto& source = node.operands[0];
  run_whole(*node.quantizer, source.geometry.over(memory.of(*source.buffer)).contiguous(), outputs,
            node.threads);
}

void run(const Node& node, Memory& memory) {
  if (node.kind != NodeKind::in_place && node.kind != NodeKind::functional) {
    run_without_operator(node, memory);
    return;
  }
  // Random numbers do not depend on the number of threads.
  const system::ThreadCount threads(node.position || system::forked() ? at::get_num_threads()
                                                                      : node.threads);
  auto stack = arguments_of(node, [&](size_t i) {
    const auto& operand = node.operands[i];
    return operand.buffer ? operand.geometry.over(memory.of(*operand.buffer)) : operand.captured;
  });
  node.op.callBoxed(stack);
  if (node.kind != NodeKind::functional) {
    return;
  }
  size_t next = node.first_result;
  for (auto& value : stack) {
    if (value.isTensorList()) {
      for (const at::Tensor& element : value.toTensorVector()) {
        place_result(element, node.operands[next++], memory);
      }
    } else {
      const auto result = std::move(value).toTensor();
      place_result(result, node.operands[next++], memory);
    }
  }
}

/// A storage and what it holds.
struct Wanted {
  c10::Storage storage;
  History history;
};

std::vector<Wanted> lazy_targets(c10::ArrayRef<c10::Storage> storages) {
  std::vector<Wanted> targets;
  std::unordered_set<const c10::StorageImpl*> seen;
  for (const auto& storage : storages) {
    const auto* impl = storage.unsafeGetStorageImpl();
    if (auto history = history_of(impl); history && seen.insert(impl).second) {
      targets.push_back({storage, std::move(*history)});
    }
  }
  return targets;
}

/// What is connected, by any chain of pairs.
class Components {
 public:
  explicit Components(size_t count) : parents_(count) {
    std::iota(parents_.begin(), parents_.end(), size_t{0});
  }
  size_t of(size_t i) {
    while (parents_[i] != i) {
      i = parents_[i] = parents_[parents_[i]];
    }
    return i;
  }
  /// The smallest of them stands for all.
  void connect(size_t i, size_t j) {
    const auto one = of(i);
    const auto other = of(j);
    parents_[std::max(one, other)] = std::min(one, other);
  }

 private:
  std::vector<size_t> parents_;
};

/// The nodes that the targets need, in an order in which they can be run: as they were recorded,
/// but those that share no memory with others one after the other, so that what some need is
/// released before the next are begun. A model is loaded first and quantized then, but layer by
/// layer here.
std::vector<Node*> nodes_of(const std::vector<Wanted>& targets) {
  std::vector<Node*> tails;
  for (const auto& target : targets) {
    tails.push_back(target.history.tail.get());
  }
  const auto nodes = closure(tails);
  Components components(nodes.size());
  std::unordered_map<const Buffer*, size_t> first_use;
  for (size_t i = 0; i < nodes.size(); ++i) {
    for (const auto& operand : nodes[i]->operands) {
      if (operand.buffer) {
        components.connect(first_use.try_emplace(operand.buffer.get(), i).first->second, i);
      }
    }
  }
  std::vector<std::pair<size_t, Node*>> order;
  order.reserve(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) {
    order.emplace_back(components.of(i), nodes[i]);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& one, const auto& other) { return one.first < other.first; });
  std::vector<Node*> ordered;
  ordered.reserve(order.size());
  for (const auto& [component, node] : order) {
    ordered.push_back(node);
  }
  return ordered;
}

/// For every buffer the index of the last node that touches it.
std::unordered_map<const Buffer*, size_t> last_uses(const std::vector<Node*>& nodes) {
  std::unordered_map<const Buffer*, size_t> last;
  for (size_t i = 0; i < nodes.size(); ++i) {
    for (const auto& operand : nodes[i]->operands) {
      if (operand.buffer) {
        last[operand.buffer.get()] = i;
      }
    }
  }
  return last;
}

/// Live storages, other than the targets, whose whole history is among `nodes`.
std::vector<Wanted> complete_bystanders(const std::vector<Node*>& nodes,
                                        const std::vector<Wanted>& targets) {
  const std::unordered_set<const Node*> planned(nodes.begin(), nodes.end());
  std::unordered_set<const Buffer*> seen;
  for (const auto& target : targets) {
    seen.insert(target.history.buffer.get());
  }
  std::vector<Wanted> found;
  for (const auto* node : nodes) {
    for (const auto& operand : node->operands) {
      if (!operand.buffer || !seen.insert(operand.buffer.get()).second) {
        continue;
      }
      auto owner = operand.buffer->owner.lock();
      auto history = history_of(owner.get());
      // What a file holds can be read again.
      if (history && history->buffer == operand.buffer && history->tail &&
          history->tail->kind != NodeKind::read && planned.count(history->tail.get()) != 0) {
        found.push_back({c10::Storage(std::move(owner)), std::move(*history)});
      }
    }
  }
  return found;
}

}  // namespace

size_t scratch_bytes(c10::ArrayRef<c10::Storage> storages, const ReplayOptions& options) {
  if (!options.values) {
    return 0;
  }
  const auto targets = lazy_targets(storages);
  std::unordered_set<const Buffer*> final_buffers;
  for (const auto& target : targets) {
    final_buffers.insert(target.history.buffer.get());
  }
  const auto nodes = nodes_of(targets);
  const auto last_use = last_uses(nodes);
  std::unordered_set<const Buffer*> live;
  size_t bytes = 0;
  size_t peak = 0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    for (const auto& operand : nodes[i]->operands) {
      if (operand.buffer && final_buffers.count(operand.buffer.get()) == 0 &&
          live.insert(operand.buffer.get()).second) {
        bytes += operand.buffer->nbytes;
      }
    }
    peak = std::max(peak, bytes);
    for (const auto& operand : nodes[i]->operands) {
      if (operand.buffer && last_use.at(operand.buffer.get()) == i &&
          live.erase(operand.buffer.get()) != 0) {
        bytes -= operand.buffer->nbytes;
      }
    }
  }
  return peak;
}

void run_in_place(const Node& node, const at::Tensor& tensor, const at::Generator& generator) {
  auto stack = arguments_of(
      node, [&](size_t i) { return node.operands[i].written ? tensor : node.operands[i].captured; },
      generator);
  node.op.callBoxed(stack);
}

at::Tensor run_functional(const Node& node, const std::vector<at::Tensor>& tensors) {
  auto stack = arguments_of(node, [&](size_t i) {
    return tensors[i].defined() ? tensors[i] : node.operands[i].captured;
  });
  node.op.callBoxed(stack);
  return stack.front().toTensor();
}

namespace {

/// One replay: gives `targets` their memory, or leaves those that were not finished as they were.
std::vector<Materialized> replay(std::vector<Wanted> targets, const ReplayOptions& options) {
  std::vector<Node*> nodes;
  if (options.values) {
    nodes = nodes_of(targets);
    if (options.keep_intermediates) {
      for (auto& bystander : complete_bystanders(nodes, targets)) {
        targets.push_back(std::move(bystander));
      }
    }
  }

  auto last_use = last_uses(nodes);
  std::unordered_map<const Buffer*, size_t> target_of;
  std::vector<Materialized> done(targets.size());
  for (size_t i = 0; i < targets.size(); ++i) {
    const auto* buffer = targets[i].history.buffer.get();
    target_of[buffer] = i;
    done[i] = {targets[i].storage.unsafeGetStorageImpl(), buffer->nbytes, 0, 0.0};
  }

  system::FreedMemory freed;
  Memory memory;
  std::vector<bool> finished(targets.size(), false);
  const auto finish = [&](size_t i) {
    const auto& [storage, history] = targets[i];
    finished[i] = true;
    commit(storage.unsafeGetStorageImpl(), history, memory.take(*history.buffer));
  };
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (options.on_step) {
      options.on_step(i, nodes.size());
    }
    const auto start = Clock::now();
    run(*nodes[i], memory);
    const std::chrono::duration<double> seconds = Clock::now() - start;
    // Buffers that no later node touches: theirs is the final value, or they were only scratch.
    for (const auto& operand : nodes[i]->operands) {
      if (!operand.buffer) {
        continue;
      }
      const auto target = target_of.find(operand.buffer.get());
      if (target != target_of.end() && operand.written) {
        done[target->second].operators += 1;
        done[target->second].seconds += seconds.count();
      }
      const auto last = last_use.find(operand.buffer.get());
      if (last == last_use.end() || last->second != i) {
        continue;
      }
      last_use.erase(last);
      if (target != target_of.end()) {
        finish(target->second);
      } else {
        memory.release(*operand.buffer);
        freed.add(operand.buffer->nbytes);
      }
    }
  }
  // Storages that nothing was written to, or whose values are not wanted.
  for (size_t i = 0; i < targets.size(); ++i) {
    if (!finished[i]) {
      finish(i);
    }
  }
  if (options.on_step && !nodes.empty()) {
    options.on_step(nodes.size(), nodes.size());
  }
  return done;
}

}  // namespace

std::vector<Materialized> materialize(c10::ArrayRef<c10::Storage> storages,
                                      const ReplayOptions& options) {
  const system::OneThreadIfForked threads;
  std::vector<Materialized> done;
  const auto make = [&](c10::ArrayRef<c10::Storage> lazy) {
    const system::PlainDispatch plain;
    const auto made = replay(lazy_targets(lazy), options);
    done.insert(done.end(), made.begin(), made.end());
  };
  const auto while_waiting = [&] {
    if (options.on_step) {
      options.on_step(0, 0);
    }
  };
  make_each_once(storages, {make, while_waiting, {}});
  return done;
}

}  // namespace dormant::record
