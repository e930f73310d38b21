// The bytes of a tensor that lies in pieces in several files, as if they lay in one.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/partition.h"
#include "record/source.h"
#include "system/mutex.h"

namespace dormant::checkpoint {

/// Where the elements of a piece lie in its file.
struct PiecePlace {
  uint64_t offset = 0;           ///< of the first one, in bytes
  std::vector<int64_t> strides;  ///< in elements, not negative
};

/// Some of a tensor's elements.
struct Piece {
  Box box;  ///< where they belong in the tensor
  std::shared_ptr<const File> file;
  uint64_t offset = 0;  ///< of the bytes that hold them, and perhaps say how they lie
  uint64_t length = 0;
};

/// Says where elements lie, for pieces of which only the files themselves tell.
class PieceLocator {
 public:
  PieceLocator() = default;
  virtual ~PieceLocator() = default;
  PieceLocator(const PieceLocator&) = delete;
  PieceLocator& operator=(const PieceLocator&) = delete;

  /// Looks into the file. c10::ValueError where it contradicts the dtype or the box; what it says
  /// has been compared with the size of the file. `what` names the piece in messages.
  virtual PiecePlace locate(const Piece& piece, c10::ScalarType dtype,
                            const std::string& what) const = 0;
};

/// A contiguous tensor's bytes. Each read looks up the pieces that it needs; where their elements
/// lie in the files is found out before the first read, for all of them, so that opening a
/// checkpoint of many thousands costs nothing for those that nobody wants. Any number of threads.
///
/// Bytes are numbered from `base()` on, where the first piece lies in its file, whose name is that
/// of the source. So who sorts reads by name and offset, as the tile engine does, sorts by files.
class Pieces final : public record::Source {
 public:
  /// `what` is the tensor in messages, `name` that of the source where it has no elements.
  /// c10::ValueError and c10::NotImplementedError as from Partition.
  Pieces(std::string name, std::string what, c10::ScalarType dtype, std::vector<int64_t> sizes,
         std::vector<Piece> pieces, std::shared_ptr<const PieceLocator> locator);

  uint64_t base() const noexcept { return base_; }
  void read(uint64_t offset, size_t count, void* out) const override;
  /// Where the tensor is one piece.
  c10::DataPtr map(uint64_t offset, size_t count, record::Guard guard) const override;
  /// Also that what the files say fits.
  void check() const override;
  void will_read(uint64_t offset, size_t count) const override;
  size_t preferred_read_bytes() const override;
  const std::string& name() const override { return name_; }

  const std::vector<Piece>& pieces() const noexcept { return pieces_; }

 private:
  using Places = std::vector<PiecePlace>;

  /// As `read`, of bytes counted from the first element.
  void read_elements(uint64_t offset, size_t count, std::byte* out) const;
  /// Where the pieces lie: found out once, without a lock, since reading may take long.
  std::shared_ptr<const Places> places() const;
  std::shared_ptr<const Places> known_places() const;
  /// Elements [begin, end) as boxes: calls `visit(number, box, part, first)` with each piece that
  /// has some of a box, which part of the box, and the element of the range that the box begins at.
  template <typename Visit>
  void for_each(int64_t begin, int64_t end, const Visit& visit) const;

  std::string name_;
  const std::string what_;
  const c10::ScalarType dtype_;
  const int64_t itemsize_;
  const std::vector<int64_t> sizes_;
  std::vector<int64_t> blocks_;  ///< elements of one index of each dimension
  const std::vector<Piece> pieces_;
  const Partition partition_;
  const std::shared_ptr<const PieceLocator> locator_;
  uint64_t base_ = 0;
  mutable system::Mutex mutex_;
  mutable std::shared_ptr<const Places> places_ DORMANT_GUARDED_BY(mutex_);
};

}  // namespace dormant::checkpoint
