// Dormant for libtorch: construct a model without memory or time, then materialize it bit-identical
// to eager construction.
//
//   dormant::LazyInit guard;                 // factories on this thread now give lazy tensors
//   auto model = MyModel();                  // unmodified code; allocates nothing
//   ...guard goes out of scope...
//   dormant::materialize(model);             // every Parameter object stays the same
#pragma once

#include <ATen/core/Tensor.h>
#include <dormant/export.h>
#include <dormant/version.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace dormant {

/// While one exists, tensors that this thread creates on the CPU are lazy: they have a shape and a
/// history, but no memory. Can be nested. Construction and destruction must happen on the same
/// thread, in order.
class DORMANT_API LazyInit {
 public:
  LazyInit();
  ~LazyInit();
  LazyInit(const LazyInit&) = delete;
  LazyInit& operator=(const LazyInit&) = delete;

 private:
  bool before_;
};

/// Whether the tensor's storage has no memory yet. False for an undefined tensor.
DORMANT_API bool is_lazy(const at::Tensor& tensor) noexcept;

enum class Values : uint8_t {
  exact,  ///< what eager construction would have given, bit for bit
  fast,   ///< other values of the same distributions, at the speed of memory
  empty,  ///< memory without values
};

/// Whether a tensor that is nothing but bytes of a file, in the file's dtype, may map them in
/// place, privately, instead of copying them.
enum class Mmap : uint8_t {
  /// Maps if the system makes programs that write to the file later wait until the tensors have
  /// copies (file leases of Linux); not on a network filesystem.
  automatic,
  /// Maps if the system can; bytes that are misaligned for their dtype are still copied. If the
  /// file is rewritten in place later and there is no lease, the tensor changes, or the process is
  /// killed by SIGBUS.
  always,
  never,
};

struct MaterializeOptions {
  Values values = Values::exact;
  /// The most bytes that may be taken besides the final tensors. If it is too small, materialize
  /// throws c10::ValueError, which says the minimum.
  std::optional<size_t> memory_budget;
  Mmap mmap = Mmap::automatic;
  /// Called with (done, total) bytes, and with (0, 0) while another thread materializes the same
  /// storage. An exception that is thrown here stops the work and leaves materialize. What was not
  /// finished stays lazy.
  std::function<void(size_t done, size_t total)> on_step;
};

struct Report {
  size_t storages = 0;   ///< storages that were materialized in this call
  size_t bytes = 0;      ///< their size
  size_t operators = 0;  ///< recorded operators that were run for them
};

/// Materializes the storages of `tensors`, each once and atomically; tensors that are already real
/// are unchanged. Throws what a replayed operator throws, including c10::OutOfMemoryError; finished
/// storages are then real, and the others are as lazy as before.
DORMANT_API Report materialize(const std::vector<at::Tensor>& tensors,
                               const MaterializeOptions& options = {});

inline Report materialize(const at::Tensor& tensor, const MaterializeOptions& options = {}) {
  return materialize(std::vector<at::Tensor>{tensor}, options);
}

/// Materializes all parameters and buffers of a torch::nn::Module and its children.
template <typename Module>
  requires requires(const Module& module) {
    module.parameters(true);
    module.buffers(true);
  }
Report materialize(const Module& module, const MaterializeOptions& options = {}) {
  auto tensors = module.parameters(true);
  const auto buffers = module.buffers(true);
  tensors.insert(tensors.end(), buffers.begin(), buffers.end());
  return materialize(tensors, options);
}

/// The same for a module holder (torch::nn::Linear and the like) or a shared_ptr to a module.
template <typename Holder>
  requires requires(const Holder& holder) {
    holder->parameters(true);
    holder->buffers(true);
  }
Report materialize(const Holder& holder, const MaterializeOptions& options = {}) {
  return materialize(*holder, options);
}

}  // namespace dormant
