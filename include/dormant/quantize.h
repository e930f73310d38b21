// Quantizing for libtorch: of a lazy tensor the packed codes and their statistics are lazy, too,
// and the tensor in full precision never exists.
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
  fp4,  ///< a 4-bit floating point number
};

/// The 4-bit formats of bitsandbytes: blocks of elements share a scale, each gets 4 bits.
struct FourBit {
  FourBitKind kind = FourBitKind::nf4;
  /// Elements that share a scale: 32, 64, 128, 256, 512, 1024, 2048 or 4096.
  int64_t block_size = 64;
  /// Quantize the scales too, to 8 bits ("double quantization").
  bool nested = true;
};

/// LLM.int8 of bitsandbytes: one scale for each row of a matrix, 8 bits for each element.
struct Int8 {};

/// A tensor of N elements in B blocks, or of [rows, columns], quantized.
struct Quantized {
  std::variant<FourBit, Int8> scheme;
  std::vector<int64_t> sizes;  ///< of the tensor
  c10::ScalarType dtype;       ///< of the tensor
  /// Two codes in a byte, the first one in the upper half, uint8 [(N + 1) / 2, 1]; or int8 [rows,
  /// columns].
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

  /// The tensors that are quantized: those above that hang together, the codes first.
  DORMANT_API std::vector<at::Tensor> tensors() const;

  /// What bitsandbytes has in a state dict for a weight of this name, such as "0.weight": so
  /// bitsandbytes, transformers and dormant read the file that dormant::save makes of it. Nested,
  /// `offset` is part of a text in it, so it is materialized first, which `options` are for; the
  /// weight is computed, or read, once for it and once more when it is saved.
  DORMANT_API NamedTensors named_tensors(const std::string& name,
                                         const MaterializeOptions& options = {}) const;
};

/// Quantizes a tensor of float32, bfloat16 or float16 on the CPU, bit for bit as bitsandbytes does
/// there: at once where it is real; where it is lazy, when the result is materialized, loaded or
/// saved, in small tiles. Throws c10::ValueError for another dtype, no elements, or a block size
/// that there is not, c10::NotImplementedError for a tensor that is not strided or not on the CPU.
DORMANT_API Quantized quantize(const at::Tensor& tensor, const FourBit& scheme = {});

/// The same of a matrix, which is rounded to float16 first. c10::ValueError for other ranks, too.
DORMANT_API Quantized quantize(const at::Tensor& tensor, const Int8& scheme);

}  // namespace dormant
