// Reads elements of a program: the loop body of the tile engine.
#pragma once

#include <ATen/core/Generator.h>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "random/normal_elements.h"
#include "random/philox.h"
#include "random/stream.h"
#include "tile/program.h"

namespace dormant::tile {

/// Holds the positions in random streams between tiles, so tiles in increasing order cost no jumps.
/// One thread at a time may use it; it keeps a reference to the program.
class Reader {
 public:
  /// With a `fast_seed`, uniform, normal and bernoulli steps draw from Philox instead of PyTorch's
  /// stream: the same distributions, other values (random/philox.h).
  explicit Reader(const Program& program, std::optional<uint64_t> fast_seed = {});

  /// Writes the elements of `runs` to `out`, one after the other.
  void read(Runs runs, void* out);

 private:
  /// What a step keeps from tile to tile.
  struct State {
    std::optional<random::Philox> fast;
    std::optional<random::NormalElements> normal;
    std::optional<random::Stream> stream;
    at::Generator generator;
    int64_t next = 0;  ///< element of the step that stream or generator draws next
    std::vector<Reader> inputs;
    std::vector<std::vector<std::byte>> scratch;   ///< what is read from each input
    std::vector<std::vector<std::byte>> operands;  ///< its elements in their places
    std::vector<int64_t> parts;                    ///< numbers of elements of what is decoded
    std::vector<Run> wanted;                       ///< of a part of it
    std::vector<std::byte> span;  ///< of random numbers or decoded elements, some of them wanted
  };

  // Of the step's region, not of the storage: `places`.
  void apply(const Step& step, State& state, Runs places, void* out);
  void apply_to_parts(const Step& step, State& state, Runs runs, std::byte* out);
  void draw_all(const Step& step, State& state, Runs places, std::byte* out);
  void draw(const Step& step, State& state, int64_t begin, int64_t count, void* out);
  void draw_fast(const Step& step, State& state, int64_t begin, int64_t count, void* out);
  void seek(const Step& step, State& state, int64_t element, uint64_t draws);
  void copy(const Input& input, State& state, size_t index, Runs places, c10::ScalarType dtype,
            void* out);
  void copy_boxes(const Input& input, State& state, size_t index, Runs places,
                  c10::ScalarType dtype, void* out);
  void compute(const Step& step, State& state, Runs places, void* out);
  void fetch(const Step& step, Runs places, void* out);
  void decode_all(const Step& step, State& state, Runs places, std::byte* out);
  void decode(const Step& step, State& state, int64_t begin, int64_t count, void* out);

  const Program* program_;
  std::optional<uint64_t> fast_seed_;
  std::vector<State> states_;
  std::vector<std::byte> together_;  ///< short parts of a tile, of one step after the other
};

}  // namespace dormant::tile
