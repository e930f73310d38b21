#include "checkpoint/dcp_tensors.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

constexpr const char* kDamaged = "Cause: the file is damaged. Next: get it again.";

}  // namespace

DistributedTensor DistributedTensors::add(const std::string& where, std::string name,
                                          c10::ScalarType dtype, std::vector<int64_t> sizes,
                                          std::vector<Piece> pieces,
                                          const std::shared_ptr<const PieceLocator>& locator) {
  // The strides of a tensor without elements count its other sizes, so these must not overflow.
  uint64_t extent = c10::elementSize(dtype);
  bool empty = false;
  for (const auto size : sizes) {
    empty = empty || size == 0;
    const auto factor = static_cast<uint64_t>(std::max<int64_t>(size, 1));
    TORCH_CHECK_VALUE(
        !__builtin_mul_overflow(extent, factor, &extent) && extent <= uint64_t{1} << 62,
        "open_checkpoint: ", where, ": tensor ", text::in_quotes(name), " has sizes ",
        c10::IntArrayRef(sizes), " of ", dtype, ", whose number of bytes overflows. ", kDamaged);
  }
  const uint64_t nbytes = empty ? 0 : extent;
  for (const auto& piece : pieces) {
    uint64_t needed = c10::elementSize(dtype);  // at most nbytes
    for (size_t i = 0; i < sizes.size(); ++i) {
      needed *= static_cast<uint64_t>(piece.box.end[i] - piece.box.begin[i]);
    }
    TORCH_CHECK_VALUE(needed <= piece.length, "open_checkpoint: ", where, ": tensor ",
                      text::in_quotes(name), " has elements ", text_of(piece.box), " in ",
                      piece.length, " bytes at byte ", piece.offset, " of ", piece.file->name(),
                      ", expected at least ", needed, ". ", kDamaged);
  }
  std::vector<Part> parts;
  for (const auto& piece : pieces) {
    parts.emplace_back(piece.file.get(), piece.offset, piece.length, piece.box.begin,
                       piece.box.end);
  }
  Key key{dtype, sizes, std::move(parts)};
  if (const auto found = known_.find(key); found != known_.end()) {
    auto same = found->second;
    same.name = std::move(name);
    return same;
  }
  const auto what = where + ": tensor " + text::in_quotes(name);
  auto source =
      std::make_shared<const Pieces>(where, what, dtype, sizes, std::move(pieces), locator);
  auto storage = std::make_shared<FileStorage>(source, dtype, source->base(), nbytes);
  DistributedTensor tensor{std::move(name),   dtype, std::move(sizes), nbytes, std::move(source),
                           std::move(storage)};
  known_.emplace(std::move(key), tensor);
  return tensor;
}

}  // namespace dormant::checkpoint
