#include "decode/gguf_types.h"

#include <algorithm>
#include <array>

namespace dormant::decode {
namespace {

using c10::ScalarType;

constexpr const char* kPrefix = "GGUF ";
constexpr ScalarType kBytes = ScalarType::Byte;

constexpr std::array kTypes = {
    GgufType{0, "F32", 1, 4, ScalarType::Float},
    GgufType{1, "F16", 1, 2, ScalarType::Half},
    GgufType{2, "Q4_0", 32, 18, kBytes, BlockCode::q4_0},
    GgufType{3, "Q4_1", 32, 20, kBytes, BlockCode::q4_1},
    GgufType{6, "Q5_0", 32, 22, kBytes, BlockCode::q5_0},
    GgufType{7, "Q5_1", 32, 24, kBytes, BlockCode::q5_1},
    GgufType{8, "Q8_0", 32, 34, kBytes, BlockCode::q8_0},
    GgufType{9, "Q8_1", 32, 40, kBytes},
    GgufType{10, "Q2_K", 256, 84, kBytes, BlockCode::q2_k},
    GgufType{11, "Q3_K", 256, 110, kBytes, BlockCode::q3_k},
    GgufType{12, "Q4_K", 256, 144, kBytes, BlockCode::q4_k},
    GgufType{13, "Q5_K", 256, 176, kBytes, BlockCode::q5_k},
    GgufType{14, "Q6_K", 256, 210, kBytes, BlockCode::q6_k},
    GgufType{15, "Q8_K", 256, 292, kBytes},
    GgufType{16, "IQ2_XXS", 256, 66, kBytes},
    GgufType{17, "IQ2_XS", 256, 74, kBytes},
    GgufType{18, "IQ3_XXS", 256, 98, kBytes},
    GgufType{19, "IQ1_S", 256, 50, kBytes},
    GgufType{20, "IQ4_NL", 32, 18, kBytes, BlockCode::iq4_nl},
    GgufType{21, "IQ3_S", 256, 110, kBytes},
    GgufType{22, "IQ2_S", 256, 82, kBytes},
    GgufType{23, "IQ4_XS", 256, 136, kBytes, BlockCode::iq4_xs},
    GgufType{24, "I8", 1, 1, ScalarType::Char},
    GgufType{25, "I16", 1, 2, ScalarType::Short},
    GgufType{26, "I32", 1, 4, ScalarType::Int},
    GgufType{27, "I64", 1, 8, ScalarType::Long},
    GgufType{28, "F64", 1, 8, ScalarType::Double},
    GgufType{29, "IQ1_M", 256, 56, kBytes},
    GgufType{30, "BF16", 1, 2, ScalarType::BFloat16},
    GgufType{34, "TQ1_0", 256, 54, kBytes, BlockCode::tq1_0},
    GgufType{35, "TQ2_0", 256, 66, kBytes, BlockCode::tq2_0},
    GgufType{39, "MXFP4", 32, 17, kBytes, BlockCode::mxfp4},
    GgufType{40, "NVFP4", 64, 36, kBytes, BlockCode::nvfp4},
    GgufType{41, "Q1_0", 128, 18, kBytes},
};

}  // namespace

const GgufType* find_gguf_type(uint32_t number) {
  const auto* const found = std::find_if(
      kTypes.begin(), kTypes.end(), [&](const GgufType& type) { return type.number == number; });
  return found == kTypes.end() ? nullptr : &*found;
}

std::string gguf_encoding(const GgufType& type) { return kPrefix + std::string(type.name); }

const GgufType* find_gguf_type(std::string_view encoding) {
  if (!encoding.starts_with(kPrefix)) {
    return nullptr;
  }
  encoding.remove_prefix(std::string_view(kPrefix).size());
  const auto* const found = std::find_if(
      kTypes.begin(), kTypes.end(), [&](const GgufType& type) { return type.name == encoding; });
  return found == kTypes.end() ? nullptr : &*found;
}

}  // namespace dormant::decode
