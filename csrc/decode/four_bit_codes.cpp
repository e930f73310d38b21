#include "decode/four_bit_codes.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "decode/output_format.h"
#include "simd/kernels.h"

namespace dormant::decode {
namespace {

using c10::ScalarType;
using record::ElementRun;
using record::Geometry;

// get_4bit_type in bitsandbytes/functional.py.
constexpr FourBitValues kNf4 = {{-1.0f, -0x1.647362p-1f, -0x1.0cd66p-1f, -0x1.94654p-2f,
                                 -0x1.23449ap-2f, -0x1.7a6a7ep-3f, -0x1.74f0e2p-4f, 0.0f,
                                 0x1.45f5fep-4f, 0x1.4995c6p-3f, 0x1.f809bap-3f, 0x1.5a0674p-2f,
                                 0x1.c3497p-2f, 0x1.200f56p-1f, 0x1.722766p-1f, 1.0f}};
constexpr FourBitValues kFp4 = {{0.0f, 0x1.555556p-8f, 0x1.555556p-1f, 1.0f, 0x1.555556p-2f, 0.5f,
                                 0x1.555556p-3f, 0.25f, 0.0f, -0x1.555556p-8f, -0x1.555556p-1f,
                                 -1.0f, -0x1.555556p-2f, -0.5f, -0x1.555556p-3f, -0.25f}};

int64_t pieces(int64_t count, int64_t size) { return count / size + (count % size != 0 ? 1 : 0); }

int64_t count_of(const std::vector<int64_t>& sizes) {
  return Geometry::contiguous(sizes, ScalarType::Byte).numel();
}

}  // namespace

FourBitCodes::FourBitCodes(Layout layout)
    : layout_(std::move(layout)),
      format_(output_format(layout_.output)),
      width_(static_cast<int64_t>(c10::elementSize(layout_.packed))) {
  TORCH_CHECK_VALUE(layout_.block >= 2 && layout_.block % 2 == 0, "got blocks of ", layout_.block,
                    ", expected an even number");
  const auto numbers = count_of(layout_.sizes);
  const auto bytes = pieces(numbers, 2);
  const auto packed = count_of(layout_.packed_sizes);
  TORCH_CHECK_VALUE(bytes % width_ == 0 && packed == bytes / width_, "got ", packed,
                    " elements of ", width_, " bytes for ", numbers,
                    " codes of four bits, expected ", bytes, " bytes");
  const auto blocks = pieces(numbers, layout_.block);
  TORCH_CHECK_VALUE(count_of(layout_.absmax_sizes) == blocks, "got ",
                    count_of(layout_.absmax_sizes), " absmax for ", blocks, " blocks");
  if (!layout_.nested) {
    return;
  }
  const auto block = layout_.nested->block;
  TORCH_CHECK_VALUE(block >= 1 && count_of(layout_.nested_sizes) == pieces(blocks, block), "got ",
                    count_of(layout_.nested_sizes), " nested absmax for ", blocks, " of them in ",
                    "blocks of ", block);
}

Geometry FourBitCodes::output() const {
  return Geometry::contiguous(layout_.sizes, layout_.output);
}

std::vector<Geometry> FourBitCodes::parts() const {
  const auto absmax = layout_.nested ? ScalarType::Byte : ScalarType::Float;
  std::vector<Geometry> parts = {Geometry::contiguous(layout_.packed_sizes, layout_.packed),
                                 Geometry::contiguous(layout_.absmax_sizes, absmax)};
  if (layout_.nested) {
    parts.push_back(Geometry::contiguous(layout_.nested_sizes, ScalarType::Float));
  }
  return parts;
}

void FourBitCodes::wanted(size_t part, int64_t begin, int64_t count,
                          c10::ArrayRef<const void*> /*earlier*/,
                          std::vector<ElementRun>& runs) const {
  const auto add = [&](int64_t size) {
    const int64_t first = begin / size;
    runs.push_back({first, pieces(begin + count, size) - first});
  };
  if (part == 0) {
    add(2 * width_);
  } else {
    add(part == 1 ? layout_.block : layout_.block * layout_.nested->block);
  }
}

float FourBitCodes::absmax(int64_t block, int64_t first, c10::ArrayRef<const void*> parts) const {
  if (!layout_.nested) {
    return static_cast<const float*>(parts[1])[block - first];
  }
  const auto& nested = *layout_.nested;
  const auto code = static_cast<const uint8_t*>(parts[1])[block - first];
  const auto scale =
      static_cast<const float*>(parts[2])[block / nested.block - first / nested.block];
  return nested.values[code] * scale + nested.offset;
}

void FourBitCodes::run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
                       void* out) const {
  const auto& kernels = simd::kernels<FloatKernels>();
  const auto& values = layout_.kind == Kind::nf4 ? kNf4 : kFp4;
  const auto* codes = static_cast<const uint8_t*>(parts[0]);
  auto* to = static_cast<char*>(out);
  const auto width = static_cast<int64_t>(c10::elementSize(layout_.output));
  const int64_t first = begin / layout_.block;
  for (int64_t done = 0; done < count;) {
    const int64_t block = (begin + done) / layout_.block;
    const int64_t n = std::min(count, (block + 1) * layout_.block - begin) - done;
    kernels.four_bit(values, Nibbles::high_first, format_, codes + done / 2, static_cast<size_t>(n),
                     absmax(block, first, parts), to + done * width);
    done += n;
  }
}

std::string FourBitCodes::name() const {
  return std::string(layout_.kind == Kind::nf4 ? "nf4" : "fp4") + ", blocks of " +
         std::to_string(layout_.block) + (layout_.nested ? ", nested" : "");
}

}  // namespace dormant::decode
