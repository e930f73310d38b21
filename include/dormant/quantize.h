// Quantizing for libtorch: the packed codes and the statistics of a lazy tensor are lazy, too, and
// the full-precision tensor never exists.
//
//   const auto weight = dormant::open_checkpoint("folder")["model.layers.0.mlp.up_proj.weight"];
//   const auto packed = dormant::quantize(weight.to(at::kBFloat16), dormant::FourBit{});
//   dormant::save(packed.named_tensors("up.weight"), "up.safetensors");
#pragma once

#include <ATen/core/Tensor.h>
#include <dormant/dormant.h>
#include <dormant/export.h>
#include <dormant/named_tensors.h>

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace dormant {

enum class FourBitKind : uint8_t {
  nf4,  ///< levels for normally distributed weights
  fp4,  ///< a 4-bit floating-point number
};

/// The 4-bit formats of bitsandbytes: 4 bits for each element, one scale for each block.
struct FourBit {
  FourBitKind kind = FourBitKind::nf4;
  /// Elements that share a scale: 32, 64, 128, 256, 512, 1024, 2048 or 4096.
  int64_t block_size = 64;
  /// Also quantize the scales, to 8 bits ("double quantization").
  bool nested = true;
};

/// LLM.int8 of bitsandbytes: one scale for each row of a matrix, 8 bits for each element.
struct Int8 {};

/// A tensor of N elements in B blocks, or of [rows, columns], quantized.
struct Quantized {
  std::variant<FourBit, Int8> scheme;
  std::vector<int64_t> sizes;  ///< of the tensor
  c10::ScalarType dtype;       ///< of the tensor
  /// Two codes in each byte, the first one in the upper half, uint8 [(N + 1) / 2, 1]; or int8
  /// [rows, columns].
  at::Tensor codes;
  /// The largest magnitude of each block, float32 [B], nested as codes, uint8 [B]; or of each row,
  /// float32 [rows].
  at::Tensor absmax;
  at::Tensor values = {};  ///< what each 4-bit code stands for, float32 [16]; else undefined
  at::Tensor nested_absmax =
      {};  ///< nested: of 256 numbers of `absmax` each, float32; else undefined
  at::Tensor nested_values =
      {};                  ///< nested: what their codes stand for, float32 [256]; else undefined
  at::Tensor offset = {};  ///< nested: what was subtracted from them, float32 []; else undefined

  /// The tensors that quantizing computes: `codes`, `absmax` and, if nested, `nested_absmax` and
  /// `offset`.
  DORMANT_API std::vector<at::Tensor> tensors() const;

  /// The tensors that bitsandbytes has in a state dict for a weight of this name, such as
  /// "0.weight". bitsandbytes, transformers and Dormant can therefore read the file that
  /// dormant::save writes. If the scales are nested, `offset` is part of a text in it, so it is
  /// materialized first, with `options`; the weight is then computed or read twice, once for the
  /// offset and once when it is saved.
  DORMANT_API NamedTensors named_tensors(const std::string& name,
                                         const MaterializeOptions& options = {}) const;
};

/// Quantizes a tensor of float32, bfloat16 or float16 on the CPU, bit for bit as bitsandbytes does
/// there. A real tensor is quantized at once; a lazy one when the result is materialized, loaded or
/// saved, in small tiles. Throws c10::ValueError for another dtype, no elements, or an unsupported
/// block size, c10::NotImplementedError for a tensor that is not strided or not on the CPU.
DORMANT_API Quantized quantize(const at::Tensor& tensor, const FourBit& scheme = {});

/// Quantizes a matrix, which is first rounded to float16. c10::ValueError also for other ranks.
DORMANT_API Quantized quantize(const at::Tensor& tensor, const Int8& scheme);

}  // namespace dormant
