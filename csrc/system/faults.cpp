#include "system/faults.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

namespace dormant::system {
namespace {

/// Which calls of a kind fail: the `first`, counted from one, or all from it on. None where it is
/// zero.
struct Due {
  uint64_t first = 0;
  bool all_after = false;
};

struct Kind {
  const char* name;
  int error;
  std::atomic<uint64_t> calls{0};
  std::atomic<uint64_t> first{0};
  std::atomic<bool> all_after{false};
};

// In the order of Fault.
std::array<Kind, kFaultKinds> kinds{{{"allocate", ENOMEM, {}, {}, {}},
                                     {"read", EIO, {}, {}, {}},
                                     {"write", ENOSPC, {}, {}, {}},
                                     {"publish", EIO, {}, {}, {}},
                                     {"link", EPERM, {}, {}, {}}}};

/// PyTorch's CPU allocator, but for the calls that are to fail. What it hands out is the inner
/// allocator's own, so that it does not matter which of them is in use when memory is freed; it
/// lives on, because storages remember who allocated them.
class FailingAllocator final : public c10::Allocator {
 public:
  explicit FailingAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t nbytes) override {
    // c10/core/impl/alloc_cpu.cpp says it in these words.
    TORCH_CHECK(!is_due(Fault::allocate),
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", nbytes,
                " bytes. Error code ", ENOMEM, " (", std::strerror(ENOMEM), ")");
    return inner_->allocate(nbytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return inner_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t count) const override {
    inner_->copy_data(to, from, count);
  }
  c10::Allocator* inner() const noexcept { return inner_; }

 private:
  c10::Allocator* const inner_;
};

FailingAllocator& failing_allocator() {
  static auto* allocator = new FailingAllocator(c10::GetCPUAllocator());  // NOLINT: lives on
  return *allocator;
}

void use_failing_allocator(bool wanted) {
  auto* now = c10::GetCPUAllocator();
  if (wanted && now != &failing_allocator()) {
    c10::SetCPUAllocator(&failing_allocator());
  } else if (!wanted && detail::faults_armed && now == &failing_allocator()) {
    c10::SetCPUAllocator(failing_allocator().inner());
  }
}

std::array<Due, kFaultKinds> parse(std::string_view text, std::array<bool, kFaultKinds>& named) {
  std::array<Due, kFaultKinds> due;
  const auto whole = text;
  while (!text.empty()) {
    const auto entry = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), entry.size() + 1));
    const auto colon = entry.find(':');
    size_t kind = 0;
    while (kind < kFaultKinds && kinds[kind].name != entry.substr(0, colon)) {
      ++kind;
    }
    auto number = colon == std::string_view::npos ? std::string_view() : entry.substr(colon + 1);
    const bool all_after = !number.empty() && number.back() == '+';
    number.remove_suffix(all_after ? 1 : 0);
    uint64_t first = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), first);
    TORCH_CHECK_VALUE(
        kind < kFaultKinds && !number.empty() && error == std::errc() &&
            end == number.data() + number.size(),
        "dormant: faults \"", std::string(whole), "\": got \"", std::string(entry),
        "\", expected allocate, read, write, publish or link, a colon and a number, as in "
        "\"read:3,write:2+\"");
    due[kind] = {first, all_after};
    named[kind] = true;
  }
  return due;
}

[[maybe_unused]] const bool from_environment = [] {
  const char* text = std::getenv("DORMANT_FAULTS");  // NOLINT(concurrency-mt-unsafe): at load
  if (text != nullptr) {
    try {
      set_faults(text);
    } catch (const c10::ValueError& error) {
      TORCH_WARN("DORMANT_FAULTS is ignored. ", error.what_without_backtrace());
    }
  }
  return true;
}();

}  // namespace

namespace detail {

std::atomic<bool> faults_armed{false};

bool count_call(Fault fault) noexcept {
  auto& kind = kinds[static_cast<size_t>(fault)];
  const auto call = kind.calls.fetch_add(1, std::memory_order_relaxed) + 1;
  const auto first = kind.first.load(std::memory_order_relaxed);
  if (first == 0 || call < first || (call > first && !kind.all_after)) {
    return false;
  }
  errno = kind.error;
  return true;
}

}  // namespace detail

FaultCounts set_faults(std::string_view text) {
  std::array<bool, kFaultKinds> named{};
  const auto due = parse(text, named);
  use_failing_allocator(named[static_cast<size_t>(Fault::allocate)]);
  detail::faults_armed = false;
  FaultCounts counts{};
  for (size_t i = 0; i < kFaultKinds; ++i) {
    counts[i] = kinds[i].calls.exchange(0);
    kinds[i].first = due[i].first;
    kinds[i].all_after = due[i].all_after;
  }
  detail::faults_armed = !text.empty();
  return counts;
}

void fail_if_due_to_allocate() {
  if (is_due(Fault::allocate)) {
    throw std::bad_alloc();
  }
}

}  // namespace dormant::system
