#include "tile/engine.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <utility>

#include "tile/pages.h"
#include "tile/program.h"
#include "tile/reader.h"

namespace dormant::tile {
namespace {

using Clock = std::chrono::steady_clock;

// A tile and what it is made from stay in a core's cache.
constexpr int64_t kTileBytes = 128 * 1024;
constexpr int64_t kSmallestTileBytes = 4 * 1024;
// Tiles begin where vectors and blocks of normal_ do.
constexpr int64_t kAlignment = 64;
// A piece is one thread's work: large enough that the jump to its random numbers costs little.
constexpr int64_t kPieceBytes = 16 * 1024 * 1024;
constexpr auto kStepInterval = std::chrono::milliseconds(50);

struct Job {
  c10::Storage storage;
  record::History history;  ///< what `program` was made from
  std::shared_ptr<const Program> program;
  c10::Storage memory;
  std::once_flag allocated;
  std::atomic<int64_t> pieces_left{0};
  std::atomic<int64_t> nanoseconds{0};
  size_t result = 0;  ///< index of its Materialized
};

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

size_t bytes_per_thread(const std::vector<std::unique_ptr<Job>>& jobs, int64_t tile_bytes) {
  size_t most = 0;
  for (const auto& job : jobs) {
    const auto elements = std::min(tile_bytes / static_cast<int64_t>(job->program->itemsize()),
                                   job->program->numel());
    most = std::max(most, job->program->scratch_bytes(elements));
  }
  return most;
}

Plan plan(const std::vector<std::unique_ptr<Job>>& jobs, const Options& options) {
  Plan plan{at::get_num_threads(), kTileBytes};
  if (!options.memory_budget) {
    return plan;
  }
  const auto budget = *options.memory_budget;
  while (plan.tile_bytes > kSmallestTileBytes &&
         bytes_per_thread(jobs, plan.tile_bytes) * static_cast<size_t>(plan.threads) > budget) {
    plan.tile_bytes /= 2;
  }
  while (plan.threads > 1 &&
         bytes_per_thread(jobs, plan.tile_bytes) * static_cast<size_t>(plan.threads) > budget) {
    --plan.threads;
  }
  return plan;
}

/// Runs pieces until none is left or something was thrown anywhere.
class Workers {
 public:
  Workers(std::vector<Piece> pieces, Plan plan, std::function<void(size_t)> on_bytes)
      : pieces_(std::move(pieces)), plan_(plan), on_bytes_(std::move(on_bytes)) {}

  void run() {
    const auto caller = std::this_thread::get_id();
    at::parallel_for(0, plan_.threads, 1, [&](int64_t begin, int64_t end) {
      for (auto worker = begin; worker < end; ++worker) {
        work(std::this_thread::get_id() == caller);
      }
    });
    if (error_) {
      std::rethrow_exception(error_);
    }
  }

 private:
  void work(bool on_calling_thread) noexcept {
    // Modes and recording belong to the caller's thread; workers have their own.
    const c10::impl::ExcludeDispatchKeyGuard plain(record::foreign_modes());
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    try {
      for (size_t i = next_++; i < pieces_.size() && !stopped_; i = next_++) {
        run(pieces_[i], on_calling_thread);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) {
        error_ = std::current_exception();
      }
      stopped_ = true;
    }
  }

  void run(const Piece& piece, bool on_calling_thread) {
    auto& job = *piece.job;
    const auto start = Clock::now();
    std::call_once(job.allocated, [&] { job.memory = record::allocate(job.storage.nbytes()); });
    const auto itemsize = static_cast<int64_t>(job.program->itemsize());
    auto* memory = static_cast<std::byte*>(job.memory.mutable_data());
    pages_.prepare(memory + piece.begin * itemsize,
                   static_cast<size_t>((piece.end - piece.begin) * itemsize));
    Reader reader(*job.program);
    const auto tile = std::max(plan_.tile_bytes / itemsize / kAlignment * kAlignment, kAlignment);
    for (auto begin = piece.begin; begin < piece.end && !stopped_; begin += tile) {
      const auto count = std::min(tile, piece.end - begin);
      reader.read(Run{begin, count}, memory + begin * itemsize);
      done_ += static_cast<size_t>(count * itemsize);
      if (on_calling_thread) {
        tell();
      }
    }
    job.nanoseconds += (Clock::now() - start).count();
    if (!stopped_) {
      --job.pieces_left;
    }
  }

  void tell() {
    const auto now = Clock::now();
    if (on_bytes_ && now - told_ >= kStepInterval) {
      told_ = now;
      on_bytes_(done_);
    }
  }

