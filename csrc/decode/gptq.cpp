#include "decode/gptq.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "decode/integer_parts.h"

namespace dormant::decode {

using record::ElementRun;
using record::Geometry;

namespace {

/// The lowest bit of every code of a word.
uint32_t ones(int64_t bits) { return 0xffffffffU / ((1U << bits) - 1); }

/// Words as they are with one added to every code of 2, 4 or 8 bits.
void add_one(int64_t bits, uint8_t* words, size_t nbytes) {
  for (size_t i = 0; i < nbytes; i += 4) {
    uint32_t word = 0;
    std::memcpy(&word, words + i, sizeof word);
    word += ones(bits);
    std::memcpy(words + i, &word, sizeof word);
  }
}

}  // namespace

Gptq::Gptq(const Layout& layout)
    : GroupedRows([&] {
        const auto& [module, qweight, qzeros, scales, g_idx] = layout.parts;
        const auto bits = layout.config.bits;
        if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
          refuse("GPTQ of " + std::to_string(bits) + " bits; expected 2, 3, 4 or 8");
        }
        check_dimensions("qweight", qweight, 2);
        check_dimensions("scales", scales, 2);
        if (g_idx) {
          check_dimensions("g_idx", *g_idx, 1);
        }
        const auto in = g_idx ? g_idx->sizes[0] : qweight.sizes[0] * 32 / bits;
        const auto out = qweight.sizes[1];
        const auto words = std::to_string(bits) + "-bit words of ";
        check_sizes("qweight", qweight, {words_of(in, bits), out},
                    words + std::to_string(in) + " rows" + (g_idx ? ", those of g_idx" : ""));
        const auto size = layout.config.group_size;
        if (size < -1 || (size == 0 && !g_idx)) {
          refuse("GPTQ in groups of " + std::to_string(size) +
                 " rows; expected -1 or a positive number");
        }
        const auto group = size == -1 ? in : size;
        const auto groups = group == 0 ? scales.sizes[0] : (in + group - 1) / group;
        check_sizes("scales", scales, {groups, out},
                    std::to_string(in) + " rows make that many groups of " + std::to_string(group));
        check_sizes("qzeros", qzeros, {groups, words_of(out, bits)},
                    words + std::to_string(out) + " columns");
        return Layer{layout.parts, in, out, group, bits};
      }()),
      config_(layout.config) {}

std::string Gptq::name() const {
  return "gptq" + std::string(config_.zeros_less_one ? "" : "_v2") + ", " +
         std::to_string(config_.bits) + " bits" +
         (layer().g_idx ? ", g_idx" : ", groups of " + std::to_string(layer().group_size));
}

void Gptq::append_codes(const Box& box, std::vector<ElementRun>& runs) const {
  const auto first = box.row * config_.bits / 32;
  const auto last = words_of(box.end_row, config_.bits);
  for (auto word_row = first; word_row < last; ++word_row) {
    append_run(word_row * layer().out + box.column, box.columns(), runs);
  }
}

void Gptq::decode_row(const IntegerKernels& kernels, const Box& box, const uint8_t* words,
                      int64_t row, int64_t column, int64_t end_column, const float* zeros,
                      const float* scales, void* out) const {
  const auto bit = row * config_.bits;
  const auto word_row = bit / 32 - box.row * config_.bits / 32;
  const auto* low = words + (word_row * box.columns() + column - box.column) * 4;
  const bool in_two_words = bit % 32 + config_.bits > 32;
  kernels.scale_fields(low, in_two_words ? low + box.columns() * 4 : nullptr,
                       static_cast<unsigned>(bit % 32), static_cast<unsigned>(config_.bits), zeros,
                       scales, static_cast<size_t>(end_column - column), format(), out);
}

void Gptq::decode_zeros(const IntegerKernels& kernels, const Box& box, const uint8_t* words,
                        int64_t column, int64_t end_column, float* zeros) const {
  const auto bits = config_.bits;
  const auto of_box = words_with(box.column, box.end_column, bits);
  const auto of_strip = words_with(column, end_column, bits);
  const auto nbytes = static_cast<size_t>(of_strip.count) * 4;
  alignas(64) std::array<uint8_t, kStrip + 64> packed;
  alignas(64) std::array<uint8_t, kStrip + 64> codes;
  std::memcpy(packed.data(), words + (of_strip.begin - of_box.begin) * 4, nbytes);
  if (config_.zeros_less_one && bits != 3) {
    add_one(bits, packed.data(), nbytes);
  }
  const auto n = static_cast<size_t>(of_strip.skipped_codes + end_column - column);
  kernels.unpack(packed.data() + of_strip.skipped_bytes, static_cast<size_t>(bits), n,
                 codes.data());
  if (config_.zeros_less_one && bits == 3) {
    // No carries here: gptqmodel adds to each of these zeros, some of which lie in two words.
    std::transform(codes.begin(), codes.begin() + static_cast<std::ptrdiff_t>(n), codes.begin(),
                   [](uint8_t code) { return static_cast<uint8_t>((code + 1) & 7); });
  }
  kernels.to_floats(codes.data() + of_strip.skipped_codes, static_cast<size_t>(end_column - column),
                    zeros);
}

}  // namespace dormant::decode
