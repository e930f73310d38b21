// Any elements of a contiguous normal_, without the rest.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>

#include "random/stream.h"

namespace dormant::random {

// A contiguous normal_ of at least as many elements is drawn in blocks of them; a smaller one
// serially.
constexpr uint64_t kNormalBlock = 16;

// A contiguous normal_ of n >= 16 elements, n % 16 != 0, draws its last 16 elements anew, as one
// block, after all others (ATen/native/cpu/DistributionTemplates.h, normal_fill).
struct NormalTail {
  uint64_t begin;  // first element of the tail; n where there is none
  uint64_t draw;   // draws between the operator's first and the tail's first
};
NormalTail normal_tail(c10::ScalarType dtype, uint64_t numel);

// All draws of a contiguous normal_ of `numel` >= 16 elements, those of its tail included.
uint64_t block_normal_draws(c10::ScalarType dtype, uint64_t numel);

// A contiguous normal_(mean, std) of `numel` >= 16 elements whose first draw is the next of
// `start`, read in ranges. Ranges in increasing order, as of the rows of a column slice, cost their
// own elements and a twist for each 624 draws between them (a jump for millions); a range before
// the last one starts over. One thread at a time may use it; copies are independent.
class NormalElements {
 public:
  // Throws c10::ValueError where `numel` < 16: ATen draws such a tensor serially.
  NormalElements(const Stream& start, c10::ScalarType dtype, uint64_t numel, double mean,
                 double std);

  // Writes elements [begin, begin + count) to `out`. Throws c10::ValueError for a range outside,
  // and c10::NotImplementedError for a part where this torch draws parts differently (Path::whole).
  void read(uint64_t begin, uint64_t count, void* out);

 private:
  // Values of one block, kept because the next range may begin inside it.
  struct Block {
    uint64_t begin;
    alignas(64) unsigned char values[kNormalBlock * sizeof(double)];
  };

  // Makes `block` the next one of the stream, which is of elements from `begin`.
  void seek(uint64_t begin);
  const Block& block_at(uint64_t begin);
  const Block& tail_block();

  Stream start_;
  c10::ScalarType dtype_;
  uint64_t width_;  // bytes of an element
  uint64_t draws_;  // of an element
  uint64_t numel_;
  double mean_;
  double std_;
  NormalTail tail_;

  Stream stream_;
  uint64_t next_ = 0;  // element whose block `stream_` draws next; a multiple of 16
  std::optional<Block> last_;
  std::optional<Block> last_of_tail_;
};

}  // namespace dormant::random
