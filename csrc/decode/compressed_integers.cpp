#include "decode/compressed_integers.h"

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

constexpr int64_t kStrip = 1024;  // columns that are decoded at a time

int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

c10::SmallVector<int64_t, 5> with_last(c10::IntArrayRef sizes, int64_t rows, int64_t columns) {
  c10::SmallVector<int64_t, 5> result(sizes.begin(), sizes.end());
  result[result.size() - 2] = rows;
  result.back() = columns;
  return result;
}

/// The checks of everything but sizes that follow from others.
CompressedLayer checked(CompressedLayer layer, const CompressedConfig& config) {
  const auto& module = layer.module;
  if (layer.sizes.size() < 2 || layer.sizes.size() > 4) {
    refuse(module, "a weight of " + std::to_string(layer.sizes.size()) +
                       " dimensions; expected 2, or 3 of stacked matrices");
  }
  check_dimensions(module, "weight", Geometry::contiguous(layer.sizes, c10::ScalarType::Char),
                   layer.sizes.size());
  if (config.bits < 1 || config.bits > 8) {
    refuse(module, "integers of " + std::to_string(config.bits) + " bits; expected 1 to 8");
  }
  if (config.columns < 0 || config.rows < 0) {
    refuse(module, "groups of " + std::to_string(config.rows) + " rows and " +
                       std::to_string(config.columns) + " columns; expected positive numbers");
  }
  return layer;
}

}  // namespace

struct CompressedIntegers::Box {
  int64_t row;  ///< of all matrices
  int64_t end_row;
  int64_t column;
  int64_t end_column;
  int64_t scale_begin;  ///< of the rows of scales that are wanted: a column
  int64_t scale_count;  ///< and how many
  int64_t code_stride;  ///< bytes of a row of codes as it was wanted
};

CompressedIntegers::CompressedIntegers(CompressedLayer given, const CompressedConfig& config)
    : layer_(checked(std::move(given), config)),
      bits_(packed() ? config.bits : 8),
      columns_(layer_.sizes.back()),
      rows_(layer_.sizes[layer_.sizes.size() - 2]),
      group_columns_(config.columns == 0 || config.rows == 0 ? columns_ : config.columns),
      group_rows_(config.rows),
      groups_(quotient_up(columns_, group_columns_)),
      format_(scale_format(layer_.module, "weight_scale", layer_.scale.dtype)) {
  const auto& module = layer_.module;
  output().nbytes_needed();  // refuses what overflows
  const auto shape = "the weight has " + std::to_string(rows_) + " rows and " +
                     std::to_string(columns_) + " columns";
  if (packed()) {
    check_sizes(module, "weight_packed", layer_.codes,
                with_last(layer_.sizes, rows_, words_of(columns_, bits_)),
                shape + " of " + std::to_string(bits_) + " bits");
  } else {
    check_dtype(module, "weight", layer_.codes, c10::ScalarType::Char);
    check_sizes(module, "weight", layer_.codes, layer_.sizes, shape);
  }
  if (group_rows_ == 1 && columns_ % group_columns_ != 0) {
    refuse(module, "groups of " + std::to_string(group_columns_) +
                       " columns; expected a number that divides the " + std::to_string(columns_) +
                       " columns of the weight");
  }
  if (group_rows_ == 0) {
    if (layer_.scale.numel() != 1) {
      refuse(module, "weight_scale has " + std::to_string(layer_.scale.numel()) +
                         " elements; expected one for the whole tensor");
    }
  } else {
    check_sizes(module, "weight_scale", layer_.scale,
                with_last(layer_.sizes, quotient_up(rows_, group_rows_), groups_),
                shape + ", in groups of " + std::to_string(group_rows_) + " and " +
                    std::to_string(group_columns_));
  }
  if (packed_zeros()) {
    if (group_rows_ != 1 || !packed()) {
      refuse(module, "weight_zero_point is packed; expected that of groups or channels of packed "
                     "integers only");
    }
    check_sizes(module, "weight_zero_point", *layer_.zero,
                with_last(layer_.sizes, words_of(rows_, bits_), groups_),
                shape + " in groups of " + std::to_string(group_columns_));
  } else if (layer_.zero) {
    check_dtype(module, "weight_zero_point", *layer_.zero, c10::ScalarType::Char);
    check_sizes(module, "weight_zero_point", *layer_.zero, layer_.scale.sizes,
                "weight_scale has it");
  }
  if (layer_.g_idx) {
    check_dtype(module, "weight_g_idx", *layer_.g_idx, c10::ScalarType::Int);
    check_sizes(module, "weight_g_idx", *layer_.g_idx, {columns_}, shape);
    if (group_rows_ != 1) {
      refuse(module, "weight_g_idx of blocks or of a whole tensor; expected groups of columns");
    }
  }
  if (layer_.shape) {
    check_dtype(module, "weight_shape", *layer_.shape, c10::ScalarType::Long);
    check_sizes(module, "weight_shape", *layer_.shape,
                {static_cast<int64_t>(layer_.sizes.size())}, "the weight has so many dimensions");
  }
}

