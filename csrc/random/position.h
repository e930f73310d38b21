// A place in the stream of a CPU generator, kept by every recorded random operator so that replay
// can start there.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/core/MT19937RNGEngine.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "random/mt19937.h"

namespace dormant::random {

// Immutable; copies are cheap and may be shared between threads. Positions inside the same block of
// 624 draws share the block's words when one thread took them one after the other.
class Position {
 public:
  // Where `generator` stands. The caller holds generator.mutex_.
  static Position of(at::CPUGeneratorImpl& generator);

  // Reads what serialize() wrote. Throws c10::ValueError for anything else.
  static Position deserialize(std::string_view bytes);

  // A fresh CPU generator that stands here.
  at::Generator restore() const;

  // Makes `generator` stand here. The caller holds generator.mutex_.
  void restore_to(at::CPUGeneratorImpl& generator) const;

  // The engine's state, as at::mt19937::data() gives it.
  at::mt19937_data_pod engine() const;

  // The second normal of a pair whose first was drawn alone, if the generator held one.
  std::optional<double> cached_normal() const { return cached_normal_; }

  // Bytes held, the words included although other positions may share them.
  size_t memory() const;

  // Versioned bytes, the same on every machine: a seed and a count where the position is known, and
  // verified, to be so many draws after seeding; else the whole engine (2.5 KB).
  std::string serialize() const;

  friend bool operator==(const Position& a, const Position& b);

 private:
  Position() = default;
  void set_state(const at::mt19937_data_pod& state);

  std::shared_ptr<const Words> words_;
  uint64_t seed_ = 0;
  int left_ = 1;
  uint32_t next_ = 0;
  std::optional<uint64_t> draws_;  // since manual_seed(seed_), where known; a guess until checked
  std::optional<float> cached_float_normal_;
  std::optional<double> cached_normal_;
};

}  // namespace dormant::random
