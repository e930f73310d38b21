#include "random/position.h"

#include <c10/util/Exception.h>

#include <bit>
#include <cmath>
#include <type_traits>
#include <utility>

#include "random/seed_trace.h"

namespace dormant::random {
namespace {

// The serialized form: a version byte, a byte of flags, then little-endian fields; what the flags
// leave out takes no room.
constexpr uint8_t kVersion = 1;
constexpr uint8_t kHasNormal = 1;
constexpr uint8_t kHasFloatNormal = 2;
constexpr uint8_t kSinceSeeding = 4;  // a count of draws stands in place of the engine's state
constexpr uint8_t kKnownFlags = kHasNormal | kHasFloatNormal | kSinceSeeding;

class Writer {
 public:
  template <typename Unsigned>
  void put(Unsigned value) {
    static_assert(std::is_unsigned_v<Unsigned>);
    for (size_t i = 0; i < sizeof(value); ++i) {
      bytes_.push_back(static_cast<char>(value >> (8 * i) & 0xffU));
    }
  }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <typename Unsigned>
  Unsigned get(const char* what) {
    static_assert(std::is_unsigned_v<Unsigned>);
    TORCH_CHECK_VALUE(bytes_.size() - at_ >= sizeof(Unsigned),
                      "Position::deserialize: the bytes end at ", bytes_.size(), ", inside ", what,
                      " at offset ", at_,
                      ". The data is cut off or is not a position; save it again.");
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof(Unsigned); ++i) {
      value |= uint64_t{static_cast<unsigned char>(bytes_[at_ + i])} << (8 * i);
    }
    at_ += sizeof(Unsigned);
    return static_cast<Unsigned>(value);
  }

  void expect_end() const {
    TORCH_CHECK_VALUE(at_ == bytes_.size(), "Position::deserialize: got ", bytes_.size(),
                      " bytes, expected ", at_, ". The data is not a position; save it again.");
  }

 private:
  std::string_view bytes_;
  size_t at_ = 0;
};

// The words that this thread met last: positions taken one after the other mostly stand in the same
// block.
std::shared_ptr<const Words> share(const Words& words) {
  thread_local std::shared_ptr<const Words> last;
  if (!last || *last != words) {
    last = std::make_shared<const Words>(words);
  }
  return last;
}

}  // namespace

Position Position::of(at::CPUGeneratorImpl& generator) {
  const at::mt19937 engine = generator.engine();
  const at::mt19937_data_pod state = engine.data();
  Position position;
  position.set_state(state);
  position.draws_ = draws_since_seeding(generator, state);
  position.cached_normal_ = generator.next_double_normal_sample();
  position.cached_float_normal_ = generator.next_float_normal_sample();
  return position;
}

void Position::set_state(const at::mt19937_data_pod& state) {
  words_ = share(state.state_);
  seed_ = state.seed_;
  left_ = state.left_;
  next_ = state.next_;
}

at::mt19937_data_pod Position::engine() const {
  return {.seed_ = seed_, .left_ = left_, .seeded_ = true, .next_ = next_, .state_ = *words_};
}

void Position::restore_to(at::CPUGeneratorImpl& generator) const {
  at::mt19937 engine;
  engine.set_data(this->engine());
  generator.set_engine(engine);
  generator.set_next_double_normal_sample(cached_normal_);
  generator.set_next_float_normal_sample(cached_float_normal_);
}

at::Generator Position::restore() const {
  at::Generator generator = at::detail::createCPUGenerator();
  restore_to(*generator.get<at::CPUGeneratorImpl>());
  return generator;
}

size_t Position::memory() const { return sizeof(*this) + sizeof(*words_); }

