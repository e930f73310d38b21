// A device for machines without a GPU, with a stream, events and pinned memory. It takes the name
// "hpu": PyTorch treats tensors there as it treats those of CUDA, and has no kernels for them. Its
// memory is the CPU's, but its addresses are not: code that takes them for the CPU's crashes.
// Operators without a kernel here run on the CPU, between two copies.
//
// Copies from pinned memory are made later, in order, on a thread of the device, which waits before
// each one: code that reads or reuses memory without waiting for a copy gets wrong values.
#include <ATen/EmptyTensor.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/HPUHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr auto kType = c10::DeviceType::HPU;
constexpr auto kLateness = std::chrono::milliseconds(1);

// What tests ask for; -1: never.
std::atomic<int64_t> allocations_left{-1};
std::atomic<int64_t> copies_left{-1};

/// Whether it is the turn of what was asked to fail.
bool fails(std::atomic<int64_t>& left) {
  auto now = left.load();
  while (now > 0 && !left.compare_exchange_weak(now, now - 1)) {
  }
  return now == 0;
}

/// Work that is done later, in order.
class Queue {
 public:
  using Ticket = uint64_t;

  static Queue& get() {
    static auto* queue = new Queue;  // its thread never ends
    return *queue;
  }

  Ticket add(std::function<void()> work) {
    const std::lock_guard<std::mutex> lock(mutex_);
    works_.push_back(std::move(work));
    changed_.notify_all();
    return ++added_;
  }

  Ticket last() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return added_;
  }

  bool is_done(Ticket ticket) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return done_ >= ticket;
  }

  /// Throws what went wrong on the device so far, as a GPU does, at whoever waits first.
  void wait(Ticket ticket) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return done_ >= ticket; });
    if (error_) {
      const auto error = std::exchange(error_, std::nullopt);
      lock.unlock();
      TORCH_CHECK(false, *error);
    }
  }

 private:
  Queue() {
    std::thread([this] { run(); }).detach();
  }

  void run() {
    const c10::AutoGradMode no_grad(false);
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return !works_.empty(); });
      auto work = std::move(works_.front());
      works_.pop_front();
      lock.unlock();
      std::optional<std::string> error;
      try {
        work();
      } catch (const std::exception& raised) {
        error = raised.what();
      }
      work = nullptr;  // what it holds is released before it counts as done
      lock.lock();
      if (error) {
        error_ = std::move(error);
      }
      ++done_;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> works_;
  Ticket added_ = 0;
  Ticket done_ = 0;
  std::optional<std::string> error_;
};

void* allocated(size_t nbytes) {
  auto* memory = std::malloc(std::max<size_t>(nbytes, 1));
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

// An address of the device has this bit, which no address of the CPU has.
constexpr uintptr_t kTag = uintptr_t{1} << 62;

void* as_on_device(void* memory) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(memory) | kTag);
}

void* as_on_cpu(const void* address) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) & ~kTag);
}

class DeviceMemory final : public c10::Allocator {
 public:
  static DeviceMemory& get() {
    static DeviceMemory memory;
    return memory;
  }
  c10::DataPtr allocate(size_t nbytes) override {
    TORCH_CHECK_WITH(OutOfMemoryError, !fails(allocations_left), "fake: out of memory");
    auto* memory = allocated(nbytes);
    return {as_on_device(memory), memory, &std::free, c10::Device(kType, 0)};
  }
  void copy_data(void* to, const void* from, size_t nbytes) const override {
    default_copy_data(as_on_cpu(to), as_on_cpu(from), nbytes);
  }
};

/// Memory of the CPU that the device reads while the CPU goes on.
class PinnedMemory final : public at::HostAllocator {
 public:
  static PinnedMemory& get() {
    static auto* memory = new PinnedMemory;  // tensors may outlive what is destroyed at exit
    return *memory;
  }
  c10::DataPtr allocate(size_t nbytes) override {
    auto* memory = static_cast<char*>(allocated(nbytes));
    const std::lock_guard<std::mutex> lock(mutex_);
    ends_[memory] = memory + std::max<size_t>(nbytes, 1);
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  bool has(const void* pointer) {
    const auto* at = static_cast<const char*>(pointer);
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto behind = ends_.upper_bound(at);
    return behind != ends_.begin() && at < std::prev(behind)->second;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t nbytes) const override {
    default_copy_data(to, from, nbytes);
  }
  bool record_event(void* /*pointer*/, void* /*context*/, c10::Stream /*stream*/) override {
    return true;
  }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}

 private:
  static void release(void* memory) {
    auto& self = get();
    {
      const std::lock_guard<std::mutex> lock(self.mutex_);
      self.ends_.erase(static_cast<char*>(memory));
    }
    std::free(memory);
  }

  std::mutex mutex_;
  std::map<const char*, const char*> ends_;
};

