#include "tile/read_ahead.h"

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "system/background.h"
#include "tile/sole_view.h"

namespace dormant::tile {
namespace {

/// As many reads at a time; also the blocks that a budget is cut into.
constexpr size_t kReads = 16;
/// Unwanted bytes between wanted ones are read where another request would cost more.
constexpr uint64_t kGapBytes = 128 << 10;
/// Blocks of a small budget: smaller ones would be requests for little.
constexpr size_t kSmallestBlockBytes = 64 << 10;
/// How often who waits looks whether to go on.
constexpr auto kInterval = std::chrono::milliseconds(50);

struct Current {
  ReadAhead* ahead = nullptr;
  size_t piece = 0;
};
thread_local Current current;

uint64_t end_of(const Program::Range& range) { return range.offset + range.nbytes; }

/// Without its first bytes, up to `offset`.
void cut_front(Program::Range& range, uint64_t offset) {
  const auto end = end_of(range);
  range.offset = std::min(offset, end);
  range.nbytes = static_cast<size_t>(end - range.offset);
}

}  // namespace

struct ReadAhead::Block {
  enum class Is : uint8_t { queued, reading, read };

  std::shared_ptr<const record::Source> source;
  uint64_t begin = 0;
  uint64_t end = 0;
  c10::DataPtr memory;
  std::exception_ptr error;  ///< of the read
  Is is = Is::queued;
  bool dropped = false;  ///< while it was being read: its memory goes when it has been
  size_t wanted = 0;     ///< bytes that pieces have still to take
  size_t pieces = 0;     ///< that may still take some
  size_t copies = 0;     ///< that are being made of some of it

  size_t nbytes() const { return static_cast<size_t>(end - begin); }
  bool is_done() const { return (wanted == 0 || pieces == 0) && copies == 0; }
};

struct ReadAhead::State {
  using BlockPtr = std::shared_ptr<Block>;

  State(size_t bytes, size_t pieces) : most(bytes), finished(pieces, false) {}

  const size_t most;
  std::mutex looking;  ///< guards the next three; taken before `mutex`
  std::deque<Wanted> ahead;
  size_t ahead_bytes = 0;
  size_t next_piece = 0;

  std::mutex mutex;  ///< guards the rest
  std::condition_variable changed;
  /// Those that nobody dropped, by source and end.
  std::map<std::pair<const record::Source*, uint64_t>, BlockPtr> blocks;
  std::unordered_map<size_t, std::vector<BlockPtr>> of_piece;
  std::deque<BlockPtr> queue;
  std::vector<c10::DataPtr> spare;  ///< of block_bytes each
  size_t block_bytes = 0;
  size_t allocated = 0;  ///< bytes of all memory, the spare included
  size_t threads = 0;
  size_t active = 0;   ///< pieces in work
  size_t starved = 0;  ///< of these, those that wait for others to give memory back
  size_t dropped = 0;  ///< blocks that are still being read, and give their memory back then
  std::vector<bool> finished;
  bool over = false;

  /// The first block of a source that ends behind `offset`; null where there is none.
  BlockPtr at_or_after(const record::Source* source, uint64_t offset) const {
    const auto found = blocks.upper_bound({source, offset});
    return found != blocks.end() && found->first.first == source ? found->second : nullptr;
  }

  void want(const BlockPtr& block, size_t piece, size_t nbytes) {
    block->wanted += nbytes;
    auto& of = of_piece[piece];
    if (std::find(of.begin(), of.end(), block) == of.end()) {
      of.push_back(block);
      ++block->pieces;
    }
  }

  void give_back(Block& block) {
    if (block.memory) {
      if (block.nbytes() == block_bytes && !over) {
        spare.push_back(std::move(block.memory));
      } else {
        allocated -= block.nbytes();
      }
      block.memory = {};
    }
    changed.notify_all();
  }

  /// By value: the caller may know the block by what this erases.
  void drop(BlockPtr block) {  // NOLINT(performance-unnecessary-value-param)
    const auto found = blocks.find({block->source.get(), block->end});
    if (found == blocks.end() || found->second != block) {
      return;
    }
    blocks.erase(found);
    if (block->is == Block::Is::reading) {
      block->dropped = true;
      ++dropped;
      return;
    }
    if (block->is == Block::Is::queued) {
      queue.erase(std::find(queue.begin(), queue.end(), block));
    }
    give_back(*block);
  }

  /// Memory of so many bytes; null where the bound or the system has none left.
  c10::DataPtr memory_of(size_t nbytes) {
    if (nbytes == block_bytes && !spare.empty()) {
      auto memory = std::move(spare.back());
      spare.pop_back();
      return memory;
    }
    while (allocated + nbytes > most && !spare.empty()) {
      spare.pop_back();
      allocated -= block_bytes;
    }
    if (allocated + nbytes > most) {
      return {};
    }
    auto memory = reserve(nbytes);
    allocated += memory ? nbytes : 0;
    return memory;
  }