std::string Position::serialize() const {
  bool since_seeding = false;
  if (draws_) {
    const at::mt19937_data_pod known = state_after(seed_, *draws_);
    since_seeding = known.left_ == left_ && known.next_ == next_ && known.state_ == *words_;
  }
  Writer writer;
  writer.put(kVersion);
  writer.put(static_cast<uint8_t>((cached_normal_ ? kHasNormal : 0) |
                                  (cached_float_normal_ ? kHasFloatNormal : 0) |
                                  (since_seeding ? kSinceSeeding : 0)));
  writer.put(seed_);
  if (cached_normal_) {
    writer.put(std::bit_cast<uint64_t>(*cached_normal_));
  }
  if (cached_float_normal_) {
    writer.put(std::bit_cast<uint32_t>(*cached_float_normal_));
  }
  if (since_seeding) {
    writer.put(*draws_);
    return writer.take();
  }
  writer.put(static_cast<uint16_t>(left_));
  writer.put(static_cast<uint16_t>(next_));
  for (const uint32_t word : *words_) {
    writer.put(word);
  }
  return writer.take();
}

Position Position::deserialize(std::string_view bytes) {
  Reader reader(bytes);
  const auto version = reader.get<uint8_t>("the version");
  TORCH_CHECK_VALUE(version == kVersion, "Position::deserialize: got version ", int{version},
                    ", expected ", int{kVersion},
                    ". It was saved by another release of dormant; save it again with this one.");
  const auto flags = reader.get<uint8_t>("the flags");
  TORCH_CHECK_VALUE((flags & ~kKnownFlags) == 0, "Position::deserialize: got flags ", int{flags},
                    ", expected none but ", int{kKnownFlags},
                    ". The data is not a position; save it again.");
  Position position;
  position.seed_ = reader.get<uint64_t>("the seed");
  if ((flags & kHasNormal) != 0) {
    position.cached_normal_ = std::bit_cast<double>(reader.get<uint64_t>("the cached normal"));
  }
  if ((flags & kHasFloatNormal) != 0) {
    position.cached_float_normal_ =
        std::bit_cast<float>(reader.get<uint32_t>("the cached float normal"));
  }
  if ((flags & kSinceSeeding) != 0) {
    position.draws_ = reader.get<uint64_t>("the count of draws");
    reader.expect_end();
    const at::mt19937_data_pod state = state_after(position.seed_, *position.draws_);
    position.set_state(state);
    note_state(state, *position.draws_);
    return position;
  }
  at::mt19937_data_pod state{};
  state.seed_ = position.seed_;
  state.seeded_ = true;
  state.left_ = reader.get<uint16_t>("the count of draws left");
  state.next_ = reader.get<uint16_t>("the index of the next word");
  constexpr int kN = at::MERSENNE_STATE_N;
  // at::mt19937 seeds with 1 and 0; each draw moves one from the former to the latter, and the 624
  // words of a block are drawn in order. Anything else would read beyond them.
  TORCH_CHECK_VALUE((state.left_ == 1 && state.next_ == 0) ||
                        (state.left_ >= 1 && state.left_ <= kN &&
                         state.left_ + static_cast<int>(state.next_) == kN + 1),
                    "Position::deserialize: got ", state.left_, " draws left and next word ",
                    state.next_, ", expected 1 and 0, or a sum of ", kN + 1,
                    ". The data is not a position; save it again.");
  bool only_zeros = true;
  for (uint32_t& word : state.state_) {
    word = reader.get<uint32_t>("the words");
    only_zeros = only_zeros && word == 0;
  }
  TORCH_CHECK_VALUE(!only_zeros,
                    "Position::deserialize: all 624 words are 0, which no seed leads to. The data "
                    "is not a position; save it again.");
  reader.expect_end();
  position.set_state(state);
  return position;
}

bool operator==(const Position& a, const Position& b) {
  // Bits, not numbers: a cached NaN equals itself.
  const auto bits = [](const auto& cached) {
    return cached ? std::optional(std::bit_cast<uint64_t>(static_cast<double>(*cached)))
                  : std::nullopt;
  };
  return a.seed_ == b.seed_ && a.left_ == b.left_ && a.next_ == b.next_ &&
         bits(a.cached_normal_) == bits(b.cached_normal_) &&
         bits(a.cached_float_normal_) == bits(b.cached_float_normal_) &&
         (a.words_ == b.words_ || *a.words_ == *b.words_);
}

}  // namespace dormant::random
