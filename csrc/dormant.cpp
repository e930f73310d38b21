// The public C++ interface in terms of the core.
#include <dormant/dormant.h>

#include "record/fallback.h"
#include "record/lazy_storage.h"
#include "tile/engine.h"

namespace dormant {

LazyInit::LazyInit() : before_(record::set_recording(true)) {}

LazyInit::~LazyInit() { record::set_recording(before_); }

bool is_lazy(const at::Tensor& tensor) noexcept {
  return tensor.defined() && record::is_lazy(tensor);
}

Report materialize(const std::vector<at::Tensor>& tensors, const MaterializeOptions& options) {
  Report report;
  for (const auto& storage : tile::materialize_tensors(tensors, {options})) {
    report.storages += 1;
    report.bytes += storage.nbytes;
    report.operators += storage.operators;
  }
  return report;
}

}  // namespace dormant
