#include "decode/grouped_rows.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "decode/integer_parts.h"
#include "simd/kernels.h"

namespace dormant::decode {

using record::ElementRun;
using record::Geometry;

GroupedRows::GroupedRows(Layer layer)
    : layer_(std::move(layer)), format_(scale_format("scales", layer_.scales.dtype)) {
  check_dtype("qweight", layer_.qweight, c10::ScalarType::Int);
  check_dtype("qzeros", layer_.qzeros, c10::ScalarType::Int);
  if (layer_.g_idx) {
    check_dtype("g_idx", *layer_.g_idx, c10::ScalarType::Int);
  }
  output().nbytes_needed();  // refuses what overflows
}

Geometry GroupedRows::output() const {
  return Geometry::contiguous({layer_.in, layer_.out}, layer_.scales.dtype);
}

std::vector<Geometry> GroupedRows::parts() const {
  std::vector<Geometry> parts;
  if (layer_.g_idx) {
    parts.push_back(*layer_.g_idx);
  }
  parts.insert(parts.end(), {layer_.qweight, layer_.qzeros, layer_.scales});
  return parts;
}

/// A range of one row, or of whole rows: a few columns more at its ends cost less than a box of
/// another shape.
GroupedRows::Box GroupedRows::box_of(int64_t begin, int64_t count) const {
  const auto row = begin / layer_.out;
  const auto end_row = (begin + count - 1) / layer_.out + 1;
  if (end_row - row == 1) {
    const auto column = begin % layer_.out;
    return {row, end_row, column, column + count};
  }
  return {row, end_row, 0, layer_.out};
}

/// `g_idx` is that of the rows of the box.
int64_t GroupedRows::group_of(const Box& box, int64_t row, const void* g_idx) const {
  if (!layer_.g_idx) {
    return row / layer_.group_size;
  }
  int32_t group = 0;
  std::memcpy(&group, static_cast<const std::byte*>(g_idx) + (row - box.row) * sizeof group,
              sizeof group);
  const auto groups = layer_.scales.sizes[0];
  if (group < 0 || group >= groups) {
    refuse_value(layer_.module, "g_idx[" + std::to_string(row) + "] is " + std::to_string(group) +
                                    "; expected a group from 0 to " + std::to_string(groups - 1) +
                                    ", since scales has " + std::to_string(groups) + " rows");
  }
  return group;
}

/// Those of the rows of a box, ascending.
std::vector<int64_t> GroupedRows::groups_of(const Box& box, const void* g_idx) const {
  std::vector<int64_t> groups;
  for (auto row = box.row; row < box.end_row; ++row) {
    const auto group = group_of(box, row, g_idx);
    if (groups.empty() || groups.back() != group) {
      groups.push_back(group);
    }
  }
  std::sort(groups.begin(), groups.end());
  groups.erase(std::unique(groups.begin(), groups.end()), groups.end());
  return groups;
}

void GroupedRows::wanted(size_t part, int64_t begin, int64_t count,
                         c10::ArrayRef<const void*> earlier, std::vector<ElementRun>& runs) const {
  const auto box = box_of(begin, count);
  if (part < first_part()) {
    runs.push_back({box.row, box.end_row - box.row});
    return;
  }
  if (part == first_part()) {
    append_codes(box, runs);
    return;
  }
  const bool zeros = part == first_part() + 1;
  const auto words = words_with(box.column, box.end_column, layer_.bits);
  const auto first = zeros ? words.begin : box.column;
  const auto wide = zeros ? words.count : box.columns();
  const auto row_size = zeros ? layer_.qzeros.sizes[1] : layer_.out;
  for (const auto group : groups_of(box, layer_.g_idx ? earlier[0] : nullptr)) {
    append_run(group * row_size + first, wide, runs);
  }
}

void GroupedRows::run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
                      void* out) const {
  const auto& kernels = simd::kernels<IntegerKernels>();
  const auto box = box_of(begin, count);
  const auto* g_idx = layer_.g_idx ? parts[0] : nullptr;
  const auto* codes = static_cast<const uint8_t*>(parts[first_part()]);
  const auto* zero_words = static_cast<const uint8_t*>(parts[first_part() + 1]);
  const auto* scales = static_cast<const std::byte*>(parts[first_part() + 2]);
  auto* numbers = static_cast<std::byte*>(out);

  const auto groups = groups_of(box, g_idx);
  const auto words = words_with(box.column, box.end_column, layer_.bits).count;
  const auto itemsize = static_cast<int64_t>(c10::elementSize(layer_.scales.dtype));
  alignas(64) std::array<float, kStrip> strip_zeros;
  alignas(64) std::array<float, kStrip> strip_scales;
  // Strips begin with a whole byte of zeros, whatever their bits are.
  for (auto column = box.column; column < box.end_column;) {
    const auto end_column = std::min((column / 8 * 8) + kStrip, box.end_column);
    int64_t made = -1;
    for (auto row = box.row; row < box.end_row; ++row) {
      const auto row_begin = std::max(begin, row * layer_.out + column);
      const auto row_end = std::min(begin + count, row * layer_.out + end_column);
      if (row_begin >= row_end) {
        continue;
      }
      const auto group = group_of(box, row, g_idx);
      if (group != made) {
        const auto at = std::lower_bound(groups.begin(), groups.end(), group) - groups.begin();
        decode_zeros(kernels, box, zero_words + at * words * 4, column, end_column,
                     strip_zeros.data());
        kernels.widen(format_, scales + (at * box.columns() + column - box.column) * itemsize,
                      static_cast<size_t>(end_column - column), strip_scales.data());
        made = group;
      }
      const auto first = row_begin - row * layer_.out;
      decode_row(kernels, box, codes, row, first, first + (row_end - row_begin),
                 strip_zeros.data() + (first - column), strip_scales.data() + (first - column),
                 numbers + (row_begin - begin) * itemsize);
    }
    column = end_column;
  }
}

}  // namespace dormant::decode
