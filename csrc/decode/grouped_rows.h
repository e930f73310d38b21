// What GPTQ and AWQ share: a matrix [in, out] of integers, the transpose of a Linear's weight. Its
// rows belong to groups, and a group has a scale and a zero for each column. Packed words of zeros
// go along the columns.
//
// A range of the result is gone through in strips of columns: a strip of zeros and scales, as
// floats, is made once for each group and stays in a core's nearest cache while the rows of the
// group are multiplied.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "decode/integer_kernels.h"
#include "record/decoder.h"

namespace dormant::decode {

class DORMANT_BINDINGS_API GroupedRows : public record::Decoder {
 public:
  record::Geometry output() const override;
  /// g_idx, where there is one; qweight, qzeros, scales.
  std::vector<record::Geometry> parts() const override;
  void wanted(size_t part, int64_t begin, int64_t count, c10::ArrayRef<const void*> earlier,
              std::vector<record::ElementRun>& runs) const override;
  bool depends_on_earlier(size_t part) const override {
    return layer_.g_idx && part > first_part();
  }
  void run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
           void* out) const override;

 protected:
  /// The tensors of a layer as a checkpoint has them.
  struct Parts {
    std::string module;  ///< the layer's name, for messages
    record::Geometry qweight;
    record::Geometry qzeros;
    record::Geometry scales;
    /// The group of each row; without it they follow each other.
    std::optional<record::Geometry> g_idx = std::nullopt;
  };
  struct Layer : Parts {
    int64_t in;
    int64_t out;
    int64_t group_size;  ///< where there is no g_idx
    int64_t bits;
  };

  /// Of parts whose sizes fit each other; their dtypes are checked here.
  explicit GroupedRows(Layer layer);

  /// Some columns of some rows.
  struct Box {
    int64_t row;
    int64_t end_row;
    int64_t column;
    int64_t end_column;
    int64_t columns() const { return end_column - column; }
  };

  const Layer& layer() const { return layer_; }
  Format format() const { return format_; }

  /// Appends the words of qweight that hold a box.
  virtual void append_codes(const Box& box, std::vector<record::ElementRun>& runs) const = 0;

  /// Columns [column, end_column) of one row of the box, whose words are at `words`. Zeros and
  /// scales are those of the columns.
  virtual void decode_row(const IntegerKernels& kernels, const Box& box, const uint8_t* words,
                          int64_t row, int64_t column, int64_t end_column, const float* zeros,
                          const float* scales, void* out) const = 0;

  /// Zeros of columns [column, end_column) of a group, from its words that hold the columns of a
  /// box; never more than kStrip.
  virtual void decode_zeros(const IntegerKernels& kernels, const Box& box, const uint8_t* words,
                            int64_t column, int64_t end_column, float* zeros) const = 0;

  static constexpr int64_t kStrip = 2048;

 private:
  size_t first_part() const { return layer_.g_idx ? 1 : 0; }
  Box box_of(int64_t begin, int64_t count) const;
  int64_t group_of(const Box& box, int64_t row, const void* g_idx) const;
  std::vector<int64_t> groups_of(const Box& box, const void* g_idx) const;

  const Layer layer_;
  const Format format_;
};

}  // namespace dormant::decode
