#include "tile/sole_view.h"

#include "record/lazy_storage.h"
#include "system/faults.h"
#include "tile/region.h"
#include "tile/walk.h"

#ifdef __linux__
#include <sys/mman.h>

#include <memory>
#endif

namespace dormant::tile {
namespace {

// Less is not worth memory of its own kind.
constexpr size_t kMuch = size_t{1} << 20;

#ifdef __linux__
struct Reserved {
  void* memory;
  size_t nbytes;
};

void release(void* context) {
  const std::unique_ptr<Reserved> reserved(static_cast<Reserved*>(context));
  munmap(reserved->memory, reserved->nbytes);
}
#endif

}  // namespace

SoleViews sole_views(c10::ArrayRef<at::Tensor> tensors) {
  SoleViews views;
  for (const auto& tensor : tensors) {
    if (record::is_lazy(tensor) && tensor.storage().use_count() == 1) {
      views.emplace(tensor.storage().unsafeGetStorageImpl(), tensor);
    }
  }
  return views;
}

std::optional<Part> part_of(const at::Tensor& view, const Program& program, size_t uses) {
  const auto geometry = record::Geometry::of(view);
  const auto region = Region::of(geometry);
  if (!region || region->numel() == 0 || geometry.dtype != program.dtype() ||
      walk_of(program).transposed) {
    return std::nullopt;
  }
  const auto count = region->end() - region->begin();
  const auto rest = static_cast<size_t>(program.numel() - count) * program.itemsize();
  if (rest < kMuch) {
    return std::nullopt;
  }
  return Part{view, Run{region->begin(), count}, static_cast<size_t>(count) * program.itemsize(),
              uses};
}

void Part::rebase() const {
  auto* impl = view.unsafeGetTensorImpl();
  const auto geometry = record::Geometry::of(view);
  // detach and .data forbid it to their callers.
  const bool allowed = impl->allow_tensor_metadata_change();
  impl->set_allow_tensor_metadata_change(true);
  impl->set_sizes_and_strides(geometry.sizes, geometry.strides, geometry.offset - elements.begin);
  impl->set_allow_tensor_metadata_change(allowed);
}

c10::DataPtr reserve_part(const Part& part, size_t nbytes, size_t itemsize) {
  const auto before = static_cast<size_t>(part.elements.begin) * itemsize;
  auto memory = reserve(nbytes + before);
  if (memory) {
    auto* first = static_cast<std::byte*>(memory.get()) + before;
    auto* context = memory.release_context();
    return {first, context, &release, c10::Device(c10::DeviceType::CPU)};
  }
  return memory;
}

c10::DataPtr reserve(size_t nbytes) {
#ifdef __linux__
  // The owner first: where there is no memory for it, nothing is mapped.
  auto context = std::make_unique<Reserved>(Reserved{nullptr, nbytes});
  auto* memory = system::is_due(system::Fault::allocate)
                     ? MAP_FAILED
                     : mmap(nullptr, nbytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return {};
  }
  context->memory = memory;
  return {memory, context.release(), &release, c10::Device(c10::DeviceType::CPU)};
#else
  static_cast<void>(nbytes);
  return {};
#endif
}

}  // namespace dormant::tile
