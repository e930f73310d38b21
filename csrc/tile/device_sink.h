// Lazy tensors straight into the memory of another device.
//
// Tiles are made on the CPU's threads and copied into one of a few buffers, from which the device
// fetches them while the next tiles are made. So the CPU's memory holds these buffers and the
// tiles, never a whole tensor. The copies are PyTorch's own, so any device that PyTorch knows will
// do; where it has pinned memory and events (CUDA, ROCm, XPU, ...), nobody waits for a copy before
// its buffer is needed again.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

#include "system/export.h"
#include "tile/engine.h"
#include "tile/sink.h"

namespace dormant::tile {

/// The memory of a tensor on any device, as the elements lie in it. Any thread may write.
class DORMANT_BINDINGS_API DeviceSink final : public Sink {
 public:
  /// `destination` is contiguous. All buffers together have about `ring_bytes` bytes.
  DeviceSink(const at::Tensor& destination, size_t ring_bytes);
  /// When nobody writes any more: waits for the copies, which read from the buffers.
  ~DeviceSink() override;

  void write(const void* data, size_t nbytes, int64_t offset) const override;

  /// When nobody writes any more: waits for all copies; throws what went wrong on the device.
  void finish();

 private:
  struct Slot {
    at::Tensor buffer;                 ///< one dimension, of the destination's dtype
    std::optional<c10::Event> copied;  ///< recorded behind the last copy from it
  };

  Slot take() const;
  void give_back(Slot slot) const;

  const at::Tensor elements_;  ///< the destination in one dimension
  /// On which copies run meanwhile: the one that was current where the sink was made.
  const std::optional<c10::Stream> stream_;
  int64_t slot_elements_;
  mutable std::mutex mutex_;
  mutable std::condition_variable returned_;
  mutable std::deque<Slot> free_;  ///< the one whose copy began first is at the front
};

/// Writes a lazy tensor to `destination`, a tensor of the same sizes and dtype that is dense on
/// another device. The lazy one stays lazy. Returns how its storage is made, as `materialize`
/// would. Throws what `write` throws, and what the device does.
DORMANT_BINDINGS_API std::vector<Materialized> write_to_device(const at::Tensor& tensor,
                                                               const at::Tensor& destination,
                                                               const MaterializeOptions& options);

}  // namespace dormant::tile
