#include "random/stream.h"

#include <c10/util/Exception.h>

#include <cstring>

#include "random/aten_kernels.h"
#include "random/exact_path.h"
#include "random/mt19937.h"
#include "random/typed_kernels.h"

namespace dormant::random {
namespace {

// Twisting costs about 0.1 ns a draw, a jump 100 to 350 microseconds however far.
constexpr uint64_t kJumpDraws = uint64_t{1} << 21;

// Elements that one Box-Muller block makes.
constexpr uint64_t kBlock = 16;

Path path_of(const std::vector<Path>& paths, c10::ScalarType dtype) {
  return paths.at(static_cast<size_t>(dtype));
}

// Runs an ATen operator on the stream's engine.
template <class Operate>
void with_engine(Stream& stream, Operate&& operate) {
  at::mt19937_data_pod engine = stream.engine();
  operate(engine);
  stream = Stream(engine);
}

}  // namespace

Stream::Stream(const at::mt19937_data_pod& engine)
    : seed_(engine.seed_), fresh_(engine.next_ == 0) {
  constexpr int kWords = EngineBlock::kWords;
  const bool positioned = engine.left_ >= 1 && engine.left_ <= kWords &&
                          engine.next_ == static_cast<uint32_t>(kWords + 1 - engine.left_);
  TORCH_CHECK_VALUE(
      engine.seeded_ && (positioned || (fresh_ && engine.left_ == 1)),
      "random stream: got an engine with ", engine.left_, " draws left and next word ",
      engine.next_, (engine.seeded_ ? "" : ", not seeded"),
      "; expected left + next = 625, or 1 and 0 after seeding. The state was changed by other "
      "means than "
      "drawing, or the file it was read from is damaged: take it from a generator again.");
  std::memcpy(block_.words, engine.state_.data(), sizeof engine.state_);
  std::memset(block_.words + kWords, 0, sizeof block_.words - sizeof engine.state_);
  block_.used = static_cast<uint32_t>(kWords + 1 - engine.left_);
}

at::mt19937_data_pod Stream::engine() const {
  at::mt19937_data_pod engine;
  engine.seed_ = seed_;
  engine.seeded_ = true;
  engine.left_ = static_cast<int>(EngineBlock::kWords + 1 - block_.used);
  engine.next_ = fresh_ ? 0 : block_.used;
  std::memcpy(engine.state_.data(), block_.words, sizeof engine.state_);
  return engine;
}

void Stream::skip(uint64_t draws) {
  if (draws == 0) {
    return;
  }
  if (draws >= kJumpDraws) {
    with_engine(*this, [&](at::mt19937_data_pod& engine) { advance(engine, draws); });
    return;
  }
  fresh_ = false;
  const uint64_t left = EngineBlock::kWords - block_.used;
  if (draws <= left) {
    block_.used += static_cast<uint32_t>(draws);
    return;
  }
  const uint64_t twists = (draws - left + EngineBlock::kWords - 1) / EngineBlock::kWords;
  stream_kernels().twist(block_, twists);
  block_.used = static_cast<uint32_t>(draws - left - (twists - 1) * EngineBlock::kWords);
}

void uniform(Stream& stream, c10::ScalarType dtype, void* out, size_t n, double from, double to) {
  if (n == 0) {
    return;
  }
  const ExactPath& path = exact_path();
  if (path_of(path.uniform, dtype) == Path::kernel) {
    kernel_uniform(*path.kernels, stream.block(), dtype, out, n, from, to);
  } else {
    with_engine(stream, [&](at::mt19937_data_pod& engine) {
      aten_uniform(engine, dtype, out, n, from, to);
    });
  }
}

void bernoulli(Stream& stream, c10::ScalarType dtype, void* out, size_t n, double p) {
  if (n == 0) {
    return;
  }
  const ExactPath& path = exact_path();
  if (path_of(path.bernoulli, dtype) == Path::kernel) {
    kernel_bernoulli(*path.kernels, stream.block(), dtype, out, n, p);
  } else {
    with_engine(stream,
                [&](at::mt19937_data_pod& engine) { aten_bernoulli(engine, dtype, out, n, p); });
  }
}

void block_normal(Stream& stream, c10::ScalarType dtype, void* out, size_t n, double mean,
                  double std) {
  TORCH_CHECK_VALUE(
      n % kBlock == 0, "block_normal: got ", n,
      " elements; expected a multiple of 16, the block that normal_ draws at once. Use "
      "NormalElements for other ranges.");
  if (n == 0) {
    return;
  }
  const ExactPath& path = exact_path();
  if (path_of(path.normal, dtype) == Path::kernel) {
    kernel_block_normal(*path.kernels, stream.block(), dtype, out, n, mean, std);
  } else {
    with_engine(stream, [&](at::mt19937_data_pod& engine) {
      aten_normal(engine, dtype, out, n, mean, std);
    });
  }
}

}  // namespace dormant::random
