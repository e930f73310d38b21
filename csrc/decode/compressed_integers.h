// Integers of compressed-tensors: "pack-quantized", a dense stream of 1 to 8 bits along each row,
// and "int-quantized" or "naive-quantized", a byte each; bit for bit as its decompress() makes them
// into numbers on a CPU.
#pragma once

#include <c10/util/SmallVector.h>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "decode/integer_kernels.h"
#include "record/decoder.h"

namespace dormant::decode {

/// The tensors of one layer as a checkpoint has them. Matrices may be stacked: experts.
struct CompressedLayer {
  std::string module;             ///< its name, for messages
  c10::SmallVector<int64_t, 5> sizes;  ///< of the weight: [..., rows, columns]
  /// weight_packed, int32 [..., rows, columns * bits / 32] rounded up, or weight, int8 of `sizes`.
  record::Geometry codes;
  record::Geometry scale;
  /// weight_zero_point: int8 like the scale, or int32 packed along the rows, [..., rows * bits / 32,
  /// groups].
  std::optional<record::Geometry> zero;
  std::optional<record::Geometry> g_idx;  ///< weight_g_idx: the group of each column, or all are -1
  std::optional<record::Geometry> shape;  ///< weight_shape, whose values must be `sizes`
};

/// How many elements share a scale.
struct CompressedConfig {
  int64_t bits = 4;  ///< of packed codes
  /// Columns: group_size, or the width of a block; 0: all columns (channel, tensor).
  int64_t columns = 0;
  /// Rows: 1 (group, channel), or the height of a block; 0: all rows of all matrices (tensor).
  int64_t rows = 1;
};

/// The result has `sizes`, in the dtype of the scale. Parts: weight_shape and weight_g_idx, where
/// they are given; the codes, the scale; the zeros, where they are given.
class DORMANT_BINDINGS_API CompressedIntegers final : public record::Decoder {
 public:
  /// ValueError where sizes or dtypes don't fit each other or the configuration.
  CompressedIntegers(CompressedLayer layer, const CompressedConfig& config);

  record::Geometry output() const override;
  std::vector<record::Geometry> parts() const override;
  int64_t unit() const override { return 1; }
  void wanted(size_t part, int64_t begin, int64_t count, c10::ArrayRef<const void*> earlier,
              std::vector<record::ElementRun>& runs) const override;
  void run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
           void* out) const override;
  std::string name() const override;

 private:
  /// Which elements of the parts a range of the result is made of.
  struct Box;
  Box box_of(int64_t begin, int64_t count) const;

  int64_t scale_row(int64_t row) const;
  int64_t zero_bit(int64_t row) const;
  void check_shape(const void* values) const;
  int64_t group_of(int64_t column, const void* g_idx) const;
  void row_scales(const IntegerKernels& kernels, const Box& box, int64_t row, const void* scales,
                  const void* zeros, std::vector<float>& numbers) const;

  bool packed() const { return layer_.codes.dtype == c10::ScalarType::Int; }
  bool packed_zeros() const { return layer_.zero && layer_.zero->dtype == c10::ScalarType::Int; }

  const CompressedLayer layer_;
  const int64_t bits_;     ///< 8 where codes are bytes
  const int64_t columns_;  ///< of the weight
  const int64_t rows_;     ///< of a matrix
  const int64_t group_columns_;
  const int64_t group_rows_;  ///< 0: the whole tensor
  const int64_t groups_;      ///< in a row
  const Format format_;
};

}  // namespace dormant::decode
