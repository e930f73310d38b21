#include "random/seed_trace.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "random/mt19937.h"

namespace dormant::random {
namespace {

constexpr uint64_t kN = at::MERSENNE_STATE_N;

// How far unnoted draws are followed, in blocks: 2.5 million draws in a quarter of a millisecond.
constexpr uint64_t kSearchBlocks = 4096;

// A place on the way from a seed. A seeding (draws == 0) stands before its first block.
struct Place {
  uint64_t seed = 0;
  uint64_t draws = 0;
  Words words{};
  bool lost = false;

  // How many draws the blocks before this one took.
  uint64_t block_start() const { return draws == 0 ? 0 : (draws - 1) / kN * kN; }
};

Place seeding(uint64_t seed) { return {.seed = seed, .words = at::mt19937(seed).data().state_}; }

// The count of draws at which the way from `place` on meets `state`, within kSearchBlocks.
std::optional<uint64_t> search(Place place, const at::mt19937_data_pod& state) {
  uint64_t block_start = place.block_start();
  if (place.draws == 0) {
    twist(place.words);
  }
  for (uint64_t i = 0; i < kSearchBlocks; ++i, block_start += kN) {
    if (place.words == state.state_) {
      return block_start + state.next_;
    }
    twist(place.words);
  }
  return std::nullopt;
}

}  // namespace

// What a thread remembers: places by seed, the last met first, and the draws noted since it met
// that one.
class SeedMemory {
 public:
  void note(const at::CPUGeneratorImpl& generator, uint64_t draws) {
    if (noted_generator_ != &generator) {
      noted_generator_ = &generator;
      noted_draws_ = 0;
    }
    noted_draws_ += draws;
  }

  void note_state(const at::mt19937_data_pod& state, uint64_t draws) {
    at_seed(state.seed_) = {.seed = state.seed_, .draws = draws, .words = state.state_};
  }

  std::optional<uint64_t> locate(const at::CPUGeneratorImpl& generator,
                                 const at::mt19937_data_pod& state) {
    const uint64_t noted = noted_generator_ == &generator ? noted_draws_ : 0;
    noted_generator_ = nullptr;
    Place& place = at_seed(state.seed_);
    if (state.next_ == 0) {
      // Seeded and not drawn from, unless its words came from elsewhere.
      const Place fresh = seeding(state.seed_);
      if (state.left_ != 1 || state.state_ != fresh.words) {
        return std::nullopt;
      }
      place = fresh;
      return 0;
    }
    if (place.lost || static_cast<uint64_t>(state.left_) + state.next_ != kN + 1) {
      return std::nullopt;
    }
    if (place.draws != 0 && place.words == state.state_) {
      place.draws = place.block_start() + state.next_;
      return place.draws;
    }
    const std::optional<uint64_t> draws = draws_in_another_block(place, noted, state);
    place.lost = !draws;
    if (draws) {
      place.draws = *draws;
      place.words = state.state_;
    }
    return draws;
  }

 private:
  static std::optional<uint64_t> draws_in_another_block(const Place& place, uint64_t noted,
                                                        const at::mt19937_data_pod& state) {
    const uint64_t expected = place.draws + noted;
    if (noted != 0 && (expected - 1) % kN + 1 == state.next_) {
      return expected;
    }
    const std::optional<uint64_t> ahead = search(place, state);
    return ahead || place.draws == 0 ? ahead : search(seeding(place.seed), state);
  }

  // The place of `seed`, a new one at its seeding, moved to the front.
  Place& at_seed(uint64_t seed) {
    const auto end = places_.begin() + static_cast<std::ptrdiff_t>(used_);
    auto found =
        std::find_if(places_.begin(), end, [&](const Place& place) { return place.seed == seed; });
    if (found == end) {
      used_ = std::min(used_ + 1, places_.size());
      found = places_.begin() + static_cast<std::ptrdiff_t>(used_ - 1);
      *found = seeding(seed);
    }
    std::rotate(places_.begin(), found, found + 1);
    return places_.front();
  }

  std::array<Place, 8> places_;
  size_t used_ = 0;
  const at::CPUGeneratorImpl* noted_generator_ = nullptr;
  uint64_t noted_draws_ = 0;
};

namespace {

std::unique_ptr<SeedMemory>& memory() {
  thread_local auto memory = std::make_unique<SeedMemory>();
  return memory;
}

}  // namespace

SeparateTrace::SeparateTrace() : kept_(std::exchange(memory(), std::make_unique<SeedMemory>())) {}

SeparateTrace::~SeparateTrace() { memory() = std::move(kept_); }

void note_state(const at::mt19937_data_pod& state, uint64_t draws) {
  memory()->note_state(state, draws);
}

void note_draws(const at::CPUGeneratorImpl& generator, uint64_t draws) {
  memory()->note(generator, draws);
}

std::optional<uint64_t> draws_since_seeding(const at::CPUGeneratorImpl& generator,
                                            const at::mt19937_data_pod& state) {
  return memory()->locate(generator, state);
}

at::mt19937_data_pod state_after(uint64_t seed, uint64_t draws) {
  struct Last {
    uint64_t draws = 0;
    at::mt19937_data_pod state = at::mt19937(0).data();
  };
  thread_local Last last;
  if (last.state.seed_ != seed || last.draws > draws) {
    last = {.draws = 0, .state = at::mt19937(seed).data()};
  }
  advance(last.state, draws - last.draws);
  last.draws = draws;
  return last.state;
}

}  // namespace dormant::random
