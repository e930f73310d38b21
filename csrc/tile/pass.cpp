#include "tile/pass.h"

#include <c10/util/DeadlockDetection.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "system/fork.h"
#include "system/workers.h"
#include "tile/read_ahead.h"

namespace dormant::tile {
namespace {

using Clock = std::chrono::steady_clock;

// One thread's work: large enough that the jump to its random numbers costs little.
constexpr int64_t kPieceBytes = 16 * 1024 * 1024;

struct Piece {
  Job* job;
  int64_t begin;
  int64_t end;
};

bool reads_far(const Job& job) {
  const auto sources = job.origins().sources;
  return std::any_of(sources.begin(), sources.end(),
                     [](const auto* source) { return is_far(*source); });
}

/// What all threads work on at a time, and as much again, has room in what is read ahead.
int64_t piece_bytes(const Job& job, const Plan& plan) {
  return plan.read_ahead == 0 || !reads_far(job)
             ? kPieceBytes
             : std::min(kPieceBytes, static_cast<int64_t>(plan.read_ahead) / (2 * plan.threads));
}

/// Jobs that read files come in the order of the files' bytes.
std::vector<Piece> cut(const Jobs& jobs, const Plan& plan) {
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
  std::vector<Piece> pieces;
  for (auto* job : order) {
    const auto tile = plan.tile(*job);
    const auto length =
        std::max(piece_bytes(*job, plan) / (tile * job->itemsize()), int64_t{1}) * tile;
    for (int64_t begin = 0; begin < job->numel(); begin += length) {
      pieces.push_back({job, begin, std::min(begin + length, job->numel())});
      ++job->pieces_left;
    }
  }
  return pieces;
}

/// Tells the sources of pieces [begin, end) what will be wanted, where they read ahead themselves.
void announce(const std::vector<Piece>& pieces, size_t begin, size_t end) {
  for (auto i = begin; i < std::min(end, pieces.size()); ++i) {
    const auto range = pieces[i].job->read_range(pieces[i].begin, pieces[i].end);
    if (range && !is_far(*range->source)) {
      range->source->will_read(range->offset, range->nbytes);
    }
  }
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

size_t bytes_of_threads(const Jobs& jobs, const Plan& plan) {
  size_t most = 0;
  for (const auto& job : jobs) {
    most = std::max(most, job->thread_bytes(std::min(plan.tile(*job), job->numel())));
  }
  return most * static_cast<size_t>(plan.threads);
}

}  // namespace

int64_t Plan::tile(const Job& job) const {
  const auto [best, comfortable] = job.tile_size();
  const auto bytes = std::max(best >> halvings, comfortable);
  return job.tile(std::max(bytes >> further_halvings, kSmallestTileBytes));
}

size_t bytes_needed(const Jobs& jobs, const Plan& plan) {
  return bytes_of_threads(jobs, plan) + shared_bytes(jobs, plan.threads);
}

namespace {

Plan tiles_for(const Jobs& jobs, std::optional<size_t> budget, std::optional<size_t> unasked) {
  Plan plan{system::OneThreadIfForked::own_thread_count()};
  const auto bound = budget ? budget : unasked;
  if (!bound) {
    return plan;
  }
  // What jobs need for themselves takes nothing away from their tiles where nobody asks.
  const auto too_much = [&] {
    return (budget ? bytes_needed(jobs, plan) : bytes_of_threads(jobs, plan)) > *bound;
  };
  const auto any = [&](const auto& is_larger) {
    return std::any_of(jobs.begin(), jobs.end(),
                       [&](const auto& job) { return is_larger(job->tile_size()); });
  };
  const auto larger_than_comfortable = [&](const TileSize& size) {
    return size.best >> plan.halvings > size.comfortable;
  };
  const auto larger_than_smallest = [&](const TileSize& size) {
    return size.comfortable >> plan.further_halvings > kSmallestTileBytes;
  };
  while (any(larger_than_comfortable) && too_much()) {
    ++plan.halvings;
  }
  while (plan.threads > 1 && too_much()) {
    --plan.threads;
  }
  while (budget && any(larger_than_smallest) && too_much()) {
    ++plan.further_halvings;
  }
  return plan;
}

}  // namespace

Plan plan_for(const Jobs& jobs, std::optional<size_t> budget, std::optional<size_t> unasked) {
  auto plan = tiles_for(jobs, budget, unasked);
  if (std::any_of(jobs.begin(), jobs.end(), [](const auto& job) { return reads_far(*job); })) {
    if (c10::impl::check_python_gil()) {
      // Threads that read may need the lock, so nobody must wait for them: one thread does it all.
      plan.threads = 1;
      return plan;
    }
    const auto needed = bytes_needed(jobs, plan);
    plan.read_ahead =
        !budget ? kReadAheadBytes : std::min(kReadAheadBytes, *budget - std::min(*budget, needed));
  }
  return plan;
}

void run(const Jobs& jobs, const Plan& plan, std::function<void(size_t)> on_bytes) {
  const auto pieces = cut(jobs, plan);
  const auto threads = static_cast<size_t>(plan.threads);
  system::Pages pages;
  system::Workers workers(plan.threads, std::move(on_bytes));
  const auto after_tile = [&](size_t bytes) { return workers.advance(bytes); };
  std::optional<ReadAhead> ahead;
  if (plan.read_ahead > 0) {
    ahead.emplace(ReadAhead::Options{.bytes = plan.read_ahead,
                                     .pieces = pieces.size(),
                                     .reads_of =
                                         [&](size_t i, ReadAhead::Ranges& ranges) {
                                           pieces[i].job->append_reads(pieces[i].begin,
                                                                       pieces[i].end, ranges);
                                         },
                                     .go_on = [&] { return workers.advance(0); }});
  }
  workers.run(pieces.size(), [&](size_t i) {
    const ReadAhead::Scope scope(ahead ? &*ahead : nullptr, i);
    // The piece after the ones in work; the first piece speaks for these.
    i == 0 ? announce(pieces, 0, threads) : announce(pieces, i + threads - 1, i + threads);
    const auto& [job, begin, end] = pieces[i];
    const auto start = Clock::now();
    job->begin();
    if (job->run(begin, end, plan.tile(*job), pages, after_tile) && --job->pieces_left == 0) {
      job->finish();
      job->finished = true;
    }
    job->nanoseconds += (Clock::now() - start).count();
  });
}

void check_budget(const char* operation, size_t budget, size_t needed, const char* cause,
                  const char* next) {
  TORCH_CHECK_VALUE(needed <= budget, operation, ": memory_budget=", budget,
                    " bytes is too small, the minimum for these tensors is ", needed,
                    ". Cause: ", cause, ". Next: ", next, ".");
}

}  // namespace dormant::tile
