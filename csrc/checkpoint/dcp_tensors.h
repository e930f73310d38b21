// Tensors of torch.distributed.checkpoint, made of their parts.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "checkpoint/dcp.h"

namespace dormant::checkpoint {

/// Tensors that are the same parts of files are one, under several names.
class DistributedTensors {
 public:
  /// `where` is the file that says so, printable. c10::ValueError where the bytes cannot be
  /// counted, and as from Partition.
  DistributedTensor add(const std::string& where, std::string name, c10::ScalarType dtype,
                        std::vector<int64_t> sizes, std::vector<Piece> pieces,
                        const std::shared_ptr<const PieceLocator>& locator);

 private:
  using Part =
      std::tuple<const File*, uint64_t, uint64_t, std::vector<int64_t>, std::vector<int64_t>>;
  using Key = std::tuple<c10::ScalarType, std::vector<int64_t>, std::vector<Part>>;

  std::map<Key, DistributedTensor> known_;
};

}  // namespace dormant::checkpoint
