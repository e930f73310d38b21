#include "decode/packed_integers.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "decode/integer_parts.h"
#include "simd/kernels.h"

namespace dormant::decode {

using record::ElementRun;
using record::Geometry;

namespace {

constexpr int64_t kStrip = 4096;  // columns that are decoded at a time

std::vector<int64_t> with_matrix(std::vector<int64_t> sizes, int64_t rows, int64_t columns) {
  sizes[sizes.size() - 2] = rows;
  sizes.back() = columns;
  return sizes;
}

/// The checks that everything else rests on.
PackedIntegers::Layout checked(PackedIntegers::Layout layout) {
  const auto& sizes = layout.sizes;
  if (sizes.size() < 2) {
    refuse("a weight of " + std::to_string(sizes.size()) +
           " dimensions; expected 2, or more of stacked matrices");
  }
  check_dimensions("weight", Geometry::contiguous(sizes, c10::ScalarType::Char), sizes.size());
  if (layout.bits < 1 || layout.bits > 8) {
    refuse("integers of " + std::to_string(layout.bits) + " bits; expected 1 to 8");
  }
  const auto group = layout.group_size;
  if (group < 0 || (group > 0 && sizes.back() % group != 0)) {
    refuse("groups of " + std::to_string(group) + " columns; expected a number that divides the " +
           std::to_string(sizes.back()) + " columns of the weight");
  }
  return layout;
}

}  // namespace

/// Which elements of the parts a range of the result is made of: some of one row, or whole rows.
struct PackedIntegers::Box {
  int64_t row;  ///< of all matrices
  int64_t end_row;
  int64_t column;
  int64_t end_column;
  int64_t group;  ///< the first of each row
  int64_t groups;
};

PackedIntegers::PackedIntegers(Layout layout)
    : layout_(checked(std::move(layout))),
      columns_(layout_.sizes.back()),
      rows_(layout_.sizes[layout_.sizes.size() - 2]),
      group_(layout_.group_size == 0 || layout_.one_scale ? columns_ : layout_.group_size),
      groups_(columns_ / group_),
      format_(scale_format("weight_scale", layout_.scale.dtype)) {
  output().nbytes_needed();  // refuses what overflows
  const auto& sizes = layout_.sizes;
  const auto bits = layout_.bits;
  const auto why = "the weight has " + std::to_string(rows_) + " rows and " +
                   std::to_string(columns_) + " columns of " + std::to_string(bits) + " bits";
  check_dtype("weight_packed", layout_.packed, c10::ScalarType::Int);
  check_sizes("weight_packed", layout_.packed, with_matrix(sizes, rows_, words_of(columns_, bits)),
              why);
  if (!layout_.one_scale) {
    check_sizes("weight_scale", layout_.scale, with_matrix(sizes, rows_, groups_),
                why + ", in groups of " + std::to_string(group_) + " columns");
  } else if (layout_.scale.numel() != 1) {
    refuse("weight_scale has " + std::to_string(layout_.scale.numel()) +
           " elements; expected one for the whole tensor");
  }
  if (packed_zeros() && !layout_.one_scale) {
    check_sizes("weight_zero_point", *layout_.zero,
                with_matrix(sizes, words_of(rows_, bits), groups_),
                why + ", in groups of " + std::to_string(group_) + " columns");
  } else if (layout_.zero) {
    check_dtype("weight_zero_point", *layout_.zero, c10::ScalarType::Char);
    check_sizes("weight_zero_point", *layout_.zero, layout_.scale.sizes, "weight_scale has it");
  }
  if (layout_.g_idx) {
    check_dtype("weight_g_idx", *layout_.g_idx, c10::ScalarType::Int);
    check_sizes("weight_g_idx", *layout_.g_idx, {columns_}, why);
    if (layout_.one_scale) {
      refuse("weight_g_idx beside one scale; expected groups of columns");
    }
  }
  if (layout_.shape) {
    check_dtype("weight_shape", *layout_.shape, c10::ScalarType::Long);
    check_sizes("weight_shape", *layout_.shape, {static_cast<int64_t>(sizes.size())},
                "the weight has that many dimensions");
  }
}

Geometry PackedIntegers::output() const {
  return Geometry::contiguous(layout_.sizes, layout_.scale.dtype);
}

std::vector<Geometry> PackedIntegers::parts() const {
  std::vector<Geometry> parts;
  for (const auto* part : {&layout_.shape, &layout_.g_idx}) {
    if (*part) {
      parts.push_back(**part);
    }
  }
  parts.push_back(layout_.packed);
  parts.push_back(layout_.scale);
  if (layout_.zero) {
    parts.push_back(*layout_.zero);
  }
  return parts;
}

std::string PackedIntegers::name() const {
  return "packed integers, " + std::to_string(layout_.bits) + " bits, " +
         (layout_.one_scale ? "one scale"
          : groups_ == 1    ? "channels"
                            : "groups of " + std::to_string(group_)) +
         (layout_.g_idx ? ", g_idx" : "");
}

PackedIntegers::Box PackedIntegers::box_of(int64_t begin, int64_t count) const {
  Box box{begin / columns_, (begin + count - 1) / columns_ + 1, 0, columns_, 0, groups_};
  if (box.end_row - box.row == 1) {
    box.column = begin % columns_;
    box.end_column = box.column + count;
    if (!layout_.g_idx) {
      box.group = box.column / group_;
      box.groups = (box.end_column - 1) / group_ + 1 - box.group;
    }
  }
  return box;
}

/// The first bit of the packed zeros of a row, in a column of their words.
int64_t PackedIntegers::zero_bit(int64_t row) const {
  return row / rows_ * words_of(rows_, layout_.bits) * 32 + row % rows_ * layout_.bits;
}

void PackedIntegers::check_shape(const void* values) const {
  for (size_t i = 0; i < layout_.sizes.size(); ++i) {
    int64_t size = 0;
    std::memcpy(&size, static_cast<const std::byte*>(values) + i * sizeof size, sizeof size);
    if (size != layout_.sizes[i]) {
      refuse_value(layout_.module, "weight_shape[" + std::to_string(i) + "] is " +
                                       std::to_string(size) + "; expected " +
                                       std::to_string(layout_.sizes[i]) +
                                       " from the shapes of weight_packed and weight_scale");
    }
  }
}

/// `g_idx` is all of it.
int64_t PackedIntegers::group_of(int64_t column, const void* g_idx) const {
  int32_t group = 0;
  std::memcpy(&group, static_cast<const std::byte*>(g_idx) + column * sizeof group, sizeof group);
  if (group < 0 || group >= groups_) {
    refuse_value(layout_.module, "weight_g_idx[" + std::to_string(column) + "] is " +
                                     std::to_string(group) + "; expected a group from 0 to " +
                                     std::to_string(groups_ - 1));
  }
  return group;
}

void PackedIntegers::wanted(size_t part, int64_t begin, int64_t count,
                            c10::ArrayRef<const void*> /*earlier*/,
                            std::vector<ElementRun>& runs) const {
  for (const auto* whole : {&layout_.shape, &layout_.g_idx}) {
    if (*whole && part-- == 0) {
      runs.push_back({0, (*whole)->numel()});
      return;
    }
  }
  const auto box = box_of(begin, count);
  if (part == 0) {
    const auto words = words_with(box.column, box.end_column, layout_.bits);
    runs.push_back({box.row * words_of(columns_, layout_.bits) + words.begin,
                    (box.end_row - box.row) * words.count});
    return;
  }
  if (layout_.one_scale) {
    runs.push_back({0, 1});
    return;
  }
  auto first = box.row;
  auto last = box.end_row - 1;
  if (part == 2 && packed_zeros()) {  // those of one row may lie in two words
    first = zero_bit(first) / 32;
    last = (zero_bit(last) + layout_.bits - 1) / 32;
  }
  for (auto row = first; row <= last; ++row) {
    append_run(row * groups_ + box.group, box.groups, runs);
  }
}

/// Zeros, then scales, of the groups of a row that are wanted.
void PackedIntegers::scales_of_row(const IntegerKernels& kernels, const Box& box, int64_t row,
                                   const void* scales, const void* zeros,
                                   std::vector<float>& numbers) const {
  const auto n = box.groups;
  const auto first = layout_.one_scale ? 0 : (row - box.row) * n;
  numbers.resize(static_cast<size_t>(2 * n));
  kernels.widen(format_,
                static_cast<const std::byte*>(scales) +
                    first * static_cast<int64_t>(c10::elementSize(layout_.scale.dtype)),
                static_cast<size_t>(n), numbers.data() + n);
  const auto bits = layout_.bits;
  // Codes are above the lowest of the signed numbers, and so are packed zeros.
  const auto lowest = int64_t{1} << (bits - 1);
  if (!layout_.zero) {
    std::fill_n(numbers.begin(), n, static_cast<float>(lowest));
  } else if (!packed_zeros()) {
    const auto* bytes = static_cast<const int8_t*>(zeros) + first;
    std::transform(bytes, bytes + n, numbers.begin(),
                   [&](int8_t zero) { return static_cast<float>(lowest + zero); });
  } else {
    const auto bit = zero_bit(row) - zero_bit(box.row) / 32 * 32;
    const auto* words = static_cast<const std::byte*>(zeros) + bit / 32 * n * 4;
    const bool in_two_words = bit % 32 + bits > 32;
    for (int64_t i = 0; i < n; ++i) {
      uint32_t low = 0;
      uint32_t high = 0;
      std::memcpy(&low, words + i * 4, sizeof low);
      if (in_two_words) {
        std::memcpy(&high, words + (n + i) * 4, sizeof high);
      }
      const auto both = uint64_t{high} << 32 | low;
      numbers[static_cast<size_t>(i)] =
          static_cast<float>(both >> (bit % 32) & ((uint64_t{1} << bits) - 1));
    }
  }
}

void PackedIntegers::run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
                         void* out) const {
  if (layout_.shape) {
    check_shape(parts[0]);
    parts = parts.slice(1);
  }
  const void* g_idx = nullptr;
  if (layout_.g_idx) {
    const auto* all = static_cast<const int32_t*>(parts[0]);
    g_idx = std::find(all, all + columns_, -1) == all + columns_ ? parts[0] : nullptr;
    parts = parts.slice(1);
  }
  const auto& kernels = simd::kernels<IntegerKernels>();
  const auto box = box_of(begin, count);
  const auto bits = layout_.bits;
  const auto of_box = words_with(box.column, box.end_column, bits);
  const auto* codes = static_cast<const uint8_t*>(parts[0]);
  auto* numbers = static_cast<std::byte*>(out);
  const auto itemsize = static_cast<int64_t>(c10::elementSize(layout_.scale.dtype));

  std::vector<float> of_row;
  alignas(64) std::array<uint8_t, kStrip> strip;
  alignas(64) std::array<float, kStrip> strip_zeros;
  alignas(64) std::array<float, kStrip> strip_scales;
  for (auto row = box.row; row < box.end_row; ++row) {
    scales_of_row(kernels, box, row, parts[1], layout_.zero ? parts[2] : nullptr, of_row);
    const auto* zeros = of_row.data();
    const auto* scales = of_row.data() + box.groups;
    const auto end = std::min(begin + count - row * columns_, columns_);
    for (auto column = std::max(begin - row * columns_, int64_t{0}); column < end;) {
      const auto end_column = std::min(column / 8 * 8 + kStrip, end);
      const auto n = static_cast<size_t>(end_column - column);
      const auto words = words_with(column, end_column, bits);
      kernels.unpack(codes + ((row - box.row) * of_box.count + words.begin - of_box.begin) * 4 +
                         words.skipped_bytes,
                     static_cast<size_t>(bits), static_cast<size_t>(words.skipped_codes) + n,
                     strip.data());
      const auto* of_strip = strip.data() + words.skipped_codes;
      auto* place = numbers + (row * columns_ + column - begin) * itemsize;
      if (g_idx == nullptr) {
        const auto group = column / group_ - box.group;
        kernels.scale_groups(of_strip, static_cast<size_t>(column % group_),
                             static_cast<size_t>(group_), zeros + group, scales + group, n, format_,
                             place);
      } else {
        for (size_t i = 0; i < n; ++i) {
          const auto group = group_of(column + static_cast<int64_t>(i), g_idx);
          strip_zeros[i] = zeros[group];
          strip_scales[i] = scales[group];
        }
        kernels.scale(of_strip, strip_zeros.data(), strip_scales.data(), n, format_, place);
      }
      column = end_column;
    }
  }
}

}  // namespace dormant::decode
