#include "tile/engine.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_set>
#include <utility>

#include "record/claims.h"
#include "system/dispatch_state.h"
#include "system/fork.h"
#include "system/pages.h"
#include "system/workers.h"
#include "tile/job.h"
#include "tile/program.h"

namespace dormant::tile {
namespace {

using Clock = std::chrono::steady_clock;

// A tile and what it is made from stay in a core's cache.
constexpr int64_t kTileBytes = 128 * 1024;
constexpr int64_t kSmallestTileBytes = 4 * 1024;
// A piece is one thread's work: large enough that the jump to its random numbers costs little.
constexpr int64_t kPieceBytes = 16 * 1024 * 1024;

using Jobs = std::vector<std::unique_ptr<Job>>;

struct Piece {
  Job* job;
  int64_t begin;
  int64_t end;
};

/// How many threads work and how large their tiles are under a budget.
struct Plan {
  int threads;
  int64_t tile_bytes;
};

/// Elements in `bytes`, whole units and at least one.
int64_t whole_units(const Job& job, int64_t bytes) {
  return std::max(bytes / job.itemsize() / job.unit(), int64_t{1}) * job.unit();
}

size_t bytes_per_thread(const Jobs& jobs, int64_t tile_bytes) {
  size_t most = 0;
  for (const auto& job : jobs) {
    most = std::max(most, job->thread_bytes(std::min(whole_units(*job, tile_bytes), job->numel())));
  }
  return most;
}

/// Bytes that jobs hold from their first piece to their last: those of as many jobs as threads.
size_t shared_bytes(const Jobs& jobs, int threads) {
  std::vector<size_t> bytes;
  for (const auto& job : jobs) {
    bytes.push_back(job->shared_bytes());
  }
  std::sort(bytes.rbegin(), bytes.rend());
  size_t sum = 0;
  // Threads take pieces in order, so a job more than threads can be under way.
  for (size_t i = 0; i < bytes.size() && i <= static_cast<size_t>(threads); ++i) {
    sum += bytes[i];
  }
  return sum;
}

size_t bytes_needed(const Jobs& jobs, const Plan& plan) {
  return bytes_per_thread(jobs, plan.tile_bytes) * static_cast<size_t>(plan.threads) +
         shared_bytes(jobs, plan.threads);
}

Plan plan(const Jobs& jobs, const Options& options) {
  Plan plan{system::OneThreadIfForked::own_thread_count(), kTileBytes};
  if (!options.memory_budget) {
    return plan;
  }
  const auto budget = *options.memory_budget;
  while (plan.tile_bytes > kSmallestTileBytes && bytes_needed(jobs, plan) > budget) {
    plan.tile_bytes /= 2;
  }
  while (plan.threads > 1 && bytes_needed(jobs, plan) > budget) {
    --plan.threads;
  }
  return plan;
}

/// Runs pieces on all threads.
class Pass {
 public:
  Pass(std::vector<Piece> pieces, Plan plan, std::function<void(size_t)> on_bytes)
      : pieces_(std::move(pieces)), plan_(plan), workers_(plan.threads, std::move(on_bytes)) {}

  void run() {
    workers_.run(pieces_.size(), [&](size_t i) {
      announce(i);
      run(pieces_[i]);
    });
  }

 private:
  /// Tells the source of the piece after the ones in work what will be wanted.
  void announce(size_t i) {
    const auto ahead = i == 0 ? 0 : i + static_cast<size_t>(plan_.threads) - 1;
    const auto last = i == 0 ? static_cast<size_t>(plan_.threads) : ahead + 1;
    for (auto next = ahead; next < std::min(last, pieces_.size()); ++next) {
      const auto& piece = pieces_[next];
      if (const auto range = piece.job->read_range(piece.begin, piece.end)) {
        range->source->will_read(range->offset, range->nbytes);
      }
    }
  }

  void run(const Piece& piece) {
    auto& job = *piece.job;
    const auto start = Clock::now();
    std::call_once(job.allocated, [&] {
      job.allocate();
      job.begun = true;
    });
    const auto whole = job.run(piece.begin, piece.end, whole_units(job, plan_.tile_bytes), pages_,
                               [&](size_t bytes) { return workers_.advance(bytes); });
    if (whole && --job.pieces_left == 0) {
      job.finish();
      job.finished = true;
    }
    job.nanoseconds += (Clock::now() - start).count();
  }

