#include "record/source_node.h"

#include <ATen/Parallel.h>
#include <ATen/ops/clone.h>
#include <torch/library.h>

#include <utility>
#include <variant>

#include "record/device_memory.h"
#include "record/held_memory.h"
#include "record/lazy_storage.h"
#include "record/node.h"
#include "system/dispatch_state.h"

// The names that nodes of these kinds have in messages; they are never called.
TORCH_LIBRARY_FRAGMENT(dormant, library) {
  library.def("read(Tensor(a!) self) -> ()");
  library.def("quantize(Tensor source, Tensor(a!)[] outputs) -> ()");
  library.def("decode(Tensor(a!) self, Tensor[] parts) -> ()");
}

namespace dormant::record {
namespace {

c10::intrusive_ptr<Node> new_node(NodeKind kind) {
  const auto find = [](const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  };
  static const auto read = find("dormant::read");
  static const auto quantize = find("dormant::quantize");
  static const auto decode = find("dormant::decode");
  auto node = c10::make_intrusive<Node>(kind == NodeKind::read       ? read
                                        : kind == NodeKind::quantize ? quantize
                                                                     : decode);
  node->sequence = next_sequence();
  node->kind = kind;
  return node;
}

/// ValueError unless the parts are what the decoder was made for.
void check_parts(const Decoder& decoder, const std::vector<at::Tensor>& parts) {
  const auto expected = decoder.parts();
  TORCH_CHECK_VALUE(parts.size() == expected.size(), "dormant: decode ", decoder.name(), ": got ",
                    parts.size(), " parts, expected ", expected.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    const at::IntArrayRef sizes(expected[i].sizes);
    TORCH_CHECK_VALUE(parts[i].is_cpu() && parts[i].layout() == at::kStrided &&
                          parts[i].sizes() == sizes && parts[i].scalar_type() == expected[i].dtype,
                      "dormant: decode ", decoder.name(), ": part ", i, " is a ", parts[i].layout(),
                      " tensor of ", parts[i].scalar_type(), " with sizes ", parts[i].sizes(),
                      " on ", parts[i].device(), "; expected ", expected[i].dtype, " with sizes ",
                      sizes, " on the CPU");
  }
}

}  // namespace

History read_history(std::shared_ptr<const Source> source, uint64_t offset, BufferPtr buffer,
                     c10::ScalarType dtype) {
  const auto itemsize = c10::elementSize(dtype);
  TORCH_CHECK_VALUE(buffer->nbytes % itemsize == 0, "dormant: reading ", source->name(),
                    " at byte ", offset, ": got ", buffer->nbytes,
                    " bytes, expected a multiple of ", itemsize, ", the size of ", dtype);
  auto node = new_node(NodeKind::read);
  node->source = std::move(source);
  node->source_offset = offset;
  const auto all = Geometry::contiguous({static_cast<int64_t>(buffer->nbytes / itemsize)}, dtype);
  node->operands.push_back({all, buffer, nullptr, {}, true});
  return {std::move(buffer), std::move(node)};
}

c10::Storage make_read_storage(std::shared_ptr<const Source> source, uint64_t offset, size_t nbytes,
                               c10::ScalarType dtype) {
  return make_first_storage(
      read_history(std::move(source), offset, make_buffer(nbytes, nullptr), dtype));
}

at::Tensor make_read_tensor(std::shared_ptr<const Source> source, uint64_t offset,
                            c10::IntArrayRef sizes, c10::ScalarType dtype) {
  const auto geometry = Geometry::contiguous(sizes, dtype);
  return make_tensor(make_read_storage(std::move(source), offset, geometry.nbytes_needed(), dtype),
                     geometry);
}

at::Tensor read_of(const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "read_of: expected a contiguous tensor");
  const auto offset = static_cast<uint64_t>(tensor.storage_offset()) * tensor.element_size();
  if (!tensor.is_cpu()) {
    return make_read_tensor(std::make_shared<DeviceMemory>(tensor.storage()), offset,
                            tensor.sizes(), tensor.scalar_type());
  }
  const auto found = history_or_memory_of(tensor.storage().unsafeGetStorageImpl());
  if (std::holds_alternative<History>(found)) {
    settle(tensor);
    return tensor;
  }
  const auto memory = std::get<Memory>(found);
  return make_read_tensor(
      std::make_shared<HeldMemory>(memory.data, memory.nbytes, tensor.storage()), offset,
      tensor.sizes(), tensor.scalar_type());
}