  const std::vector<Piece> pieces_;
  const Plan plan_;
  const std::function<void(size_t)> on_bytes_;
  Pages pages_;
  std::atomic<size_t> next_{0};
  std::atomic<size_t> done_{0};
  std::atomic<bool> stopped_{false};
  Clock::time_point told_ = Clock::now();
  std::mutex mutex_;
  std::exception_ptr error_;
};

/// Whether the storage is still as lazy as it was: on_step and other threads may have written to it
/// or given it memory.
bool unchanged(const Job& job) {
  const auto* history = record::history_of(job.storage.unsafeGetStorageImpl());
  return history != nullptr && history->buffer == job.history.buffer &&
         history->tail == job.history.tail;
}

std::vector<Piece> cut(const std::vector<std::unique_ptr<Job>>& jobs) {
  std::vector<Piece> pieces;
  for (const auto& job : jobs) {
    const auto itemsize = static_cast<int64_t>(job->program->itemsize());
    const auto length = kPieceBytes / itemsize / kAlignment * kAlignment;
    for (int64_t begin = 0; begin < job->program->numel(); begin += length) {
      pieces.push_back({job.get(), begin, std::min(begin + length, job->program->numel())});
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

}  // namespace

std::vector<Materialized> materialize(c10::ArrayRef<c10::Storage> storages,
                                      const Options& options) {
  const std::lock_guard<std::recursive_mutex> lock(record::graph_mutex());
  // Lowering runs operators too.
  const c10::impl::ExcludeDispatchKeyGuard plain(record::foreign_modes());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  std::vector<std::unique_ptr<Job>> jobs;
  std::vector<c10::Storage> rest;
  std::vector<Materialized> results;
  std::unordered_set<const c10::StorageImpl*> seen;
  size_t total_bytes = 0;
  for (const auto& storage : storages) {
    const auto* impl = storage.unsafeGetStorageImpl();
    const auto* history = record::history_of(impl);
    if (history == nullptr || !seen.insert(impl).second) {
      continue;
    }
    total_bytes += history->buffer->nbytes;
    auto program = options.values == record::Values::exact && history->buffer->nbytes > 0
                       ? Program::of(*history->buffer, history->tail)
                       : nullptr;
    if (!program) {
      rest.push_back(storage);
      continue;
    }
    auto job = std::make_unique<Job>();
    job->storage = storage;
    job->history = *history;
    job->program = std::move(program);
    job->result = results.size();
    results.push_back({impl, history->buffer->nbytes, history_length(*history), 0.0, Way::tiles});
    jobs.push_back(std::move(job));
  }

  const auto planned = plan(jobs, options);
  record::ReplayOptions replay;
  replay.values = options.values;
  if (options.memory_budget) {
    const auto needed =
        std::max(bytes_per_thread(jobs, planned.tile_bytes), record::scratch_bytes(rest, replay));
    TORCH_CHECK_VALUE(needed <= *options.memory_budget,
                      "dormant: materialize: memory_budget=", *options.memory_budget,
                      " bytes is too small, the minimum for these tensors is ", needed, ". Cause: ",
                      rest.empty() ? "the smallest tiles take that much"
                                   : "an operator among them can only be replayed whole",
                      ". Next: raise memory_budget, or materialize fewer tensors at a time.");
  }

  const auto commit_done = [&] {
    for (const auto& job : jobs) {
      if (job->memory && job->pieces_left == 0 && unchanged(*job)) {
        record::commit(
            job->storage.unsafeGetStorageImpl(),
            std::move(job->memory.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
        job->memory = c10::Storage();
      }
      results[job->result].seconds = static_cast<double>(job->nanoseconds) * 1e-9;
    }
  };
  size_t tiled_bytes = 0;
  for (const auto& job : jobs) {
    tiled_bytes += job->storage.nbytes();
  }
  auto pieces = cut(jobs);
  const auto tell = [&](size_t done) {
    if (options.on_step) {
      options.on_step(done, total_bytes);
    }
  };
  tell(0);
  try {
    Workers(std::move(pieces), planned, tell).run();
  } catch (...) {
    commit_done();
    throw;
  }
  commit_done();

  const auto replayed_bytes = total_bytes - tiled_bytes;
  replay.on_step = [&](size_t done, size_t total) {
    tell(tiled_bytes + (total == 0 ? replayed_bytes : replayed_bytes / total * done));
  };
  for (const auto& done : record::materialize(rest, replay)) {
    results.push_back({done.storage, done.nbytes, done.operators, done.seconds, Way::replay});
  }
  tell(total_bytes);
  return results;
}

}  // namespace dormant::tile
