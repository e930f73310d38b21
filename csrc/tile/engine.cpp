#include "tile/engine.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <unordered_set>
#include <utility>

#include "record/claims.h"
#include "system/dispatch_state.h"
#include "system/fork.h"
#include "tile/job.h"
#include "tile/pass.h"
#include "tile/program.h"

namespace dormant::tile {
namespace {

size_t history_length(const record::History& history) {
  size_t length = 0;
  for (const auto* node = history.tail.get(); node != nullptr;) {
    ++length;
    const record::Node* before = nullptr;
    for (const auto& operand : node->operands) {
      if (operand.written && operand.buffer == history.buffer) {
        before = operand.before.get();
      }
    }
    node = before;
  }
  return length;
}

std::vector<std::string> names(const std::set<const record::Source*>& sources) {
  std::set<std::string> unique;
  for (const auto* source : sources) {
    unique.insert(source->name());
  }
  return {unique.begin(), unique.end()};
}

Program::Origins origins_of_replay(const record::History& history) {
  Program::Origins origins;
  if (!history.tail) {
    return origins;
  }
  for (const auto* node : record::closure({history.tail.get()})) {
    if (node->kind == record::NodeKind::read) {
      origins.read = history.buffer->nbytes;
      origins.sources.insert(node->source.get());
    } else if (node->kind != record::NodeKind::quantize && record::initializes(*node)) {
      origins.initialized = history.buffer->nbytes;
    }
  }
  return origins;
}

/// The memory of a storage that is bytes of a file and nothing else, if it may show them in place.
c10::DataPtr mapped(const Program& program, Mmap mmap) {
  if (mmap == Mmap::never) {
    return {};
  }
  const auto range = program.copied_range();
  if (!range || range->nbytes == 0 || range->offset % program.itemsize() != 0) {
    return {};
  }
  return range->source->map(
      range->offset, range->nbytes,
      mmap == Mmap::automatic ? record::Guard::required : record::Guard::if_possible);
}

/// One call of materialize: what is to be done, and what was.
class Work {
 public:
  explicit Work(const Options& options) : options_(options) {}

  void add(const c10::Storage& storage) {
    const auto* impl = storage.unsafeGetStorageImpl();
    const auto history = record::history_of(impl);
    if (!history || !seen_.insert(impl).second) {
      return;
    }
    Target target{storage, *history, results_.size(), {}, destination(impl), {}};
    const bool wanted = options_.values != Values::empty && history->buffer->nbytes > 0;
    if (wanted && history->tail && history->tail->kind == record::NodeKind::quantize) {
      results_.push_back(result(target, Way::tiles, {}));
      quantized_[history->tail->sequence].push_back(std::move(target));
      return;
    }
    auto program = wanted ? Program::of(*history->buffer, history->tail) : nullptr;
    if (!program) {
      add_rest(target);
      return;
    }
    const auto origins = program->origins();
    sources_.insert(origins.sources.begin(), origins.sources.end());
    results_.push_back(result(target, Way::tiles, origins));
    if (target.destination == nullptr) {
      target.memory = mapped(*program, options_.mmap);
    }
    if (target.memory) {
      results_.back().way = Way::mapped;
      mapped_.push_back(std::move(target));
      return;
    }
    const auto view = options_.sole_views.find(impl);
    if (view != options_.sole_views.end() && target.destination == nullptr) {
      target.part = part_of(view->second, *program, storage.use_count());
    }
    jobs_.push_back(make_storage_job(std::move(target), std::move(program)));
  }

  /// Bytes that are needed besides the final tensors if tiles and threads are as few as can be.
  size_t least_bytes() {
    add_quantized();
    return bytes_of(plan_for(jobs_, 0));
  }

  /// What there is to do.
  std::vector<Materialized> planned() {
    add_quantized();
    return std::move(results_);
  }