std::vector<at::Tensor> quantize(const at::Tensor& tensor,
                                 const std::shared_ptr<const Quantizer>& quantizer,
                                 std::vector<at::Tensor> outputs) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_VALUE(dtype == c10::ScalarType::Float || dtype == c10::ScalarType::BFloat16 ||
                        dtype == c10::ScalarType::Half,
                    "quantize: a tensor of ", dtype,
                    ", expected float32, bfloat16 or float16. Next: convert it first.");
  const auto geometries = quantizer->outputs(tensor.sizes());
  if (outputs.empty()) {
    for (const auto& geometry : geometries) {
      outputs.push_back(
          make_lazy_tensor({make_buffer(geometry.nbytes_needed(), nullptr), nullptr}, geometry));
    }
  }
  TORCH_CHECK_VALUE(outputs.size() == geometries.size(), "quantize: got ", outputs.size(),
                    " outputs, ", quantizer->name(), " has ", geometries.size());
  std::vector<Exchange> exchanges;
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto* storage = outputs[i].storage().unsafeGetStorageImpl();
    auto history = history_of(storage);
    const auto nbytes = geometries[i].nbytes_needed();
    TORCH_CHECK_VALUE(history, "quantize: output ", i,
                      " has memory already. Next: quantize before materializing.");
    TORCH_CHECK_VALUE(history->buffer->nbytes >= nbytes, "quantize: output ", i, " has ",
                      history->buffer->nbytes, " bytes, expected ", nbytes);
    exchanges.push_back({storage, std::move(*history), {make_buffer(nbytes, storage), nullptr}});
  }
  const auto changed = [&] {
    TORCH_CHECK_VALUE(false, "quantize: another thread has changed an output meanwhile");
  };
  const auto found = history_or_values_of(tensor);
  if (const auto* values = std::get_if<at::Tensor>(&found)) {
    std::vector<at::Tensor> memory;
    for (const auto& geometry : geometries) {
      memory.push_back(geometry.over(allocate(geometry.nbytes_needed())));
    }
    run_whole(*quantizer, values->contiguous(), memory, at::get_num_threads());
    for (size_t i = 0; i < outputs.size(); ++i) {
      auto& bytes = memory[i].storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks();
      if (!commit(exchanges[i].storage, exchanges[i].before, std::move(bytes))) {
        changed();
      }
      sync_key(outputs[i]);
    }
    return outputs;
  }
  const auto& history = std::get<History>(found);
  auto node = new_node(NodeKind::quantize);
  node->quantizer = quantizer;
  node->threads = at::get_num_threads();
  node->operands.push_back({Geometry::of(tensor), history.buffer, history.tail, {}, false});
  for (size_t i = 0; i < outputs.size(); ++i) {
    node->operands.push_back({geometries[i], exchanges[i].after.buffer, nullptr, {}, true});
    exchanges[i].after.tail = node;
  }
  if (!exchange(exchanges)) {
    changed();
  }
  return outputs;
}

at::Tensor decode(const std::vector<at::Tensor>& parts,
                  const std::shared_ptr<const Decoder>& decoder) {
  check_parts(*decoder, parts);
  const auto geometry = decoder->output();
  auto node = new_node(NodeKind::decode);
  node->decoder = decoder;
  const StorageToCome counted;
  auto buffer = make_buffer(geometry.nbytes_needed(), nullptr);
  node->operands.push_back({geometry, buffer, nullptr, {}, true});
  std::vector<at::Tensor> real;
  for (const auto& part : parts) {
    const auto found = history_or_values_of(part);
    if (const auto* history = std::get_if<History>(&found)) {
      node->operands.push_back({Geometry::of(part), history->buffer, history->tail, {}, false});
      continue;
    }
    // Its owner may change it later.
    const system::PlainDispatch plain;
    const auto& values = std::get<at::Tensor>(found);
    real.push_back(values.resolve_conj().resolve_neg().clone(at::MemoryFormat::Contiguous));
    node->operands.push_back({Geometry::of(real.back()), nullptr, nullptr, real.back(), false});
  }
  if (real.size() == parts.size()) {
    auto memory = allocate(geometry.nbytes_needed());
    run_whole(*decoder, real, memory.mutable_data());
    return geometry.over(memory);
  }
  return make_tensor(make_first_storage({std::move(buffer), std::move(node)}), geometry);
}

bool is_statistic(const at::Tensor& tensor) {
  const auto history = history_of(tensor);
  return history && history->tail && history->tail->kind == NodeKind::quantize &&
         history->tail->operands.at(1).buffer != history->buffer;
}

}  // namespace dormant::record
