// Archives of torch.save with one tensor, as torch.distributed.checkpoint writes one for each
// piece.
#pragma once

#include <string>

#include "checkpoint/pieces.h"

namespace dormant::checkpoint {

class TensorArchives final : public PieceLocator {
 public:
  /// c10::NotImplementedError where the archive holds anything but a strided tensor.
  PiecePlace locate(const Piece& piece, c10::ScalarType dtype,
                    const std::string& what) const override;
};

}  // namespace dormant::checkpoint