  /// Reads a block that is queued no more; the lock is given back meanwhile.
  void read(const BlockPtr& block, std::unique_lock<std::mutex>& lock) {
    block->is = Block::Is::reading;
    lock.unlock();
    std::exception_ptr error;
    try {
      block->source->read(block->begin, block->nbytes(), block->memory.get());
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    block->is = Block::Is::read;
    block->error = error;
    if (block->dropped) {
      --dropped;
      give_back(*block);
    }
    changed.notify_all();
  }
};

ReadAhead::ReadAhead(Options options)
    : options_(std::move(options)),
      state_(std::make_shared<State>(options_.bytes, options_.pieces)) {}

ReadAhead::~ReadAhead() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->over = true;
  while (!state_->blocks.empty()) {
    state_->drop(state_->blocks.begin()->second);
  }
  state_->of_piece.clear();
  state_->spare.clear();
}

ReadAhead::Scope::Scope(ReadAhead* ahead, size_t piece) : ahead_(ahead), piece_(piece) {
  if (ahead_ != nullptr) {
    ahead_->begin();
    current = {ahead, piece};
  }
}

ReadAhead::Scope::~Scope() {
  if (ahead_ != nullptr) {
    current = {};
    ahead_->finish(piece_);
  }
}

void ReadAhead::begin() {
  advance();
  const std::lock_guard<std::mutex> lock(state_->mutex);
  ++state_->active;
}

void ReadAhead::finish(size_t piece) {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  --state_->active;
  state_->finished[piece] = true;
  const auto found = state_->of_piece.find(piece);
  if (found != state_->of_piece.end()) {
    for (const auto& block : found->second) {
      --block->pieces;
      if (block->is_done()) {
        state_->drop(block);
      }
    }
    state_->of_piece.erase(found);
  }
  state_->changed.notify_all();
}

void ReadAhead::read(const record::Source& source, uint64_t offset, size_t count, void* out) {
  if (current.ahead == nullptr || !is_far(source)) {
    source.read(offset, count, out);
  } else {
    current.ahead->take(current.piece, source, offset, count, out);
  }
}

void ReadAhead::take(size_t piece, const record::Source& source, uint64_t offset, size_t count,
                     void* out) {
  auto* bytes = static_cast<std::byte*>(out);
  while (count > 0) {
    std::unique_lock<std::mutex> lock(state_->mutex);
    const auto block = state_->at_or_after(&source, offset);
    if (!block || block->begin > offset) {
      lock.unlock();
      const auto direct = direct_bytes(piece, source, offset, count);
      source.read(offset, direct, bytes);
      offset += direct;
      bytes += direct;
      count -= direct;
      continue;
    }
    while (block->is != Block::Is::read) {
      if (block->is == Block::Is::queued && state_->threads == 0) {
        // There are no threads to be had.
        state_->queue.erase(std::find(state_->queue.begin(), state_->queue.end(), block));
        state_->read(block, lock);
        continue;
      }
      state_->changed.wait_for(lock, kInterval);
      lock.unlock();
      TORCH_CHECK(options_.go_on(), "dormant: reading ", source.name(), " was stopped");
      lock.lock();
    }
    if (block->error) {
      std::rethrow_exception(block->error);
    }
    if (block->dropped || !block->memory) {
      continue;  // another piece was done with it in this moment
    }
    const auto n = std::min(count, static_cast<size_t>(block->end - offset));
    const auto* from = static_cast<const std::byte*>(block->memory.get()) + (offset - block->begin);
    ++block->copies;
    lock.unlock();
    std::memcpy(bytes, from, n);
    lock.lock();
    --block->copies;
    block->wanted -= std::min(block->wanted, n);
    const bool done = block->is_done();
    if (done) {
      state_->drop(block);
    }
    lock.unlock();
    offset += n;
    bytes += n;
    count -= n;
    if (done) {
      advance();
    }
  }
}

/// How many of the bytes, which no block has, are to be read by themselves: none where they may
/// still come to be in a block.
size_t ReadAhead::direct_bytes(size_t piece, const record::Source& source, uint64_t offset,
                               size_t count) {
  advance();
  bool looked_at = false;
  {
    const std::lock_guard<std::mutex> looking(state_->looking);
    looked_at = state_->next_piece > piece &&
                std::none_of(state_->ahead.begin(), state_->ahead.end(),
                             [&](const Wanted& wanted) { return wanted.piece == piece; });
  }
  std::unique_lock<std::mutex> lock(state_->mutex);
  const auto next = state_->at_or_after(&source, offset);
  if (next && next->begin <= offset) {
    return 0;
  }
  if (!looked_at && (state_->dropped > 0 || state_->starved + 1 < state_->active)) {
    ++state_->starved;
    state_->changed.wait_for(lock, kInterval);
    --state_->starved;
    lock.unlock();
    TORCH_CHECK(options_.go_on(), "dormant: reading ", source.name(), " was stopped");
    return 0;
  }
  return next ? std::min<uint64_t>(count, next->begin - offset) : count;
}

void ReadAhead::advance() {
  const std::lock_guard<std::mutex> looking(state_->looking);
  while (look_ahead() && start_block()) {
    start_thread();
  }
}

/// Knows what comes next, so far that a block can be cut. Under `looking`. Whether anything does.
bool ReadAhead::look_ahead() {
  auto& state = *state_;
  if (state.block_bytes == 0) {
    state.block_bytes = std::max(state.most / kReads, kSmallestBlockBytes);
  }
  Ranges ranges;
  while (state.ahead_bytes < 2 * state.block_bytes && state.next_piece < options_.pieces) {
    ranges.clear();
    options_.reads_of(state.next_piece, ranges);
    std::erase_if(ranges,
                  [](const auto& range) { return range.nbytes == 0 || !is_far(*range.source); });
    std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) {
      return std::tie(a.source, a.offset) < std::tie(b.source, b.offset);
    });
    for (auto& range : ranges) {
      state.ahead_bytes += range.nbytes;
      auto* last = state.ahead.empty() ? nullptr : &state.ahead.back();
      if (last != nullptr && last->piece == state.next_piece &&
          last->range.source == range.source && end_of(last->range) == range.offset) {
        last->range.nbytes += range.nbytes;
      } else {
        state.ahead.push_back({std::move(range), state.next_piece});
      }
    }
    ++state.next_piece;
  }
  return !state.ahead.empty();
}