Geometry CompressedIntegers::output() const {
  return Geometry::contiguous(layer_.sizes, layer_.scale.dtype);
}

std::vector<Geometry> CompressedIntegers::parts() const {
  std::vector<Geometry> parts;
  for (const auto* part : {&layer_.shape, &layer_.g_idx}) {
    if (*part) {
      parts.push_back(**part);
    }
  }
  parts.push_back(layer_.codes);
  parts.push_back(layer_.scale);
  if (layer_.zero) {
    parts.push_back(*layer_.zero);
  }
  return parts;
}

std::string CompressedIntegers::name() const {
  const auto group = std::to_string(group_columns_);
  return (packed() ? "compressed-tensors, packed, " + std::to_string(bits_) + " bits"
                   : std::string("compressed-tensors, int8")) +
         (group_rows_ == 0      ? ", one scale"
          : group_rows_ != 1    ? ", blocks of " + std::to_string(group_rows_) + "x" + group
          : groups_ == 1        ? ", channels"
                                : ", groups of " + group) +
         (layer_.g_idx ? ", g_idx" : "");
}

CompressedIntegers::Box CompressedIntegers::box_of(int64_t begin, int64_t count) const {
  Box box;
  box.row = begin / columns_;
  box.end_row = (begin + count - 1) / columns_ + 1;
  const bool one_row = box.end_row - box.row == 1;
  box.column = one_row ? begin % columns_ : 0;
  box.end_column = one_row ? box.column + count : columns_;
  box.scale_begin = one_row && !layer_.g_idx ? box.column / group_columns_ : 0;
  const auto scale_end =
      one_row && !layer_.g_idx ? (box.end_column - 1) / group_columns_ + 1 : groups_;
  box.scale_count = scale_end - box.scale_begin;
  box.code_stride =
      packed() ? words_with(box.column, box.end_column, bits_).count * 4 : box.end_column - box.column;
  return box;
}

/// Which row of scales a row of the matrices has.
int64_t CompressedIntegers::scale_row(int64_t row) const {
  return group_rows_ == 0 ? 0
                          : row / rows_ * quotient_up(rows_, group_rows_) +
                                row % rows_ / group_rows_;
}

/// The first bit of the packed zeros of a row, in a column of their words.
int64_t CompressedIntegers::zero_bit(int64_t row) const {
  return row / rows_ * words_of(rows_, bits_) * 32 + row % rows_ * bits_;
}

void CompressedIntegers::check_shape(const void* values) const {
  for (size_t i = 0; i < layer_.sizes.size(); ++i) {
    int64_t size = 0;
    std::memcpy(&size, static_cast<const std::byte*>(values) + i * sizeof size, sizeof size);
    if (size != layer_.sizes[i]) {
      refuse(layer_.module, "weight_shape[" + std::to_string(i) + "] is " + std::to_string(size) +
                                "; expected " + std::to_string(layer_.sizes[i]) +
                                " from the shapes of weight_packed and weight_scale");
    }
  }
}

