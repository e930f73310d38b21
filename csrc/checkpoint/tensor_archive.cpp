#include "checkpoint/tensor_archive.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <string>
#include <vector>

#include "checkpoint/file_part.h"
#include "checkpoint/torch_archive.h"

namespace dormant::checkpoint {
namespace {

constexpr const char* kContradiction =
    "Cause: .metadata and the file belong to different checkpoints, or are damaged. Next: get them "
    "again.";

}  // namespace

PiecePlace TensorArchives::locate(const Piece& piece, c10::ScalarType dtype,
                                  const std::string& what) const {
  const FilePart part(piece.file, piece.offset, piece.length);
  const auto where =
      what + ", in " + piece.file->name() + " at byte " + std::to_string(piece.offset);
  std::string first(std::min<uint64_t>(piece.length, 512), '\0');
  part.read(0, first.size(), first.data());
  TORCH_CHECK_VALUE(is_torch_file(first), "open_checkpoint: ", where,
                    ", is not a file of torch.save. ", kContradiction);
  const auto archive = read_torch_archive(part);
  TORCH_CHECK_NOT_IMPLEMENTED(
      archive->objects.is_tensor(archive->pickle.root()), "open_checkpoint: ", where, ", is ",
      archive->pickle.describe(archive->pickle.root()),
      ", expected a strided tensor. Next: load it with torch.distributed.checkpoint.");
  const auto tensor = archive->objects.tensor(archive->pickle.root(), where);
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < piece.box.begin.size(); ++i) {
    sizes.push_back(piece.box.end[i] - piece.box.begin[i]);
  }
  TORCH_CHECK_VALUE(tensor.dtype == dtype && tensor.sizes == sizes, "open_checkpoint: ", where,
                    ": got a tensor of ", tensor.dtype, " and sizes ",
                    c10::IntArrayRef(tensor.sizes), ", expected ", dtype, " and ",
                    c10::IntArrayRef(sizes), ". ", kContradiction);
  TORCH_CHECK_NOT_IMPLEMENTED(!tensor.conjugated && !tensor.negated, "open_checkpoint: ", where,
                              ", is stored as a conjugated or negated view, expected its values. "
                              "Next: load it with torch.distributed.checkpoint.");
  const auto& run = archive->storages.at(tensor.storage);
  const auto begin = static_cast<uint64_t>(tensor.offset) * c10::elementSize(dtype);
  return {piece.offset + run.offset + begin, tensor.strides};
}

}  // namespace dormant::checkpoint