/// Cuts the next block and queues it. Under `looking`. False where there is nothing to cut, or no
/// memory for it.
bool ReadAhead::start_block() {
  auto& state = *state_;
  const std::lock_guard<std::mutex> lock(state.mutex);
  const auto shorten = [&](uint64_t offset) {
    auto& range = state.ahead.front().range;
    const auto before = range.nbytes;
    cut_front(range, offset);
    state.ahead_bytes -= before - range.nbytes;
    if (range.nbytes == 0) {
      state.ahead.pop_front();
    }
  };
  State::BlockPtr next;
  for (; !state.ahead.empty(); next = nullptr) {
    const auto& [range, piece] = state.ahead.front();
    if (state.finished[piece]) {
      shorten(end_of(range));
      continue;
    }
    next = state.at_or_after(range.source.get(), range.offset);
    if (!next || next->begin > range.offset) {
      break;
    }
    const auto end = std::min(end_of(range), next->end);
    state.want(next, piece, static_cast<size_t>(end - range.offset));
    shorten(end);
  }
  if (state.ahead.empty()) {
    return false;
  }
  auto block = std::make_shared<Block>();
  const auto& first = state.ahead.front().range;
  block->source = first.source;
  block->begin = first.offset;
  block->end = first.offset;
  auto limit = block->begin + std::min(state.block_bytes, first.source->preferred_read_bytes());
  limit = next ? std::min(limit, next->begin) : limit;
  const auto belongs = [&](const Program::Range& range) {
    return range.source == block->source && range.offset >= block->begin && range.offset < limit &&
           range.offset <= block->end + kGapBytes;
  };
  for (const auto& [range, piece] : state.ahead) {
    if (!state.finished[piece]) {
      if (!belongs(range)) {
        break;
      }
      block->end = std::max(block->end, std::min(end_of(range), limit));
    }
  }
  block->memory = state.memory_of(block->nbytes());
  if (!block->memory) {
    return false;
  }
  state.blocks[{block->source.get(), block->end}] = block;
  state.queue.push_back(block);
  while (!state.ahead.empty()) {
    const auto& [range, piece] = state.ahead.front();
    if (state.finished[piece]) {
      shorten(end_of(range));
      continue;
    }
    if (range.offset < block->begin || range.offset >= block->end ||
        range.source != block->source) {
      break;
    }
    const auto end = std::min(end_of(range), block->end);
    state.want(block, piece, static_cast<size_t>(end - range.offset));
    shorten(end);
  }
  return true;
}

/// For what was queued.
void ReadAhead::start_thread() {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    if (state_->threads == kReads) {
      return;
    }
    ++state_->threads;
  }
  if (!system::run_in_background([state = state_] { work(state); })) {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    --state_->threads;
    state_->changed.notify_all();
  }
}

void ReadAhead::work(const std::shared_ptr<State>& state) {
  std::unique_lock<std::mutex> lock(state->mutex);
  while (!state->queue.empty()) {
    const auto block = state->queue.front();
    state->queue.pop_front();
    state->read(block, lock);
  }
  --state->threads;
  state->changed.notify_all();
}

}  // namespace dormant::tile