  std::vector<Materialized> run() {
    add_quantized();
    for (const auto* source : sources_) {
      source->check();
    }
    if (options_.values == Values::fast) {
      for (const auto& job : jobs_) {
        job->fast_seed = options_.seed;
      }
    }
    const auto plan = plan_for(jobs_, options_.memory_budget);
    if (options_.memory_budget) {
      check_budget("materialize", *options_.memory_budget, bytes_of(plan),
                   rest_.empty() ? "the smallest tiles need that much"
                                 : "an operator among them can only be replayed whole",
                   "raise memory_budget, or materialize fewer tensors at a time");
    }
    size_t replayed_bytes = 0;
    for (const auto& storage : rest_) {
      replayed_bytes += storage.nbytes();
    }
    // A quantized tensor is counted by what it is made from, as it is made.
    size_t made_bytes = 0;
    for (const auto& job : jobs_) {
      made_bytes += static_cast<size_t>(job->numel() * job->itemsize());
    }
    const auto total = made_bytes + replayed_bytes;
    const auto tell = [&](size_t done) {
      if (options_.on_step) {
        options_.on_step(done, total);
      }
    };
    tell(0);
    try {
      tile::run(jobs_, plan, [&](size_t done) {
        commit_finished();
        tell(done);
      });
    } catch (...) {
      settle_jobs();
      throw;
    }
    settle_jobs();
    auto replay = replay_options();
    replay.on_step = [&](size_t done, size_t steps) {
      tell(made_bytes + (steps == 0 ? replayed_bytes : replayed_bytes / steps * done));
    };
    for (const auto& done : record::materialize(rest_, replay)) {
      static_cast<record::Materialized&>(results_[rest_results_.at(done.storage)]) = done;
    }
    tell(total);
    return std::move(results_);
  }

 private:
  static Materialized result(const Target& target, Way way, const Program::Origins& origins) {
    return {{target.storage.unsafeGetStorageImpl(), target.history.buffer->nbytes,
             history_length(target.history), 0.0},
            way,
            origins.read,
            origins.initialized,
            names(origins.sources)};
  }

  void* destination(const c10::StorageImpl* storage) const {
    if (options_.destinations == nullptr) {
      return nullptr;
    }
    const auto found = options_.destinations->find(storage);
    return found == options_.destinations->end() ? nullptr : found->second.memory;
  }

  void add_rest(const Target& target) {
    Program::Origins origins;
    if (options_.values != Values::empty) {
      origins = origins_of_replay(target.history);
    }
    sources_.insert(origins.sources.begin(), origins.sources.end());
    rest_results_[target.storage.unsafeGetStorageImpl()] = results_.size();
    rest_.push_back(target.storage);
    results_.push_back(result(target, Way::replay, origins));
  }

  void add_quantized() {
    for (auto& [number, targets] : quantized_) {
      add_quantized(std::move(targets));
    }
    quantized_.clear();
  }

  void add_quantized(std::vector<Target> targets) {
    std::vector<size_t> indices;
    std::vector<c10::Storage> storages;
    for (const auto& target : targets) {
      indices.push_back(target.result);
      storages.push_back(target.storage);
    }
    const auto history = targets.front().history;
    auto job = make_quantize_job(history.tail, std::move(targets));
    const auto origins = job ? job->origins() : origins_of_replay(history);
    sources_.insert(origins.sources.begin(), origins.sources.end());
    for (size_t i = 0; i < indices.size(); ++i) {
      auto& result = results_[indices[i]];
      result.sources = names(origins.sources);
      // Counted once for the node, with its first output.
      result.read_bytes = i == 0 ? origins.read : 0;
      result.initialized_bytes = i == 0 ? origins.initialized : 0;
      if (!job) {
        result.way = Way::replay;
        rest_results_[storages[i].unsafeGetStorageImpl()] = indices[i];
        rest_.push_back(storages[i]);
      }
    }
    if (job) {
      jobs_.push_back(std::move(job));
    }
  }

  record::ReplayOptions replay_options() const {
    record::ReplayOptions options;
    options.values = options_.values != Values::empty;
    return options;
  }

  size_t bytes_of(const Plan& plan) const {
    return std::max(bytes_needed(jobs_, plan), record::scratch_bytes(rest_, replay_options()));
  }

  /// Threads that wait for one of them, and nothing else, go on. Called on the calling thread.
  void commit_finished() {
    for (auto& target : mapped_) {
      commit(target);
    }
    for (const auto& job : jobs_) {
      for (auto& target : job->targets) {
        if (job->finished && target.destination == nullptr) {
          commit(target);
        }
      }
    }
  }