/// An event is the ticket of the last work before it.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device /*device*/) const override { return getDevice(); }
  c10::Device getDevice() const override { return {kType, 0}; }
  void setDevice(c10::Device /*device*/) const override {}
  void uncheckedSetDevice(c10::Device /*device*/) const noexcept override {}
  c10::Stream getStream(c10::Device /*device*/) const override {
    return c10::Stream(c10::Stream::DEFAULT, getDevice());
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream /*stream*/) const override {
    return getStream(getDevice());
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream& /*stream*/, c10::DeviceIndex /*device*/,
              c10::EventFlag /*flag*/) const override {
    if (*event == nullptr) {
      *event = new Queue::Ticket;
    }
    *static_cast<Queue::Ticket*>(*event) = Queue::get().last();
  }
  void block(void* /*event*/, const c10::Stream& /*stream*/) const override {}
  bool queryEvent(void* event) const override {
    return event == nullptr || Queue::get().is_done(*static_cast<Queue::Ticket*>(event));
  }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) {
      Queue::get().wait(*static_cast<Queue::Ticket*>(event));
    }
  }
  void synchronizeStream(const c10::Stream& /*stream*/) const override {
    Queue::get().wait(Queue::get().last());
  }
  void synchronizeDevice(c10::DeviceIndex /*device*/) const override {
    Queue::get().wait(Queue::get().last());
  }
  void destroyEvent(void* event, c10::DeviceIndex /*device*/) const noexcept override {
    delete static_cast<Queue::Ticket*>(event);
  }
};

C10_REGISTER_GUARD_IMPL(HPU, Guard)

struct Hooks final : at::HPUHooksInterface {
  explicit Hooks(at::HPUHooksArgs /*arguments*/) {}
  void init() const override {}
  bool hasHPU() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex /*device*/) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex /*device*/) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex /*device*/) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex /*device*/) const override { return 0; }
  bool isPinnedPtr(const void* pointer) const override { return PinnedMemory::get().has(pointer); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &PinnedMemory::get(); }
};

}  // namespace

namespace at {
using HPUHooks = ::Hooks;
REGISTER_HPU_HOOKS(HPUHooks)  // PyTorch looks for this name
}  // namespace at

namespace {

/// The elements of a tensor as one of the CPU. Holds the memory, unless it is `borrowed`.
at::Tensor on_cpu(const at::Tensor& tensor, bool borrowed = false) {
  const auto options = tensor.options().device(c10::kCPU).pinned_memory(false);
  auto* data = as_on_cpu(tensor.const_data_ptr());
  auto holder =
      borrowed ? std::function<void(void*)>([](void*) {}) : [storage = tensor.storage()](void*) {};
  return at::from_blob(data, tensor.sizes(), tensor.strides(), std::move(holder), options);
}

std::mutex sizes_mutex;
std::vector<int64_t> sizes;  // bytes of each copy from the CPU

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const bool reads_cpu = from.is_cpu();
  const bool later = non_blocking && reads_cpu && PinnedMemory::get().has(from.const_data_ptr());
  if (reads_cpu) {
    const std::lock_guard<std::mutex> lock(sizes_mutex);
    sizes.push_back(static_cast<int64_t>(from.nbytes()));
  }
  const bool broken = reads_cpu && fails(copies_left);
  const auto ticket = Queue::get().add(
      [source = on_cpu(from, /*borrowed=*/later), target = on_cpu(to), later, broken] {
        if (later) {
          std::this_thread::sleep_for(kLateness);
        }
        TORCH_CHECK(!broken, "fake: a copy failed");
        target.copy_(source);
      });
  if (!later) {
    Queue::get().wait(ticket);
  }
  return to;
}

const at::Tensor& resize(const at::Tensor& tensor, c10::IntArrayRef size,
                         std::optional<c10::MemoryFormat> /*format*/) {
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  const auto nbytes = at::detail::computeStorageNbytesContiguous(size, tensor.element_size(),
                                                                 tensor.storage_offset());
  if (nbytes > storage->nbytes()) {  // what operators resize holds nothing yet
    storage->set_data_ptr_noswap(DeviceMemory::get().allocate(nbytes));
    storage->set_nbytes(nbytes);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return tensor;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  return copy_from(from, resize(to, from.sizes(), std::nullopt), false);
}

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
                 std::optional<c10::Layout> /*layout*/, std::optional<c10::Device> /*device*/,
                 std::optional<bool> /*pin_memory*/, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &DeviceMemory::get(),
                                   c10::DispatchKeySet(c10::DispatchKey::HPU),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout> /*layout*/,
                         std::optional<c10::Device> /*device*/,
                         std::optional<bool> /*pin_memory*/) {
  return at::detail::empty_strided_generic(size, stride, &DeviceMemory::get(),
                                           c10::DispatchKeySet(c10::DispatchKey::HPU),
                                           c10::dtype_or_default(dtype));
}

at::Tensor& set_part(at::Tensor& tensor, c10::Storage storage, int64_t offset,
                     c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_and_strides(size, stride, offset);
  return tensor;
}

at::Tensor& set_whole(at::Tensor& tensor, c10::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes()) / tensor.element_size();
  return set_part(tensor, std::move(storage), 0, {count}, {1});
}

void on_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, HPU, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage", &set_whole);
  m.impl("set_.source_Storage_storage_offset", &set_part);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
}

TORCH_LIBRARY_IMPL(_, HPU, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
}

[[maybe_unused]] const bool registered = [] {
  c10::SetAllocator(kType, &DeviceMemory::get());
  at::setHostAllocator(kType, &PinnedMemory::get());
  return true;
}();

}  // namespace

extern "C" {

/// The allocation after `count` more ones fails; -1: none.
void fake_allocations_left(int64_t count) { allocations_left = count; }

/// The copy after `count` more ones fails on the device, later; -1: none.
void fake_copies_left(int64_t count) { copies_left = count; }

/// Sizes in bytes of the first `capacity` copies from the CPU; returns how many there are.
int64_t fake_copied_bytes(int64_t* into, int64_t capacity) {
  const std::lock_guard<std::mutex> lock(sizes_mutex);
  const auto count = static_cast<int64_t>(sizes.size());
  std::copy_n(sizes.begin(), std::min(count, capacity), into);
  return count;
}
}