  const std::vector<Piece> pieces_;
  const Plan plan_;
  system::Pages pages_;
  system::Workers workers_;
};

/// Jobs that read files come in the order of the files' bytes.
std::vector<Piece> cut(const Jobs& jobs) {
  std::vector<Piece> pieces;
  std::vector<Job*> order;
  std::map<const Job*, std::pair<std::string, uint64_t>> place;
  for (const auto& job : jobs) {
    order.push_back(job.get());
    const auto range = job->read_range(0, std::min(job->numel(), int64_t{1}));
    place[job.get()] = range ? std::make_pair(range->source->name(), range->offset)
                             : std::make_pair(std::string(), uint64_t{0});
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](const Job* a, const Job* b) { return place.at(a) < place.at(b); });
  for (auto* job : order) {
    const auto length = whole_units(*job, kPieceBytes);
    for (int64_t begin = 0; begin < job->numel(); begin += length) {
      pieces.push_back({job, begin, std::min(begin + length, job->numel())});
      ++job->pieces_left;
    }
  }
  return pieces;
}

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
    } else if (node->kind != record::NodeKind::quantize && record::initialises(*node)) {
      origins.initialised = history.buffer->nbytes;
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
  if (!range || range->nbytes == 0 || range->offset % program.itemsize() != 0 ||
      (mmap == Mmap::automatic && !range->source->maps_well())) {
    return {};
  }
  return range->source->map(range->offset, range->nbytes);
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
    const bool wanted = options_.values != record::Values::empty && history->buffer->nbytes > 0;
    if (wanted && history->tail && history->tail->kind == record::NodeKind::quantize) {
      results_.push_back(result(target, Way::tiles, {}));
      quantised_[history->tail->sequence].push_back(std::move(target));
      return;
    }
    auto program = wanted ? Program::of(*history->buffer, history->tail) : nullptr;
    if (!program) {
      add_rest(target);
      return;
    }
    const auto origins = program->origins();
    for (const auto* source : origins.sources) {
      sources_.insert(source);
    }
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
    jobs_.push_back(make_job(std::move(target), std::move(program)));
  }

  /// Bytes that are needed besides the final tensors if tiles and threads are as few as can be.
  size_t least_bytes() {
    add_quantised();
    Options smallest;
    smallest.memory_budget = 0;
    return bytes_of(plan(jobs_, smallest), {options_.values, false, {}});
  }

  std::vector<Materialized> run() {
    add_quantised();
    for (const auto* source : sources_) {
      source->check();
    }
    if (options_.values == record::Values::fast) {
      for (const auto& job : jobs_) {
        job->fast_seed = options_.seed;
      }
    }
    const auto planned = plan(jobs_, options_);
    record::ReplayOptions replay;
    replay.values = options_.values;
    if (options_.memory_budget) {
      check_budget(planned, replay);
    }
    size_t replayed_bytes = 0;
    for (const auto& storage : rest_) {
      replayed_bytes += storage.nbytes();
    }
    // A quantised tensor is counted by what it is made from, as it is made.
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
      Pass(cut(jobs_), planned, tell).run();
    } catch (...) {
      commit_finished();
      throw;
    }
    commit_finished();
    replay.on_step = [&](size_t done, size_t steps) {
      tell(made_bytes + (steps == 0 ? replayed_bytes : replayed_bytes / steps * done));
    };
    for (const auto& done : record::materialize(rest_, replay)) {
      auto& result = results_[rest_results_.at(done.storage)];
      result.operators = done.operators;
      result.seconds = done.seconds;
    }
    tell(total);
    return std::move(results_);
  }

 private:
  static Materialized result(const Target& target, Way way, const Program::Origins& origins) {
    return {target.storage.unsafeGetStorageImpl(),
            target.history.buffer->nbytes,
            history_length(target.history),
            0.0,
            way,
            origins.read,
            origins.initialised,
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
    if (options_.values != record::Values::empty) {
      origins = origins_of_replay(target.history);
    }
    for (const auto* source : origins.sources) {
      sources_.insert(source);
    }
    rest_results_[target.storage.unsafeGetStorageImpl()] = results_.size();
    rest_.push_back(target.storage);
    results_.push_back(result(target, Way::replay, origins));
  }

  void add_quantised() {
    for (auto& [number, targets] : quantised_) {
      add_quantised(std::move(targets));
    }
    quantised_.clear();
  }

  void add_quantised(std::vector<Target> targets) {
    std::vector<size_t> indices;
    std::vector<c10::Storage> storages;
    for (const auto& target : targets) {
      indices.push_back(target.result);
      storages.push_back(target.storage);
    }
    const auto history = targets.front().history;
    auto job = make_quantize_job(std::move(targets));
    const auto origins = job ? job->origins() : origins_of_replay(history);
    sources_.insert(origins.sources.begin(), origins.sources.end());
    for (size_t i = 0; i < indices.size(); ++i) {
      auto& result = results_[indices[i]];
      result.sources = names(origins.sources);
      // Counted once for the node, with its first output.
      result.read_bytes = i == 0 ? origins.read : 0;
      result.initialised_bytes = i == 0 ? origins.initialised : 0;
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

  size_t bytes_of(const Plan& planned, const record::ReplayOptions& replay) const {
    return std::max(bytes_needed(jobs_, planned), record::scratch_bytes(rest_, replay));
  }

  void check_budget(const Plan& planned, const record::ReplayOptions& replay) const {
    const auto needed = bytes_of(planned, replay);
    TORCH_CHECK_VALUE(needed <= *options_.memory_budget,
                      "dormant: materialize: memory_budget=", *options_.memory_budget,
                      " bytes is too small, the minimum for these tensors is ", needed, ". Cause: ",
                      rest_.empty() ? "the smallest tiles take that much"
                                    : "an operator among them can only be replayed whole",
                      ". Next: raise memory_budget, or materialize fewer tensors at a time.");
  }

  void commit_finished() {
    for (auto& target : mapped_) {
      commit(target);
    }
    for (const auto& job : jobs_) {
      for (auto& target : job->targets) {
        results_[target.result].seconds = static_cast<double>(job->nanoseconds) * 1e-9;
        if (target.destination != nullptr) {
          options_.destinations->at(target.storage.unsafeGetStorageImpl()).begun = job->begun;
        } else if (job->finished) {
          commit(target);
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
  std::map<uint64_t, std::vector<Target>> quantised_;  ///< by the number of the node
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

size_t smallest_budget(c10::ArrayRef<c10::Storage> storages, const Options& options) {
  const system::PlainDispatch plain;
  Work work(options);
  for (const auto& storage : storages) {
    work.add(storage);
  }
  return work.least_bytes();
}

}  // namespace dormant::tile
