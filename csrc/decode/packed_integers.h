// Integers of "pack-quantized" of compressed-tensors, a dense stream of 1 to 8 bits along each row,
// bit for bit as its decompress() makes them into numbers on a CPU. (Those of a byte each are
// scaled_bytes.h's.)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "decode/integer_kernels.h"
#include "record/decoder.h"

namespace dormant::decode {

/// The result is [..., rows, columns], a matrix or a stack of them, in the dtype of the scales.
/// Parts: the shape and the groups of columns, where they are given; the packed codes, the scales;
/// the zeros, where they are given.
class DORMANT_BINDINGS_API PackedIntegers final : public record::Decoder {
 public:
  struct Layout {
    std::string module;          ///< the layer's name, for messages
    std::vector<int64_t> sizes;  ///< of the weight
    int64_t bits;
    /// Columns that share a scale; 0: all of a row ("channel").
    int64_t group_size = 0;
    bool one_scale = false;   ///< for the whole tensor
    record::Geometry packed;  ///< weight_packed: int32 [..., rows, columns * bits / 32], rounded up
    record::Geometry scale;   ///< weight_scale: [..., rows, groups]
    /// weight_zero_point: int8, as many as scales; or packed along the rows, int32
    /// [..., rows * bits / 32, groups].
    std::optional<record::Geometry> zero = std::nullopt;
    /// weight_g_idx, int32: the group of each column; -1 in it says that they follow each other.
    std::optional<record::Geometry> g_idx = std::nullopt;
    std::optional<record::Geometry> shape = std::nullopt;  ///< weight_shape: int64, the sizes
  };

  /// ValueError where sizes or dtypes don't fit each other or the settings.
  explicit PackedIntegers(Layout layout);

  record::Geometry output() const override;
  std::vector<record::Geometry> parts() const override;
  int64_t unit() const override { return 1; }
  void wanted(size_t part, int64_t begin, int64_t count, c10::ArrayRef<const void*> earlier,
              std::vector<record::ElementRun>& runs) const override;
  void run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
           void* out) const override;
  std::string name() const override;

 private:
  struct Box;
  Box box_of(int64_t begin, int64_t count) const;
  int64_t zero_bit(int64_t row) const;
  void check_shape(const void* values) const;
  int64_t group_of(int64_t column, const void* g_idx) const;
  void scales_of_row(const IntegerKernels& kernels, const Box& box, int64_t row, const void* scales,
                     const void* zeros, std::vector<float>& numbers) const;

  bool packed_zeros() const { return layout_.zero && layout_.zero->dtype == c10::ScalarType::Int; }

  const Layout layout_;
  const int64_t columns_;
  const int64_t rows_;    ///< of a matrix
  const int64_t group_;   ///< columns of a group
  const int64_t groups_;  ///< in a row
  const Format format_;
};

}  // namespace dormant::decode
