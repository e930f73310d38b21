#include "checkpoint/safetensors.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "checkpoint/file.h"
#include "checkpoint/safetensors_dtypes.h"
#include "checkpoint/safetensors_layout.h"
#include "text/json_reader.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

constexpr uint64_t kLengthBytes = 8;
// { name: { "shape": [ ... ] } }
constexpr size_t kDeepest = 3;
constexpr const char* kDamaged =
    "Cause: the file is damaged or incomplete, or has another format. Next: download or save it "
    "again.";

// The format's dtypes whose elements share bytes, and that PyTorch has nothing for.
constexpr std::array<std::string_view, 2> kPacked = {"F6_E2M3", "F6_E3M2"};

/// a * b, unless it does not fit a signed 64-bit integer, as PyTorch counts elements and bytes.
std::optional<int64_t> product(int64_t a, int64_t b) {
  int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) {
    return std::nullopt;
  }
  return result;
}

class HeaderReader final : public text::JsonHandler {
 public:
  HeaderReader(const std::string& file, uint64_t header_size, uint64_t file_size)
      : file_(file), data_begin_(kLengthBytes + header_size), data_size_(file_size - data_begin_) {}

  void begin_object() override {
    switch (state_) {
      case State::outside:
        state_ = State::names;
        return;
      case State::name:
        state_ = is_metadata() ? State::metadata : State::fields;
        sizes_.reset();
        offsets_.reset();
        dtype_ = nullptr;
        return;
      default:
        unexpected("an object");
    }
  }

  void end_object() override {
    if (state_ == State::fields) {
      finish_tensor();
    }
    state_ = state_ == State::names ? State::outside : State::names;
  }

  void begin_array() override {
    if (state_ == State::shape) {
      sizes_.emplace();
    } else if (state_ == State::offsets) {
      offsets_.emplace();
    } else {
      unexpected("an array");
    }
    in_array_ = true;
  }

  void end_array() override {
    in_array_ = false;
    state_ = State::fields;
  }

  void key(std::string& name) override {
    switch (state_) {
      case State::names:
        TORCH_CHECK_VALUE(!name.empty(), "open_checkpoint: ", file_,
                          ": a tensor without a name before byte ", position(), ", expected text. ",
                          kDamaged);
        name_ = std::move(name);
        state_ = State::name;
        return;
      case State::metadata:
        field_ = std::move(name);
        return;
      default:
        field_ = std::move(name);
        state_ = field_ == "dtype"          ? State::dtype
                 : field_ == "shape"        ? State::shape
                 : field_ == "data_offsets" ? State::offsets
                                            : State::unknown;
        TORCH_CHECK_VALUE(state_ != State::unknown, tensor(), ": unknown field ",
                          text::in_quotes(field_), " before byte ", position(),
                          ", expected 'dtype', 'shape' and 'data_offsets'. Cause: the file is "
                          "damaged, or has a newer format.");
    }
  }

  void string(std::string& value) override {
    if (state_ == State::metadata) {
      header_.metadata.emplace(field_, std::move(value));
    } else if (state_ == State::dtype) {
      dtype_ = dtype_named(value);
      state_ = State::fields;
    } else {
      unexpected("the string " + text::in_quotes(value));
    }
  }

