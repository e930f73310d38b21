#include "checkpoint/pieces.h"

#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

namespace dormant::checkpoint {
namespace {

// Elements that lie apart in the file are read with what is between them, up to so many bytes at a
// time and so many for one that is wanted: that costs less than another call of the system.
constexpr int64_t kMostAtOnce = 256 * 1024;
constexpr int64_t kMostReadPerElement = 4;
// Rows of so many bytes are read straight to where they belong.
constexpr int64_t kLongRow = 16 * 1024;

struct Dimension {
  int64_t size;
  int64_t stride;      ///< in the file
  int64_t out_stride;  ///< where they belong
};
using Dimensions = c10::SmallVector<Dimension, 6>;

/// Outermost in the file first; those that follow each other in both places are one.
Dimensions merged(Dimensions dimensions) {
  std::stable_sort(dimensions.begin(), dimensions.end(),
                   [](const Dimension& a, const Dimension& b) { return a.stride > b.stride; });
  Dimensions found;
  for (const auto& inner : dimensions) {
    if (!found.empty() && found.back().stride == inner.stride * inner.size &&
        found.back().out_stride == inner.out_stride * inner.size) {
      found.back() = {found.back().size * inner.size, inner.stride, inner.out_stride};
    } else {
      found.push_back(inner);
    }
  }
  return found;
}

void copy_element(const std::byte* from, std::byte* to, int64_t itemsize) {
  switch (itemsize) {
    case 1:
      std::memcpy(to, from, 1);
      break;
    case 2:
      std::memcpy(to, from, 2);
      break;
    case 4:
      std::memcpy(to, from, 4);
      break;
    case 8:
      std::memcpy(to, from, 8);
      break;
    default:
      std::memcpy(to, from, static_cast<size_t>(itemsize));
  }
}

/// Puts elements that are in memory as in the file where they belong.
void spread(const std::byte* from, c10::ArrayRef<Dimension> dimensions, std::byte* out,
            int64_t itemsize) {
  if (dimensions.empty()) {
    copy_element(from, out, itemsize);
    return;
  }
  const auto& [size, stride, out_stride] = dimensions.front();
  if (dimensions.size() == 1) {
    if (stride == 1 && out_stride == 1) {
      std::memcpy(out, from, static_cast<size_t>(size * itemsize));
      return;
    }
    for (int64_t i = 0; i < size; ++i) {
      copy_element(from + i * stride * itemsize, out + i * out_stride * itemsize, itemsize);
    }
    return;
  }
  for (int64_t i = 0; i < size; ++i) {
    spread(from + i * stride * itemsize, dimensions.slice(1), out + i * out_stride * itemsize,
           itemsize);
  }
}

/// Reads elements of one piece.
class PieceReader {
 public:
  PieceReader(const File& file, int64_t itemsize)
      : file_(file),
        itemsize_(itemsize),
        most_at_once_(std::max(kMostAtOnce, static_cast<int64_t>(file.preferred_read_bytes()))) {}

  /// `offset` is that of the first element in the file.
  void read(uint64_t offset, c10::ArrayRef<Dimension> dimensions, std::byte* out) {
    if (dimensions.empty()) {
      file_.read(offset, static_cast<size_t>(itemsize_), out);
      return;
    }
    const auto& [size, stride, out_stride] = dimensions.front();
    if (dimensions.size() == 1 && stride == 1 && out_stride == 1) {
      file_.read(offset, static_cast<size_t>(size * itemsize_), out);
      return;
    }
    const auto inner = dimensions.slice(1);
    int64_t span = 1;
    int64_t wanted = 1;
    for (const auto& dimension : inner) {
      span += (dimension.size - 1) * dimension.stride;
      wanted *= dimension.size;
    }
    const bool long_rows = inner.size() == 1 && inner[0].stride == 1 && inner[0].out_stride == 1 &&
                           inner[0].size * itemsize_ >= kLongRow;
    const auto rows = rows_at_once(size, stride, span, wanted);
    for (int64_t i = 0; i < size;) {
      const auto count = long_rows ? 1 : std::min(rows, size - i);
      const auto at = offset + static_cast<uint64_t>(i * stride * itemsize_);
      auto* to = out + i * out_stride * itemsize_;
      if (count == 1) {
        read(at, inner, to);
      } else {
        const auto nbytes = static_cast<size_t>((span + (count - 1) * stride) * itemsize_);
        buffer_.resize(std::max(buffer_.size(), nbytes));
        file_.read(at, nbytes, buffer_.data());
        Dimensions some(dimensions.begin(), dimensions.end());
        some.front().size = count;
        spread(buffer_.data(), some, to, itemsize_);
      }
      i += count;
    }
  }

