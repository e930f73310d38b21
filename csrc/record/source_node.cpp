#include "record/source_node.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cstring>
#include <mutex>
#include <string_view>
#include <utility>

#include "record/lazy_storage.h"
#include "record/node.h"

// The names that nodes of these kinds have in messages; they are never called.
TORCH_LIBRARY_FRAGMENT(dormant, library) {
  library.def("read(Tensor(a!) self) -> ()");
  library.def("quantize(Tensor source, Tensor(a!)[] outputs) -> ()");
}

namespace dormant::record {
namespace {

const c10::OperatorHandle& handle(const char* name) {
  static const auto read = c10::Dispatcher::singleton().findSchemaOrThrow("dormant::read", "");
  static const auto quantize =
      c10::Dispatcher::singleton().findSchemaOrThrow("dormant::quantize", "");
  return std::string_view(name) == "read" ? read : quantize;
}

/// The memory of a tensor.
class TensorMemory final : public Source {
 public:
  explicit TensorMemory(at::Tensor tensor) : tensor_(std::move(tensor)) {}

  void read(uint64_t offset, size_t count, void* out) const override {
    std::memcpy(out, static_cast<const std::byte*>(tensor_.const_data_ptr()) + offset, count);
  }
  const std::string& name() const override {
    static const std::string name = "memory";
    return name;
  }

 private:
  const at::Tensor tensor_;
};

}  // namespace

c10::Storage make_read_storage(std::shared_ptr<const Source> source, uint64_t offset, size_t nbytes,
                               c10::ScalarType dtype) {
  const auto itemsize = c10::elementSize(dtype);
  TORCH_CHECK_VALUE(nbytes % itemsize == 0, "dormant: read ", source->name(), " at byte ", offset,
                    ": ", nbytes, " bytes are no multiple of ", itemsize, ", the size of ", dtype);
  auto storage = make_lazy_storage(nbytes);
  auto node = c10::make_intrusive<Node>(handle("read"));
  node->sequence = next_sequence();
  node->kind = NodeKind::read;
  node->source = std::move(source);
  node->source_offset = offset;
  Geometry all;
  all.sizes.assign(1, static_cast<int64_t>(nbytes / itemsize));
  all.strides.assign(1, 1);
  all.dtype = dtype;
  node->operands.push_back(
      {all, history_of(storage.unsafeGetStorageImpl())->buffer, nullptr, {}, true});
  append(storage.unsafeGetStorageImpl(), std::move(node));
  return storage;
}

at::Tensor make_read_tensor(std::shared_ptr<const Source> source, uint64_t offset,
                            c10::IntArrayRef sizes, c10::ScalarType dtype) {
  const auto geometry = Geometry::contiguous(sizes, dtype);
  return make_tensor(make_read_storage(std::move(source), offset, geometry.nbytes_needed(), dtype),
                     geometry);
}

at::Tensor read_of(const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(!is_lazy(tensor) && tensor.is_cpu() && tensor.is_contiguous(),
                    "dormant: read_of: expected a real contiguous tensor on the CPU");
  return make_read_tensor(std::make_shared<TensorMemory>(tensor.detach()), 0, tensor.sizes(),
                          tensor.scalar_type());
}

std::vector<at::Tensor> quantize(const at::Tensor& tensor,
                                 const std::shared_ptr<const Quantizer>& quantizer,
                                 std::vector<at::Tensor> outputs) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_VALUE(dtype == c10::ScalarType::Float || dtype == c10::ScalarType::BFloat16 ||
                        dtype == c10::ScalarType::Half,
                    "dormant: quantize: a tensor of ", dtype,
                    ", expected float32, bfloat16 or float16. Next: convert it first.");
  const auto geometries = quantizer->outputs(tensor.sizes());
  const std::lock_guard<std::recursive_mutex> lock(graph_mutex());
  if (outputs.empty()) {
    for (const auto& geometry : geometries) {
      outputs.push_back(make_tensor(make_lazy_storage(geometry.nbytes_needed()), geometry));
    }
  }
  TORCH_CHECK_VALUE(outputs.size() == geometries.size(), "dormant: quantize: ", outputs.size(),
                    " outputs given, ", quantizer->name(), " has ", geometries.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    TORCH_CHECK_VALUE(is_lazy(outputs[i]), "dormant: quantize: output ", i,
                      " has memory already. Next: quantise before materialising.");
    TORCH_CHECK_VALUE(outputs[i].storage().nbytes() >= geometries[i].nbytes_needed(),
                      "dormant: quantize: output ", i, " has ", outputs[i].storage().nbytes(),
                      " bytes, expected ", geometries[i].nbytes_needed());
  }
  const auto* history = history_of(tensor);
  if (history == nullptr) {
    std::vector<at::Tensor> memory;
    for (size_t i = 0; i < outputs.size(); ++i) {
      memory.push_back(geometries[i].over(allocate(geometries[i].nbytes_needed())));
    }
    run_whole(*quantizer, tensor.contiguous(), memory, at::get_num_threads());
    for (size_t i = 0; i < outputs.size(); ++i) {
      commit(outputs[i].storage().unsafeGetStorageImpl(),
             std::move(memory[i].storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
      sync_key(outputs[i]);
    }
    return outputs;
  }
  auto node = c10::make_intrusive<Node>(handle("quantize"));
  node->sequence = next_sequence();
  node->kind = NodeKind::quantize;
  node->quantizer = quantizer;
  node->threads = at::get_num_threads();
  node->operands.push_back({Geometry::of(tensor), history->buffer, history->tail, {}, false});
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto* storage = outputs[i].storage().unsafeGetStorageImpl();
    restart(storage, geometries[i].nbytes_needed());
    node->operands.push_back({geometries[i], history_of(storage)->buffer, nullptr, {}, true});
  }
  for (const auto& output : outputs) {
    append(output.storage().unsafeGetStorageImpl(), node);
  }
  return outputs;
}

}  // namespace dormant::record
