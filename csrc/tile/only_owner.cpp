#include "tile/only_owner.h"

#include "record/lazy_storage.h"
#include "tile/region.h"

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

OnlyOwners only_owners(c10::ArrayRef<at::Tensor> tensors) {
  OnlyOwners owners;
  for (const auto& tensor : tensors) {
    if (record::is_lazy(tensor) && tensor.storage().use_count() == 1) {
      owners.emplace(tensor.storage().unsafeGetStorageImpl(), record::Geometry::of(tensor));
    }
  }
  return owners;
}

std::optional<Run> needed_by(const record::Geometry& view, const Program& program) {
  const auto region = Region::of(view);
  if (!region || region->numel() == 0 || view.dtype != program.dtype()) {
    return std::nullopt;
  }
  const auto count = region->end() - region->begin();
  const auto rest = static_cast<size_t>(program.numel() - count) * program.itemsize();
  return rest < kMuch ? std::nullopt : std::make_optional(Run{region->begin(), count});
}

c10::DataPtr reserve(size_t nbytes) {
#ifdef __linux__
  auto* memory = mmap(nullptr, nbytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return {};
  }
  auto context = std::make_unique<Reserved>(Reserved{memory, nbytes});
  return {memory, context.release(), &release, c10::Device(c10::DeviceType::CPU)};
#else
  static_cast<void>(nbytes);
  return {};
#endif
}

}  // namespace dormant::tile
