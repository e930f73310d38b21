// The input is a pickle. Whatever it is, it is refused by c10::ValueError, or every value of it can
// be looked at, and what is contained for ever comes before its container.
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "checkpoint/pickle.h"
#include "checkpoint/pickle_text.h"

namespace {

using dormant::checkpoint::Pickle;
using dormant::checkpoint::PickleId;
using dormant::checkpoint::PickleKind;

void require(bool condition, const char* what) {
  if (!condition) {
    throw std::logic_error(what);
  }
}

void check_value(const Pickle& pickle, PickleId id) {
  const auto exists = [&](PickleId other) { require(other < pickle.size(), "no such value"); };
  const auto before = [&](PickleId other) { require(other < id, "contains what comes later"); };
  require(pickle.offset(id) <= pickle.nbytes(), "a value made outside of the pickle");
  require(!pickle.describe(id).empty(), "a value without a description");
  switch (pickle.kind(id)) {
    case PickleKind::integer:
      require(pickle.integer(id) || pickle.wide_integer(id).size() > 8, "a wide integer is not");
      return;
    case PickleKind::text:
      require(dormant::checkpoint::is_unicode(pickle.text(id)), "text that is not Unicode");
      return;
    case PickleKind::bytes:
    case PickleKind::bytearray:
      require(pickle.text(id).size() <= pickle.nbytes(), "more bytes than there are");
      return;
    case PickleKind::tuple:
    case PickleKind::frozenset:
      for (const auto item : pickle.items(id)) {
        before(item);
      }
      return;
    case PickleKind::dict:
      require(pickle.items(id).size() % 2 == 0, "a key without a value");
      [[fallthrough]];
    case PickleKind::list:
    case PickleKind::set:
      for (const auto item : pickle.items(id)) {
        exists(item);
      }
      return;
    case PickleKind::global:
      require(!pickle.global(id).name.empty(), "a class without a name");
      return;
    case PickleKind::record: {
      const auto& record = pickle.record(id);
      before(record.callable);
      before(record.arguments);
      require(pickle.is(record.arguments, PickleKind::tuple), "arguments that are not a tuple");
      require(record.entries.size() % 2 == 0, "a key without a value");
      for (const auto item : record.items) {
        exists(item);
      }
      for (const auto item : record.entries) {
        exists(item);
      }
      exists(record.state.value_or(0));
      before(record.keywords.value_or(0));
      return;
    }
    case PickleKind::persistent:
      before(pickle.persistent(id));
      return;
    default:
      return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto pickle = Pickle::parse({reinterpret_cast<const char*>(data), size}, "input");
    require(pickle.root() < pickle.size(), "no root");
    require(pickle.nbytes() <= size, "a pickle longer than its bytes");
    for (PickleId id = 0; id < pickle.size(); ++id) {
      check_value(pickle, id);
    }
  } catch (const c10::ValueError&) {
  }
  return 0;
}
