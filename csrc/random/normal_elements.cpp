#include "random/normal_elements.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>

#include "random/aten_kernels.h"
#include "random/exact_path.h"

namespace dormant::random {
namespace {

uint64_t draws_of(c10::ScalarType dtype) { return dtype == c10::ScalarType::Double ? 2 : 1; }

// Since torch 2.12 the 16-bit types draw block by block; before, they filled the whole tensor with
// uniform numbers first, as float32 and float64 do.
bool halves_draw_by_block() {
  static const bool by_block = [] {
    constexpr uint64_t kNumel = kNormalBlock + 1;
    c10::BFloat16 values[kNumel];
    at::mt19937_data_pod engine = at::mt19937(1).data();
    aten_normal(engine, c10::ScalarType::BFloat16, values, kNumel, 0.0, 1.0);
    return engine.next_ == 2 * kNormalBlock;
  }();
  return by_block;
}

}  // namespace

NormalTail normal_tail(c10::ScalarType dtype, uint64_t numel) {
  if (numel < kNormalBlock || numel % kNormalBlock == 0) {
    return {numel, numel * draws_of(dtype)};
  }
  const bool half = dtype == c10::ScalarType::BFloat16 || dtype == c10::ScalarType::Half;
  const uint64_t drawn = half && halves_draw_by_block() ? numel - numel % kNormalBlock : numel;
  return {numel - kNormalBlock, drawn * draws_of(dtype)};
}

uint64_t block_normal_draws(c10::ScalarType dtype, uint64_t numel) {
  const NormalTail tail = normal_tail(dtype, numel);
  return tail.draw + (numel - tail.begin) * draws_of(dtype);
}

NormalElements::NormalElements(const Stream& start, c10::ScalarType dtype, uint64_t numel,
                               double mean, double std)
    : start_(start),
      dtype_(dtype),
      width_(c10::elementSize(dtype)),
      draws_(draws_of(dtype)),
      numel_(numel),
      mean_(mean),
      std_(std),
      tail_(normal_tail(dtype, numel)),
      stream_(start) {
  TORCH_CHECK_VALUE(numel >= kNormalBlock, "elements of normal_: got a tensor of ", numel,
                    " elements; expected at least 16, since smaller ones are drawn serially. Run "
                    "normal_ itself on a generator at that place.");
}

void NormalElements::seek(uint64_t begin) {
  if (begin < next_) {
    stream_ = start_;
    next_ = 0;
  }
  stream_.skip((begin - next_) * draws_);
  next_ = begin;
}

const NormalElements::Block& NormalElements::block_at(uint64_t begin) {
  if (!last_ || last_->begin != begin) {
    seek(begin);
    last_.emplace();
    last_->begin = begin;
    block_normal(stream_, dtype_, last_->values, kNormalBlock, mean_, std_);
    next_ += kNormalBlock;
  }
  return *last_;
}

const NormalElements::Block& NormalElements::tail_block() {
  if (!last_of_tail_) {
    // From where the stream stands if that is before the tail's draws, which it is in order.
    const bool ahead = next_ * draws_ <= tail_.draw;
    Stream stream = ahead ? stream_ : start_;
    stream.skip(ahead ? tail_.draw - next_ * draws_ : tail_.draw);
    last_of_tail_.emplace();
    last_of_tail_->begin = tail_.begin;
    block_normal(stream, dtype_, last_of_tail_->values, kNormalBlock, mean_, std_);
  }
  return *last_of_tail_;
}

void NormalElements::read(uint64_t begin, uint64_t count, void* out) {
  TORCH_CHECK_VALUE(begin <= numel_ && count <= numel_ - begin, "elements of normal_: got ", count,
                    " from ", begin, "; expected a range inside the tensor's ", numel_);
  if (exact_path().normal.at(static_cast<size_t>(dtype_)) == Path::whole) {
    TORCH_CHECK_NOT_IMPLEMENTED(begin == 0 && count == numel_, "elements of normal_: got ", count,
                                " from ", begin, " of ", numel_, " ", dtype_,
                                "; expected the whole tensor, since this torch does not draw its "
                                "parts as we know. Run normal_ on the whole and slice it.");
    at::mt19937_data_pod engine = start_.engine();
    aten_normal(engine, dtype_, out, numel_, mean_, std_);
    return;
  }
  auto* to = static_cast<unsigned char*>(out);
  uint64_t at = begin;
  const auto copy_until = [&](uint64_t end, const Block& block) {
    std::memcpy(to, block.values + (at - block.begin) * width_, (end - at) * width_);
    to += (end - at) * width_;
    at = end;
  };

  const uint64_t end = begin + count;
  const uint64_t blocks_end = std::min(end, tail_.begin);
  if (at < blocks_end && at % kNormalBlock != 0) {
    const uint64_t head = at - at % kNormalBlock;
    copy_until(std::min(head + kNormalBlock, blocks_end), block_at(head));
  }
  if (at < blocks_end) {
    const uint64_t whole = (blocks_end - at) / kNormalBlock * kNormalBlock;
    if (whole > 0) {
      seek(at);
      block_normal(stream_, dtype_, to, whole, mean_, std_);
      next_ += whole;
      to += whole * width_;
      at += whole;
    }
  }
  if (at < blocks_end) {
    copy_until(blocks_end, block_at(at));
  }
  if (at < end) {
    copy_until(end, tail_block());
  }
}

}  // namespace dormant::random
