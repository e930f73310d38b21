#include "tile/device_sink.h"

#include <ATen/ops/empty.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <utility>

#include "system/dispatch_state.h"

namespace dormant::tile {
namespace {

constexpr size_t kSlots = 4;
constexpr size_t kRingBytes = kSlots * 8 * 1024 * 1024;
// Of a budget, the ring gets this share, the tiles the rest.
constexpr size_t kShare = 4;

/// The stream on which copies from pinned memory run while the CPU goes on; empty where the device
/// has no such memory, or no events that tell when a copy is done. The device itself is asked.
std::optional<c10::Stream> stream_of_copies(const at::Tensor& destination) {
  if (destination.is_cpu()) {
    return {};
  }
  const auto device = destination.device();
  try {
    const auto stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
    c10::Event(device.type()).record(stream);
    at::empty({1}, destination.options().device(at::kCPU).pinned_memory(true));
    return stream;
  } catch (const c10::Error&) {
    return {};
  }
}

/// The dimensions in the order in which they lie in memory, the outermost first.
std::vector<int64_t> dimensions_by_stride(const at::Tensor& tensor) {
  std::vector<int64_t> order(static_cast<size_t>(tensor.dim()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return tensor.stride(a) > tensor.stride(b); });
  return order;
}

}  // namespace

DeviceSink::DeviceSink(const at::Tensor& destination, size_t ring_bytes)
    : elements_(destination.view({-1})), stream_(stream_of_copies(destination)) {
  const auto itemsize = elements_.element_size();
  slot_elements_ = static_cast<int64_t>(std::max<size_t>(1, ring_bytes / kSlots / itemsize));
  const auto pieces = (elements_.numel() + slot_elements_ - 1) / slot_elements_;
  const auto slots = std::min<int64_t>(kSlots, pieces);
  slot_elements_ = std::min(slot_elements_, elements_.numel());
  const auto options = elements_.options().device(at::kCPU).pinned_memory(stream_.has_value());
  for (int64_t i = 0; i < slots; ++i) {
    free_.push_back({at::empty({slot_elements_}, options), std::nullopt});
  }
}

DeviceSink::~DeviceSink() {
  try {
    finish();
  } catch (...) {  // after an error, which is on its way already
  }
}

void DeviceSink::write(const void* data, size_t nbytes, int64_t offset) const {
  const system::PlainDispatch plain;
  const c10::OptionalStreamGuard on_stream(stream_);
  const auto itemsize = static_cast<int64_t>(elements_.element_size());
  TORCH_INTERNAL_ASSERT(offset % itemsize == 0 && static_cast<int64_t>(nbytes) % itemsize == 0);
  const auto* from = static_cast<const std::byte*>(data);
  const auto end = (offset + static_cast<int64_t>(nbytes)) / itemsize;
  for (auto element = offset / itemsize; element < end;) {
    const auto count = std::min(slot_elements_, end - element);
    const auto count_bytes = static_cast<size_t>(count * itemsize);
    auto slot = take();
    try {
      if (slot.copied) {
        slot.copied->synchronize();
      }
      std::memcpy(slot.buffer.mutable_data_ptr(), from, count_bytes);
      elements_.narrow(0, element, count)
          .copy_(slot.buffer.narrow(0, 0, count), /*non_blocking=*/stream_.has_value());
      if (stream_) {
        slot.copied.emplace(stream_->device_type());
        slot.copied->record(*stream_);
      }
    } catch (...) {
      give_back(std::move(slot));
      throw;
    }
    give_back(std::move(slot));
    from += count_bytes;
    element += count;
  }
}

void DeviceSink::finish() {
  for (auto& slot : free_) {
    if (slot.copied) {
      slot.copied->synchronize();
    }
  }
}

DeviceSink::Slot DeviceSink::take() const {
  std::unique_lock<std::mutex> lock(mutex_);
  returned_.wait(lock, [&] { return !free_.empty(); });
  auto slot = std::move(free_.front());
  free_.pop_front();
  return slot;
}

void DeviceSink::give_back(Slot slot) const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(slot));
  }
  returned_.notify_one();
}

std::vector<Materialized> write_to_device(const at::Tensor& tensor, const at::Tensor& destination,
                                          const MaterializeOptions& wanted) {
  TORCH_CHECK_VALUE(tensor.sizes() == destination.sizes() && tensor.dtype() == destination.dtype(),
                    "write_to_device: the destination has sizes ", destination.sizes(),
                    " and dtype ", destination.dtype(), "; expected ", tensor.sizes(), " and ",
                    tensor.dtype(), ".");
  const system::PlainDispatch plain;
  auto made = planned(tensor, wanted);
  if (tensor.numel() == 0) {
    return made;
  }
  const auto order = dimensions_by_stride(destination);
  const auto in_memory = destination.permute(order);
  TORCH_CHECK_VALUE(in_memory.is_contiguous(), "write_to_device: the destination with sizes ",
                    destination.sizes(), " and strides ", destination.strides(),
                    " is not dense; expected memory without gaps and overlaps.");
  const auto ring =
      wanted.memory_budget ? std::min(kRingBytes, *wanted.memory_budget / kShare) : kRingBytes;
  const auto start = std::chrono::steady_clock::now();
  DeviceSink sink(in_memory, ring);
  write({{tensor.permute(order), 0}}, sink,
        {.memory_budget = wanted.memory_budget,
         .on_bytes = wanted.on_step,
         .operation = "materialize",
         .sink_bytes = ring});
  sink.finish();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  for (auto& each : made) {
    each.seconds = seconds.count();
  }
  return made;
}

}  // namespace dormant::tile