/// `g_idx` is all of it.
int64_t CompressedIntegers::group_of(int64_t column, const void* g_idx) const {
  int32_t group = 0;
  std::memcpy(&group, static_cast<const std::byte*>(g_idx) + column * sizeof group, sizeof group);
  if (group < 0 || group >= groups_) {
    refuse(layer_.module, "weight_g_idx[" + std::to_string(column) + "] is " +
                              std::to_string(group) + "; expected a group from 0 to " +
                              std::to_string(groups_ - 1));
  }
  return group;
}

void CompressedIntegers::wanted(size_t part, int64_t begin, int64_t count,
                                c10::ArrayRef<const void*> earlier,
                                std::vector<ElementRun>& runs) const {
  if (layer_.shape) {
    if (part == 0) {
      runs.push_back({0, static_cast<int64_t>(layer_.sizes.size())});
      return;
    }
    check_shape(earlier[0]);
    --part;
  }
  if (layer_.g_idx) {
    if (part == 0) {
      runs.push_back({0, columns_});
      return;
    }
    --part;
  }
  const auto box = box_of(begin, count);
  if (part == 0) {
    if (packed()) {
      const auto words = words_with(box.column, box.end_column, bits_);
      runs.push_back({box.row * words_of(columns_, bits_) + words.begin,
                      (box.end_row - box.row) * words.count});
    } else {
      runs.push_back({begin, count});
    }
    return;
  }
  // Whole rows of groups, or some groups of one row.
  auto first = scale_row(box.row);
  auto last = scale_row(box.end_row - 1);
  if (part == 2 && packed_zeros()) {
    first = zero_bit(box.row) / 32;
    last = (zero_bit(box.end_row - 1) + bits_ - 1) / 32;
  }
  const auto groups = group_rows_ == 0 ? 1 : groups_;
  if (box.scale_count == groups) {
    runs.push_back({first * groups, (last - first + 1) * groups});
    return;
  }
  for (auto row = first; row <= last; ++row) {  // packed zeros of one row may lie in two words
    append_run(row * groups + box.scale_begin, box.scale_count, runs);
  }
}

/// Zeros, then scales, of the groups of a row that are wanted.
void CompressedIntegers::row_scales(const IntegerKernels& kernels, const Box& box, int64_t row,
                                    const void* scales, const void* zeros,
                                    std::vector<float>& numbers) const {
  const auto n = box.scale_count;
  numbers.resize(static_cast<size_t>(2 * n));
  const auto first = (scale_row(row) - scale_row(box.row)) * n;
  kernels.widen(format_,
                static_cast<const std::byte*>(scales) +
                    first * static_cast<int64_t>(c10::elementSize(layer_.scale.dtype)),
                static_cast<size_t>(n), numbers.data() + n);
  // Packed codes are above the lowest one of a signed number, and so are the bytes once flipped.
  const auto lowest = int64_t{1} << (bits_ - 1);
  if (!layer_.zero) {
    std::fill_n(numbers.begin(), n, static_cast<float>(lowest));
  } else if (!packed_zeros()) {
    const auto* bytes = static_cast<const int8_t*>(zeros) + first;
    std::transform(bytes, bytes + n, numbers.begin(),
                   [&](int8_t zero) { return static_cast<float>(lowest + zero); });
  } else {
    const auto bit = zero_bit(row) - zero_bit(box.row) / 32 * 32;
    const auto* words = static_cast<const std::byte*>(zeros) + bit / 32 * n * 4;
    const bool in_two_words = bit % 32 + bits_ > 32;
    for (int64_t i = 0; i < n; ++i) {
      uint32_t low = 0;
      uint32_t high = 0;
      std::memcpy(&low, words + i * 4, sizeof low);
      if (in_two_words) {
        std::memcpy(&high, words + (n + i) * 4, sizeof high);
      }
      const auto both = uint64_t{high} << 32 | low;
      numbers[static_cast<size_t>(i)] =
          static_cast<float>(both >> (bit % 32) & ((uint64_t{1} << bits_) - 1));
    }
  }
}

