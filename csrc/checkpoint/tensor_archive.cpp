#include "checkpoint/tensor_archive.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "checkpoint/pickle.h"
#include "checkpoint/torch_names.h"
#include "checkpoint/zip_directory.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

constexpr uint64_t kLongestTensorPickle = uint64_t{1} << 20;
constexpr uint64_t kLongestByteOrder = 64;

/// Elements of a storage, as the pickle describes them.
struct Described {
  std::string key;
  c10::ScalarType dtype;
  uint64_t nbytes;  ///< of the storage
  int64_t offset;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
};

/// What `torch._utils._rebuild_tensor_v2` and `_v3` would make: of a persistent storage, an offset,
/// sizes and strides (torch/_tensor.py, `_reduce_ex_internal`).
class Reader {
 public:
  Reader(const Pickle& pickle, const std::string& where) : pickle_(pickle), where_(where) {}

  Described read() const {
    const auto root = pickle_.root();
    const bool is_v2 = pickle_.is_call(root, "torch._utils", "_rebuild_tensor_v2");
    const bool is_v3 = pickle_.is_call(root, "torch._utils", "_rebuild_tensor_v3");
    TORCH_CHECK_NOT_IMPLEMENTED(
        is_v2 || is_v3, "dormant: open_checkpoint: ", where_, " is ", pickle_.describe(root),
        ", expected a strided tensor. Next: load it with torch.distributed.checkpoint.");
    const auto arguments = pickle_.items(pickle_.record(root).arguments);
    if (arguments.size() < (is_v3 ? 7U : 6U)) {
      refuse(root, "a call with more arguments");
    }
    Described found{};
    found.offset = integer(arguments[1]);
    found.sizes = integers(arguments[2]);
    found.strides = integers(arguments[3]);
    const auto storage = arguments[0];
    if (!pickle_.is(storage, PickleKind::persistent) ||
        !pickle_.is(pickle_.persistent(storage), PickleKind::tuple)) {
      refuse(storage, "a storage");
    }
    const auto facts = pickle_.items(pickle_.persistent(storage));
    if (facts.size() != 5 || !is_text(facts[0], "storage") ||
        !pickle_.is(facts[1], PickleKind::global) || !pickle_.is(facts[2], PickleKind::text)) {
      refuse(storage, "('storage', class, key, device, number of elements)");
    }
    found.key = pickle_.text(facts[2]);
    const auto count = integer(facts[4]);
    const auto dtype = is_v3 ? dtype_of(arguments[6]) : storage_dtype_of(facts[1]);
    if (!dtype || (is_v3 && !is_torch(facts[1], "UntypedStorage"))) {
      refuse(is_v3 ? arguments[6] : facts[1], "a dtype");
    }
    found.dtype = *dtype;
    const auto itemsize = is_v3 ? 1 : c10::elementSize(*dtype);
    if (static_cast<uint64_t>(count) > std::numeric_limits<uint64_t>::max() / itemsize) {
      refuse(facts[4], "a size that can be counted");
    }
    found.nbytes = static_cast<uint64_t>(count) * itemsize;
    return found;
  }

 private:
  [[noreturn]] void refuse(PickleId id, const char* expected) const {
    TORCH_CHECK_VALUE(false, "dormant: open_checkpoint: ", where_, ": its pickle has ",
                      pickle_.describe(id), " at byte ", pickle_.offset(id), ", expected ",
                      expected, ". Cause: the file is damaged. Next: get it again.");
  }
  bool is_text(PickleId id, std::string_view text) const {
    return pickle_.is(id, PickleKind::text) && pickle_.text(id) == text;
  }
  bool is_torch(PickleId id, std::string_view name) const {
    return pickle_.is_global(id, "torch", name) || pickle_.is_global(id, "torch.storage", name);
  }
  std::optional<c10::ScalarType> dtype_of(PickleId id) const {
    if (!pickle_.is(id, PickleKind::global) || pickle_.global(id).module != "torch") {
      return std::nullopt;
    }
    return checkpoint::dtype_of(pickle_.global(id).name);
  }
  std::optional<c10::ScalarType> storage_dtype_of(PickleId id) const {
    return pickle_.global(id).module == "torch"
               ? checkpoint::storage_dtype_of(pickle_.global(id).name)
               : std::nullopt;
  }
  int64_t integer(PickleId id) const {
    const auto value = pickle_.is(id, PickleKind::integer) ? pickle_.integer(id) : std::nullopt;
    if (!value || *value < 0) {
      refuse(id, "a number that is not negative");
    }
    return *value;
  }
  std::vector<int64_t> integers(PickleId id) const {
    if (!pickle_.is(id, PickleKind::tuple)) {
      refuse(id, "a tuple of numbers");
    }
    std::vector<int64_t> values;
    for (const auto item : pickle_.items(id)) {
      values.push_back(integer(item));
    }
    return values;
  }