  void integer(uint64_t value) override {
    if (!in_array_) {
      unexpected(std::to_string(value));
    }
    if (state_ == State::offsets) {
      TORCH_CHECK_VALUE(offsets_->size() < 2, tensor(), ": data_offsets has a third number, ",
                        value, ", before byte ", position(), ", expected 2. ", kDamaged);
      offsets_->push_back(value);
      return;
    }
    TORCH_CHECK_VALUE(sizes_->size() < kMostDimensions, tensor(), ": shape has more than ",
                      kMostDimensions, " dimensions before byte ", position(),
                      ", expected at most ", kMostDimensions,
                      ". Cause: the file is damaged, or was not written for PyTorch.");
    TORCH_CHECK_VALUE(value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()), tensor(),
                      ": shape has the size ", value, " before byte ", position(),
                      ", expected at most ", std::numeric_limits<int64_t>::max(), ". ", kDamaged);
    sizes_->push_back(static_cast<int64_t>(value));
  }

  void number(const std::string& text) override { unexpected(text); }
  void literal(const char* text) override { unexpected(text); }

  /// Every byte behind the header belongs to exactly one tensor.
  Safetensors finish() {
    auto& entries = header_.entries;
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::tie(a.offset, a.nbytes, a.name) < std::tie(b.offset, b.nbytes, b.name);
    });
    auto end = data_begin_;
    const Entry* before = nullptr;
    for (const auto& entry : entries) {
      name_ = entry.name;
      const auto previous =
          before == nullptr ? "the header" : "tensor " + text::in_quotes(before->name);
      TORCH_CHECK_VALUE(entry.offset >= end, tensor(), ": its bytes start at ", entry.offset,
                        ", expected ", end, ", where ", previous, " ends, so they overlap. ",
                        kDamaged);
      TORCH_CHECK_VALUE(entry.offset == end, tensor(), ": its bytes start at ", entry.offset,
                        ", expected ", end, ", where ", previous, " ends: a hole of ",
                        entry.offset - end, " bytes. ", kDamaged);
      end += entry.nbytes;
      before = &entry;
    }
    const auto file_size = data_begin_ + data_size_;
    TORCH_CHECK_VALUE(end == file_size, "open_checkpoint: ", file_,
                      ": the last tensor ends at byte ", end, ", the file at ", file_size, ": ",
                      file_size - end, " bytes belong to no tensor. ", kDamaged);
    return std::move(header_);
  }

 private:
  /// What is read next.
  enum class State : uint8_t {
    outside,
    names,     ///< names of tensors
    name,      ///< the object behind one
    metadata,  ///< its names and strings
    fields,    ///< those of a tensor
    dtype,
    shape,
    offsets,
    unknown,
  };

  bool is_metadata() const { return name_ == kSafetensorsMetadata; }

  std::string tensor() const {
    return "open_checkpoint: " + file_ + ": tensor " + text::in_quotes(name_);
  }

  [[noreturn]] void unexpected(const std::string& got) const {
    switch (state_) {
      case State::name:
        TORCH_CHECK_VALUE(false, tensor(), ": ", got, " before byte ", position(),
                          ", expected an object. ", kDamaged);
      case State::metadata:
        TORCH_CHECK_VALUE(false, "open_checkpoint: ", file_, ": ", kSafetensorsMetadata, ": ",
                          text::in_quotes(field_), " is ", got, " before byte ", position(),
                          ", expected a string. ", kDamaged);
      default:
        TORCH_CHECK_VALUE(false, tensor(), ": ", text::in_quotes(field_), " has ", got,
                          " before byte ", position(), ", expected ",
                          state_ == State::dtype ? "a string"
                          : in_array_            ? "a non-negative integer"
                                                 : "an array",
                          ". ", kDamaged);
    }
  }

  const SafetensorsDtype* dtype_named(const std::string& name) const {
    if (const auto* found = find_safetensors_dtype(name)) {
      return found;
    }
    const bool packed = std::find(kPacked.begin(), kPacked.end(), name) != kPacked.end();
    std::string known;
    for (const auto& dtype : kSafetensorsDtypes) {
      known += (known.empty() ? "" : ", ") + std::string(dtype.name);
    }
    TORCH_CHECK_VALUE(false, tensor(), ": dtype ", text::in_quotes(name), " before byte ",
                      position(), ", expected one of ", known, ". Cause: ",
                      packed ? "its elements share bytes, which dormant does not read. Next: "
                               "unpack it with the library that wrote it."
                             : "the file is damaged, or has a newer format.");
  }

  void finish_tensor() {
    const char* missing = !dtype_     ? "dtype"
                          : !sizes_   ? "shape"
                          : !offsets_ ? "data_offsets"
                                      : nullptr;
    TORCH_CHECK_VALUE(missing == nullptr, tensor(), ": it ends before byte ", position(),
                      " without the field '", missing, "'. ", kDamaged);
    TORCH_CHECK_VALUE(offsets_->size() == 2, tensor(), ": data_offsets has ", offsets_->size(),
                      " numbers before byte ", position(), ", expected 2. ", kDamaged);
    const auto [begin, end] = std::pair(offsets_->at(0), offsets_->at(1));
    TORCH_CHECK_VALUE(begin <= end && end <= data_size_, tensor(), ": data_offsets ", begin, " to ",
                      end, " before byte ", position(), ", expected a range within the ",
                      data_size_, " bytes after the header. ", kDamaged);
    const auto type = dtype_->type;
    if (dtype_->packed > 1) {
      TORCH_CHECK_VALUE(!sizes_->empty() && sizes_->back() % dtype_->packed == 0, tensor(),
                        ": shape ", c10::IntArrayRef(*sizes_), " before byte ", position(),
                        ", expected a last dimension that is a multiple of ", dtype_->packed,
                        ": PyTorch keeps as many elements of ", dtype_->name, " in a byte. ",
                        kDamaged);
      sizes_->back() /= dtype_->packed;
    }
    // The strides of a tensor without elements count its other sizes, so these must not overflow.
    std::optional<int64_t> numel = 1;
    std::optional<int64_t> extent = static_cast<int64_t>(c10::elementSize(type));
    for (const auto size : *sizes_) {
      numel = numel ? product(*numel, size) : std::nullopt;
      extent = extent ? product(*extent, std::max<int64_t>(size, 1)) : std::nullopt;
    }
    TORCH_CHECK_VALUE(numel && extent, tensor(), ": shape ", c10::IntArrayRef(*sizes_),
                      " before byte ", position(), " overflows, expected at most ",
                      std::numeric_limits<int64_t>::max(), " bytes. ", kDamaged);
    const auto nbytes = static_cast<uint64_t>(*numel) * c10::elementSize(type);
    TORCH_CHECK_VALUE(end - begin == nbytes, tensor(), ": data_offsets ", begin, " to ", end,
                      " before byte ", position(), " are ", end - begin, " bytes, expected ",
                      nbytes, " for shape ", c10::IntArrayRef(*sizes_), " of ", type, ". ",
                      kDamaged);
    header_.entries.push_back(
        {std::move(name_), type, std::move(*sizes_), data_begin_ + begin, nbytes});
  }

  const std::string& file_;
  const uint64_t data_begin_;
  const uint64_t data_size_;
  Safetensors header_;
  State state_ = State::outside;
  bool in_array_ = false;
  std::string name_;
  std::string field_;
  const SafetensorsDtype* dtype_ = nullptr;
  std::optional<std::vector<int64_t>> sizes_;
  std::optional<std::vector<uint64_t>> offsets_;
};

}  // namespace