 private:
  /// How many indices of the outermost dimension are read together.
  int64_t rows_at_once(int64_t size, int64_t stride, int64_t span, int64_t wanted) const {
    const auto room = most_at_once_ / itemsize_ - span;
    auto rows = std::clamp<int64_t>(stride > 0 ? room / stride + 1 : 1, 1, size);
    if (room < 0 || span + (rows - 1) * stride > kMostReadPerElement * wanted * rows) {
      rows = 1;
    }
    return rows;
  }

  const File& file_;
  const int64_t itemsize_;
  const int64_t most_at_once_;
  std::vector<std::byte> buffer_;
};

std::vector<Box> boxes_of(const std::vector<Piece>& pieces) {
  std::vector<Box> boxes;
  boxes.reserve(pieces.size());
  for (const auto& piece : pieces) {
    boxes.push_back(piece.box);
  }
  return boxes;
}

}  // namespace

Pieces::Pieces(std::string name, std::string what, c10::ScalarType dtype,
               std::vector<int64_t> sizes, std::vector<Piece> pieces,
               std::shared_ptr<const PieceLocator> locator)
    : name_(std::move(name)),
      what_(std::move(what)),
      dtype_(dtype),
      itemsize_(static_cast<int64_t>(c10::elementSize(dtype))),
      sizes_(std::move(sizes)),
      blocks_(sizes_.size(), 1),
      pieces_(std::move(pieces)),
      partition_(sizes_, boxes_of(pieces_), what_),
      locator_(std::move(locator)) {
  for (auto i = sizes_.size(); i-- > 1;) {
    blocks_[i - 1] = blocks_[i] * sizes_[i];
  }
  // That with the first elements.
  const Piece* first = nullptr;
  for (const auto& piece : pieces_) {
    if (!piece.box.empty() && (first == nullptr || piece.box.begin < first->box.begin)) {
      first = &piece;
    }
  }
  if (first != nullptr) {
    name_ = first->file->name();
    base_ = first->offset;
  }
}

std::shared_ptr<const Pieces::Places> Pieces::known_places() const {
  const system::MutexLock lock(mutex_);
  return places_;
}

std::shared_ptr<const Pieces::Places> Pieces::places() const {
  if (auto known = known_places()) {
    return known;
  }
  auto found = std::make_shared<Places>(pieces_.size());
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (!pieces_[i].box.empty()) {
      (*found)[i] =
          locator_->locate(pieces_[i], dtype_, what_ + ", elements " + text_of(pieces_[i].box));
    }
  }
  const system::MutexLock lock(mutex_);
  places_ = found;
  return found;
}

template <typename Visit>
void Pieces::for_each(int64_t begin, int64_t end, const Visit& visit) const {
  const auto rank = sizes_.size();
  const auto first = begin;
  while (begin < end) {
    // The outermost dimension of which whole indices begin here.
    size_t outer = 0;
    while (outer + 1 < rank && (begin % blocks_[outer] != 0 || end - begin < blocks_[outer])) {
      ++outer;
    }
    Box box{std::vector<int64_t>(rank), sizes_};
    for (size_t i = 0; i <= outer && i < rank; ++i) {
      box.begin[i] = begin / blocks_[i] % sizes_[i];
      box.end[i] = box.begin[i] + 1;
    }
    int64_t count = 1;
    if (rank > 0) {
      const auto size = std::min((end - begin) / blocks_[outer], sizes_[outer] - box.begin[outer]);
      box.end[outer] = box.begin[outer] + size;
      count = size * blocks_[outer];
    }
    partition_.find(box, [&](size_t number) {
      const auto& piece = pieces_[number].box;
      auto part = box;
      for (size_t i = 0; i < rank; ++i) {
        part.begin[i] = std::max(part.begin[i], piece.begin[i]);
        part.end[i] = std::min(part.end[i], piece.end[i]);
      }
      visit(number, box, part, begin - first);
    });
    begin += count;
  }
}