  const Pickle& pickle_;
  const std::string& where_;
};

/// Bytes from the beginning of a storage to the end of its last element; none where that overflows.
std::optional<uint64_t> end_of(const Described& tensor) {
  int64_t last = tensor.offset;
  for (size_t i = 0; i < tensor.sizes.size(); ++i) {
    int64_t step = 0;
    if (__builtin_mul_overflow(tensor.sizes[i] - 1, tensor.strides[i], &step) ||
        __builtin_add_overflow(last, step, &last)) {
      return std::nullopt;
    }
  }
  const auto itemsize = static_cast<int64_t>(c10::elementSize(tensor.dtype));
  int64_t end = 0;
  if (__builtin_add_overflow(last, 1, &end) || __builtin_mul_overflow(end, itemsize, &end)) {
    return std::nullopt;
  }
  return static_cast<uint64_t>(end);
}

}  // namespace

PiecePlace TensorArchives::locate(const Piece& piece, c10::ScalarType dtype,
                                  const std::string& what) const {
  const auto where =
      piece.file->name() + " at byte " + std::to_string(piece.offset) + " (" + what + ")";
  const ZipDirectory archive(*piece.file, piece.offset, piece.length, where);
  const auto refuse = [&](const std::string& text) {
    TORCH_CHECK_VALUE(false, "dormant: open_checkpoint: ", where, ": ", text,
                      ". Cause: .metadata and the file are of different checkpoints, or damaged. "
                      "Next: get them again.");
  };
  const auto* document = archive.find("data.pkl");
  if (document == nullptr) {
    refuse("got an archive without a record NAME/data.pkl, expected one of torch.save");
  }
  if (const auto* order = archive.find("byteorder")) {
    if (const auto text = archive.read(*order, kLongestByteOrder); text != "little") {
      refuse("got numbers of byte order " + text::in_quotes(text) + ", expected 'little'");
    }
  }
  const auto pickle = Pickle::parse(archive.read(*document, kLongestTensorPickle), where);
  const auto tensor = Reader(pickle, where).read();
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < piece.box.begin.size(); ++i) {
    sizes.push_back(piece.box.end[i] - piece.box.begin[i]);
  }
  if (tensor.dtype != dtype || tensor.sizes != sizes || tensor.strides.size() != sizes.size()) {
    std::string list;
    for (const auto size : tensor.sizes) {
      list += (list.empty() ? "" : ", ") + std::to_string(size);
    }
    refuse(c10::str("got a tensor of ", tensor.dtype, " and sizes [", list, "], expected ", dtype));
  }
  const auto* record = archive.find("data/" + tensor.key);
  if (record == nullptr || record->nbytes != tensor.nbytes) {
    refuse("got " + (record == nullptr ? "no" : std::to_string(record->nbytes)) +
           " bytes of storage " + text::in_quotes(tensor.key) + ", expected " +
           std::to_string(tensor.nbytes));
  }
  const auto end = end_of(tensor);
  if (!end || *end > tensor.nbytes) {
    refuse("its strides lead out of the " + std::to_string(tensor.nbytes) +
           " bytes of its storage");
  }
  const auto begin = static_cast<uint64_t>(tensor.offset) * c10::elementSize(dtype);
  return {archive.place(*record) + begin, tensor.strides};
}

}  // namespace dormant::checkpoint