uint64_t safetensors_header_size(std::string_view first_bytes, uint64_t file_size,
                                 const std::string& file) {
  TORCH_CHECK_VALUE(file_size >= kLengthBytes && first_bytes.size() >= kLengthBytes,
                    "open_checkpoint: ", file, ": the file has ", file_size,
                    " bytes, expected at least ", kLengthBytes, " for the length of the header. ",
                    kDamaged);
  uint64_t size = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    size |= static_cast<uint64_t>(static_cast<uint8_t>(first_bytes[i])) << (8 * i);
  }
  TORCH_CHECK_VALUE(size <= file_size - kLengthBytes, "open_checkpoint: ", file,
                    ": the header has ", size, " bytes by the number at byte 0, expected at most ",
                    file_size - kLengthBytes, " in a file of ", file_size, " bytes. ", kDamaged);
  TORCH_CHECK_VALUE(size <= kLongestHeader, "open_checkpoint: ", file, ": the header has ", size,
                    " bytes by the number at byte 0, expected at most ", kLongestHeader,
                    ", the format's limit. ", kDamaged);
  return size;
}

Safetensors parse_safetensors_header(std::string_view header, uint64_t file_size,
                                     const std::string& file) {
  TORCH_CHECK_VALUE(file_size >= kLengthBytes && header.size() <= file_size - kLengthBytes,
                    "open_checkpoint: ", file, ": a header of ", header.size(),
                    " bytes in a file of ", file_size, " bytes. ", kDamaged);
  HeaderReader reader(file, header.size(), file_size);
  text::read_json_object({header, file, "the header", kLengthBytes}, kDeepest, reader);
  return reader.finish();
}

Safetensors read_safetensors_header(const File& file) {
  std::string length(std::min(file.size(), kLengthBytes), '\0');
  file.read(0, length.size(), length.data());
  std::string header(safetensors_header_size(length, file.size(), file.name()), '\0');
  file.read(kLengthBytes, header.size(), header.data());
  return parse_safetensors_header(header, file.size(), file.name());
}

}  // namespace dormant::checkpoint