  /// When no job is worked on any more.
  void settle_jobs() {
    commit_finished();
    for (const auto& job : jobs_) {
      for (const auto& target : job->targets) {
        results_[target.result].seconds = static_cast<double>(job->nanoseconds) * 1e-9;
        if (target.destination != nullptr) {
          options_.destinations->at(target.storage.unsafeGetStorageImpl()).begun = job->begun;
        }
      }
    }
  }

  /// Nothing where another thread, or a callback, was faster or has written to the storage.
  static void commit(Target& target) {
    if (!target.memory) {
      return;
    }
    auto* storage = target.storage.unsafeGetStorageImpl();
    if (!target.part) {
      record::commit(storage, target.history, std::move(target.memory));
    } else if (target.storage.use_count() <= target.part->uses &&
               record::commit(storage, target.history, std::move(target.memory),
                              target.part->nbytes)) {
      target.part->rebase();
    }
  }

  const Options& options_;
  std::vector<Materialized> results_;
  Jobs jobs_;
  std::vector<Target> mapped_;
  std::map<uint64_t, std::vector<Target>> quantized_;  ///< by the number of the node
  std::vector<c10::Storage> rest_;
  std::unordered_map<const c10::StorageImpl*, size_t> rest_results_;
  std::set<const record::Source*> sources_;
  std::unordered_set<const c10::StorageImpl*> seen_;
};

}  // namespace

std::vector<Materialized> materialize(c10::ArrayRef<c10::Storage> storages, const Options& wanted) {
  auto options = wanted;
  options.on_step = system::in_this_state(wanted.on_step);
  const system::OneThreadIfForked threads;
  std::vector<Materialized> done;
  std::unordered_set<const c10::StorageImpl*> written;
  const auto make = [&](c10::ArrayRef<c10::Storage> lazy) {
    // Lowering runs operators too.
    const system::PlainDispatch plain;
    Work work(options);
    for (const auto& storage : lazy) {
      work.add(storage);
    }
    auto made = work.run();
    done.insert(done.end(), std::make_move_iterator(made.begin()),
                std::make_move_iterator(made.end()));
    if (options.destinations != nullptr) {
      for (const auto& [storage, destination] : *options.destinations) {
        written.insert(storage);
      }
    }
    options.sole_views.clear();  // of what has to be made once more, somebody has made a view
  };
  const auto while_waiting = [&] {
    if (options.on_step) {
      options.on_step(0, 0);
    }
  };
  // What goes elsewhere leaves its storage lazy: once is enough.
  const auto is_wanted = [&](const c10::StorageImpl* storage) {
    return record::is_lazy(storage) && written.count(storage) == 0;
  };
  record::make_each_once(storages, {make, while_waiting, is_wanted});
  return done;
}

std::vector<Materialized> materialize_tensors(c10::ArrayRef<at::Tensor> tensors, Options options) {
  options.sole_views = sole_views(tensors);
  std::vector<c10::Storage> storages;
  for (const auto& tensor : tensors) {
    if (tensor.defined() && record::is_lazy(tensor)) {
      storages.push_back(tensor.storage());
    }
  }
  const auto settle = [&] {
    for (const auto& tensor : tensors) {
      record::settle(tensor);
    }
  };
  try {
    auto done = materialize(storages, options);
    settle();
    return done;
  } catch (...) {
    settle();  // what was done stays
    throw;
  }
}

std::vector<Materialized> planned(const at::Tensor& tensor, const MaterializeOptions& wanted) {
  if (!record::is_lazy(tensor)) {
    return {};
  }
  Options options{wanted};
  options.mmap = Mmap::never;
  const system::PlainDispatch plain;
  Work work(options);
  work.add(tensor.storage());
  return work.planned();
}

size_t smallest_budget(c10::ArrayRef<c10::Storage> storages, const Options& options) {
  const system::PlainDispatch plain;
  Work work(options);
  for (const auto& storage : storages) {
    work.add(storage);
  }
  return work.least_bytes();
}

}  // namespace dormant::tile
