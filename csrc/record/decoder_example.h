// A decoder for tests, with all that decoders may do: units, several parts, and values of one part
// that decide which elements of another are read.
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <string>
#include <vector>

#include "record/decoder.h"

namespace dormant::record {

/// Rows of codes; each row belongs to a group, and a group has a scale for every kUnit columns.
class RowGroups final : public Decoder {
 public:
  static constexpr int64_t kUnit = 8;
  static constexpr int64_t kGroups = 3;

  RowGroups(int64_t rows, int64_t columns) : rows_(rows), columns_(columns) {}

  Geometry output() const override { return Geometry::contiguous({rows_, columns_}, at::kFloat); }
  std::vector<Geometry> parts() const override {
    return {Geometry::contiguous({rows_}, at::kInt),
            Geometry::contiguous({kGroups, columns_ / kUnit}, at::kFloat),
            Geometry::contiguous({rows_, columns_}, at::kChar)};
  }
  int64_t unit() const override { return kUnit; }

  void wanted(size_t part, int64_t begin, int64_t count, c10::ArrayRef<const void*> earlier,
              std::vector<ElementRun>& runs) const override {
    if (part == 0) {
      runs.push_back({begin / columns_, (begin + count - 1) / columns_ - begin / columns_ + 1});
      return;
    }
    if (part == 2) {
      runs.push_back({begin, count});
      return;
    }
    const auto* groups = static_cast<const int32_t*>(earlier[0]);
    for_each_row(begin, count, [&](int64_t row, int64_t column, int64_t length) {
      const auto group = groups[row - begin / columns_];
      TORCH_CHECK_VALUE(group >= 0 && group < kGroups, "row ", row, " is of group ", group);
      runs.push_back({(group * columns_ + column) / kUnit, length / kUnit});
    });
  }

  bool depends_on_earlier(size_t part) const override { return part == 1; }

  void run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
           void* out) const override {
    const auto* scales = static_cast<const float*>(parts[1]);
    const auto* codes = static_cast<const int8_t*>(parts[2]);
    for (int64_t i = 0; i < count; ++i) {
      static_cast<float*>(out)[i] = static_cast<float>(codes[i]) * scales[i / kUnit];
    }
    static_cast<void>(begin);
  }

  std::string name() const override { return "rows in groups"; }

  /// Groups, scales and codes of that order.
  std::vector<at::Tensor> example() const {
    return {at::arange(rows_, at::kInt).mul(7).remainder(kGroups).to(at::kInt),
            at::arange(kGroups * columns_ / kUnit, at::kFloat).add(0.5).view({kGroups, -1}),
            at::arange(rows_ * columns_, at::kLong)
                .mul(37)
                .remainder(251)
                .sub(125)
                .to(at::kChar)
                .view({rows_, columns_})};
  }

  /// What they encode, computed by PyTorch.
  static at::Tensor expected(const std::vector<at::Tensor>& parts) {
    const auto scales = parts[1].index_select(0, parts[0].to(at::kLong));
    return parts[2].to(at::kFloat) * scales.repeat_interleave(kUnit, 1);
  }

 private:
  template <typename F>
  void for_each_row(int64_t begin, int64_t count, const F& visit) const {
    while (count > 0) {
      const auto column = begin % columns_;
      const auto length = std::min(count, columns_ - column);
      visit(begin / columns_, column, length);
      begin += length;
      count -= length;
    }
  }

  int64_t rows_;
  int64_t columns_;
};

}  // namespace dormant::record