void CompressedIntegers::run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
                             void* out) const {
  const auto& kernels = simd::kernels<IntegerKernels>();
  const auto box = box_of(begin, count);
  if (layer_.shape) {
    parts = parts.slice(1);
  }
  const void* g_idx = nullptr;
  if (layer_.g_idx) {
    const auto* all = static_cast<const int32_t*>(parts[0]);
    // The library leaves -1 in it where columns are in order.
    g_idx = std::find(all, all + columns_, -1) == all + columns_ ? parts[0] : nullptr;
    parts = parts.slice(1);
  }
  const auto* codes = static_cast<const uint8_t*>(parts[0]);
  const auto* zeros = layer_.zero ? parts[2] : nullptr;
  auto* numbers = static_cast<std::byte*>(out);
  const auto itemsize = static_cast<int64_t>(c10::elementSize(layer_.scale.dtype));
  const uint8_t flipped = packed() ? 0 : 0x80;

  std::vector<float> of_row;
  alignas(64) std::array<uint8_t, kStrip> strip;
  alignas(64) std::array<float, kStrip> strip_zeros;
  alignas(64) std::array<float, kStrip> strip_scales;
  int64_t made = -1;
  for (auto row = box.row; row < box.end_row; ++row) {
    if (made == -1 || layer_.zero || scale_row(row) != scale_row(made)) {
      row_scales(kernels, box, row, parts[1], zeros, of_row);
      made = row;
    }
    const auto* row_zeros = of_row.data();
    const auto* row_scale = of_row.data() + box.scale_count;
    const auto from = std::max(begin - row * columns_, int64_t{0});
    const auto to = std::min(begin + count - row * columns_, columns_);
    for (auto column = from; column < to;) {
      const auto end_column = std::min(column / 8 * 8 + kStrip, to);
      const auto n = static_cast<size_t>(end_column - column);
      const uint8_t* of_strip = nullptr;
      if (packed()) {
        const auto words = words_with(column, end_column, bits_);
        const auto of_box = words_with(box.column, box.end_column, bits_);
        const auto* bytes = codes + (row - box.row) * box.code_stride +
                            (words.begin - of_box.begin) * 4 + words.skipped_bytes;
        kernels.unpack(bytes, static_cast<size_t>(bits_),
                       static_cast<size_t>(words.skipped_codes) + n, strip.data());
        of_strip = strip.data() + words.skipped_codes;
      } else {
        of_strip = codes + (row * columns_ + column - begin);
      }
      auto* to_memory = numbers + (row * columns_ + column - begin) * itemsize;
      if (g_idx == nullptr) {
        const auto group = column / group_columns_;
        kernels.scale_groups(of_strip, flipped, static_cast<size_t>(column % group_columns_),
                             static_cast<size_t>(group_columns_),
                             row_zeros + (group - box.scale_begin),
                             row_scale + (group - box.scale_begin), n, format_, to_memory);
      } else {
        for (size_t i = 0; i < n; ++i) {
          const auto group = group_of(column + static_cast<int64_t>(i), g_idx);
          strip_zeros[i] = row_zeros[group];
          strip_scales[i] = row_scale[group];
        }
        if (flipped != 0) {
          std::transform(of_strip, of_strip + n, strip.begin(),
                         [&](uint8_t code) { return static_cast<uint8_t>(code ^ flipped); });
          of_strip = strip.data();
        }
        kernels.scale(of_strip, strip_zeros.data(), strip_scales.data(), n, format_, to_memory);
      }
      column = end_column;
    }
  }
}

}  // namespace dormant::decode