void Pieces::read(uint64_t offset, size_t count, void* out) const {
  read_elements(offset - base_, count, static_cast<std::byte*>(out));
}

void Pieces::read_elements(uint64_t offset, size_t count, std::byte* out) const {
  const auto itemsize = static_cast<uint64_t>(itemsize_);
  if (offset % itemsize != 0 || count % itemsize != 0) {
    // Bytes of elements that are not wanted as a whole.
    const auto first = offset / itemsize * itemsize;
    const auto last = (offset + count + itemsize - 1) / itemsize * itemsize;
    std::vector<std::byte> elements(last - first);
    read_elements(first, elements.size(), elements.data());
    std::memcpy(out, elements.data() + (offset - first), count);
    return;
  }
  const auto places = this->places();
  const auto begin = static_cast<int64_t>(offset / itemsize);
  const auto end = begin + static_cast<int64_t>(count / itemsize);
  for_each(begin, end, [&](size_t number, const Box& box, const Box& part, int64_t first) {
    const auto& piece = pieces_[number];
    const auto& place = (*places)[number];
    Dimensions dimensions;
    auto to = first;
    int64_t from = 0;
    for (size_t i = 0; i < sizes_.size(); ++i) {
      from += (part.begin[i] - piece.box.begin[i]) * place.strides[i];
      to += (part.begin[i] - box.begin[i]) * blocks_[i];
      if (const auto size = part.end[i] - part.begin[i]; size > 1) {
        dimensions.push_back({size, place.strides[i], blocks_[i]});
      }
    }
    PieceReader(*piece.file, itemsize_)
        .read(place.offset + static_cast<uint64_t>(from * itemsize_), merged(dimensions),
              out + to * itemsize_);
  });
}

size_t Pieces::preferred_read_bytes() const {
  size_t most = 0;
  for (const auto& piece : pieces_) {
    most = std::max(most, piece.file->preferred_read_bytes());
  }
  return most;
}

c10::DataPtr Pieces::map(uint64_t offset, size_t count, record::Guard guard) const {
  const Piece* only = nullptr;
  for (const auto& piece : pieces_) {
    if (!piece.box.empty()) {
      if (only != nullptr) {
        return {};
      }
      only = &piece;
    }
  }
  if (only == nullptr) {
    return {};
  }
  const auto places = this->places();
  const auto& place = (*places)[static_cast<size_t>(only - pieces_.data())];
  for (size_t i = 0; i < sizes_.size(); ++i) {
    if (sizes_[i] > 1 && place.strides[i] != blocks_[i]) {
      return {};
    }
  }
  if (place.offset % static_cast<uint64_t>(itemsize_) != 0) {
    return {};
  }
  return only->file->map(place.offset + (offset - base_), count, guard);
}

void Pieces::check() const {
  std::set<const File*> files;
  for (const auto& piece : pieces_) {
    if (!piece.box.empty() && files.insert(piece.file.get()).second) {
      piece.file->check();
    }
  }
  places();
}

void Pieces::will_read(uint64_t offset, size_t count) const {
  constexpr int kMost = 1024;  // hints are for what comes soon
  const auto places = known_places();
  const auto begin = static_cast<int64_t>(offset - base_) / itemsize_;
  const auto end = begin + static_cast<int64_t>(count) / itemsize_;
  int told = 0;
  for_each(begin, end, [&](size_t number, const Box&, const Box& part, int64_t) {
    if (told++ >= kMost) {
      return;
    }
    const auto& piece = pieces_[number];
    auto first = piece.offset;
    auto last = piece.offset + piece.length;
    if (places) {
      const auto& place = (*places)[number];
      first = last = place.offset;
      for (size_t i = 0; i < sizes_.size(); ++i) {
        // Strides of what has one index may be any number.
        const auto before = part.begin[i] - piece.box.begin[i];
        const auto until = part.end[i] - 1 - piece.box.begin[i];
        first += static_cast<uint64_t>(before * place.strides[i] * itemsize_);
        last += static_cast<uint64_t>(until * place.strides[i] * itemsize_);
      }
      last += static_cast<uint64_t>(itemsize_);
    }
    piece.file->will_read(first, last - first);
  });
}

}  // namespace dormant::checkpoint
