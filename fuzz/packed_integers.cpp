// The input chooses a layer of GPTQ, AWQ or packed integers, its sizes, the values of its tensors
// and a range of the weight. Whatever they are, the layer is refused by c10::ValueError, or the
// range is decoded from the elements that it wants, and only these: each lies in memory of exactly
// its size, which sanitizers watch.
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "decode/awq.h"
#include "decode/gptq.h"
#include "decode/integer_parts.h"
#include "decode/packed_integers.h"

namespace {

using c10::ScalarType;
using dormant::record::Decoder;
using dormant::record::ElementRun;
using dormant::record::Geometry;

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint8_t byte() { return size_ == 0 ? uint8_t{0} : data_[at_++ % size_]; }
  bool flag() { return byte() % 2 != 0; }
  int64_t below(int64_t most) { return (byte() << 8 | byte()) % most; }

  void fill(std::vector<std::byte>& bytes) {
    for (auto& each : bytes) {
      each = static_cast<std::byte>(byte());
    }
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

Geometry part(c10::IntArrayRef sizes, ScalarType dtype) {
  return Geometry::contiguous(sizes, dtype);
}

std::shared_ptr<const Decoder> decoder_of(Input& input) {
  constexpr ScalarType kScales[] = {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float};
  const auto kind = input.byte() % 3;
  const auto dtype = kScales[input.byte() % 3];
  const auto bits = 1 + input.below(8);
  const auto rows = 1 + input.below(70);
  const auto columns = 1 + input.below(1200);
  const auto group = 1 + input.below(columns);
  const auto groups = (columns + group - 1) / group;
  using dormant::decode::words_of;
  if (kind == 0) {
    std::optional<Geometry> g_idx;
    if (input.flag()) {
      g_idx = part({rows}, ScalarType::Int);
    }
    const auto size = 1 + input.below(rows);
    const auto down = (rows + size - 1) / size;
    return std::make_shared<dormant::decode::Gptq>(dormant::decode::Gptq::Layout{
        {bits, size, input.flag()},
        {"layer", part({words_of(rows, bits), columns}, ScalarType::Int),
         part({down, words_of(columns, bits)}, ScalarType::Int), part({down, columns}, dtype),
         g_idx}});
  }
  if (kind == 1) {
    const auto down = 1 + input.below(4);
    const auto words = 1 + columns / 8;
    return std::make_shared<dormant::decode::Awq>(dormant::decode::Awq::Layout{
        rows,
        {"layer", part({down * rows, words}, ScalarType::Int), part({down, words}, ScalarType::Int),
         part({down, words * 8}, dtype)}});
  }
  dormant::decode::PackedIntegers::Layout layout{
      .module = "layer",
      .sizes = {rows, columns},
      .bits = bits,
      .group_size = input.flag() ? group : 0,
      .one_scale = input.byte() % 8 == 0,
      .packed = part({rows, words_of(columns, bits)}, ScalarType::Int),
      .scale = {}};
  const auto across = layout.group_size == 0 || layout.one_scale ? 1 : groups;
  layout.scale = part({layout.one_scale ? 1 : rows, across}, dtype);
  if (input.flag()) {
    layout.zero = input.flag() && !layout.one_scale
                      ? part({words_of(rows, bits), across}, ScalarType::Int)
                      : part(layout.scale.sizes, ScalarType::Char);
  }
  if (input.flag()) {
    layout.g_idx = part({columns}, ScalarType::Int);
  }
  return std::make_shared<dormant::decode::PackedIntegers>(std::move(layout));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  try {
    const auto decoder = decoder_of(input);
    const auto output = decoder->output();
    const auto unit = decoder->unit();
    const auto units = output.numel() / unit;
    const auto first = (input.below(1 << 16) << 8 | input.byte()) % units;
    const auto last = first + (input.below(1 << 16) << 8 | input.byte()) % (units - first);
    const auto begin = first * unit;
    const auto count = (last + 1) * unit - begin;
    const auto parts = decoder->parts();
    std::vector<std::vector<std::byte>> wanted(parts.size());
    std::vector<const void*> elements;
    for (size_t i = 0; i < parts.size(); ++i) {
      std::vector<ElementRun> runs;
      decoder->wanted(i, begin, count, elements, runs);
      dormant::record::check_wanted(*decoder, i, parts[i].numel(), runs);
      int64_t total = 0;
      for (const auto& run : runs) {
        total += run.count;
      }
      wanted[i].resize(static_cast<size_t>(total) * c10::elementSize(parts[i].dtype));
      input.fill(wanted[i]);
      elements.push_back(wanted[i].data());
    }
    std::vector<std::byte> out(static_cast<size_t>(count) * c10::elementSize(output.dtype));
    decoder->run(begin, count, elements, out.data());
  } catch (const c10::ValueError&) {
  }
  return 0;
}
