#include "record/recorder.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/MemoryFormat.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <mutex>

#include "random/draws.h"
#include "record/elementwise.h"
#include "record/infer.h"
#include "record/lazy_storage.h"
#include "record/validity.h"

namespace dormant::record {
namespace {

/// Adds the arguments and operands of a call to its node. False if a tensor can be neither lazy nor
/// captured.
class NodeBuilder {
 public:
  explicit NodeBuilder(Node& node) : node_(node) {}

  bool add(const Call& call) {
    const auto arguments = call.arguments();
    node_.arguments.reserve(arguments.size());
    const auto& written = call.traits.written;
    for (size_t i = 0; i < arguments.size(); ++i) {
      const bool is_written = std::find(written.begin(), written.end(), i) != written.end();
      if (!add(arguments[i], is_written, call.traits.write_only)) {
        return false;
      }
    }
    return true;
  }

 private:
  bool add(const c10::IValue& value, bool written, bool write_only) {
    if (value.isTensor() && value.toTensor().defined()) {
      const auto operand = add(value.toTensor(), written, write_only);
      node_.arguments.emplace_back(TensorSlot{operand});
      return operand >= 0;
    }
    if (value.isTensorList() || value.isOptionalTensorList()) {
      TensorListSlot list{{}, value.isOptionalTensorList()};
      for (const auto& element : value.toListRef()) {
        const bool present = element.isTensor() && element.toTensor().defined();
        list.operands.push_back(present ? add(element.toTensor(), false, false) : -1);
        if (present && list.operands.back() < 0) {
          return false;
        }
      }
      node_.arguments.emplace_back(std::move(list));
      return true;
    }
    if (value.isGenerator()) {
      node_.arguments.emplace_back(GeneratorSlot{});
      return true;
    }
    // Lists are shared with the caller, which may change them: recipes keep a copy.
    node_.arguments.emplace_back(value.isList() || value.isTuple() ? value.deepcopy() : value);
    return true;
  }

  /// The index of the new operand, or -1.
  int32_t add(const at::Tensor& tensor, bool written, bool write_only) {
    Operand operand;
    if (const auto* history = history_of(tensor)) {
      operand.geometry = Geometry::of(tensor);
      operand.buffer = history->buffer;
      operand.written = written;
      if (!(written && write_only && operand.geometry.covers(history->buffer->nbytes))) {
        operand.before = history->tail;
      }
    } else {
      if (written || tensor.layout() != c10::kStrided || !tensor.is_cpu() ||
          tensor.is_quantized() || tensor._is_zerotensor() ||
          static_cast<size_t>(tensor.numel()) * tensor.element_size() > kCaptureLimit) {
        return -1;
      }
      // A Python scalar was made for this call and nobody else holds it.
      operand.captured =
          tensor.unsafeGetTensorImpl()->is_wrapped_number() ? tensor : tensor.detach().clone();
      operand.geometry = Geometry::of(operand.captured);
    }
    node_.operands.push_back(std::move(operand));
    return static_cast<int32_t>(node_.operands.size() - 1);
  }

  Node& node_;
};

NodePtr new_node(const Call& call, NodeKind kind) {
  auto node = c10::make_intrusive<Node>(call.op);
  node->kind = kind;
  node->default_dtype = c10::get_default_dtype_as_scalartype();
  node->threads = at::get_num_threads();
  return NodeBuilder(*node).add(call) ? node : NodePtr();
}

/// Moves the generator as eager would and notes where it stood. False if only running the call can
/// tell how far.
bool draw(const Call& call, Node& node) {
  if (!call.traits.random) {
    return true;
  }
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  for (size_t i = 0; i < node.arguments.size(); ++i) {
    if (std::holds_alternative<GeneratorSlot>(node.arguments[i])) {
      generator = call.arguments()[i].toGenerator();
    }
  }
  if (generator.device().type() != c10::DeviceType::CPU) {
    return false;
  }
  // Replay hands the node a generator of its own, so the slot must exist even where the caller
  // passed None.
  const auto& formal = call.op.schema().arguments();
  for (size_t i = 0; i < formal.size(); ++i) {
    if (formal[i].type()->str().find("Generator") != std::string::npos) {
      node.arguments[i] = GeneratorSlot{};
    }
  }
  auto* cpu = generator.get<at::CPUGeneratorImpl>();
  const std::lock_guard<std::mutex> lock(cpu->mutex_);
  auto position = random::Position::of(*cpu);
  switch (random::skip(call.op, call.arguments(), *cpu)) {
    case random::Draw::none:
    case random::Draw::skipped:
      node.position = std::move(position);
      return true;
    default:
      return false;
  }
}

bool has_generator_argument(const Call& call) {
  for (const auto& argument : call.op.schema().arguments()) {
    if (argument.type()->str().find("Generator") != std::string::npos) {
      return true;
    }
  }
  return false;
}

/// Grows or shrinks a lazy tensor to `wanted`; its old contents are not needed.
void reshape_for_writing(const at::Tensor& tensor, const Geometry& wanted) {
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  auto geometry = wanted;
  geometry.offset = tensor.storage_offset();
  if (const auto bytes = geometry.nbytes_needed(); bytes > storage->nbytes()) {
    restart(storage, bytes);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(geometry.sizes, geometry.strides);
}

void push_returns(const Call& call) {
  const auto arguments = call.arguments();
  std::vector<c10::IValue> results;
  for (const auto argument : call.traits.return_alias) {
    results.push_back(arguments[argument]);
  }
  torch::jit::drop(*call.stack, arguments.size());
  for (auto& result : results) {
    call.stack->push_back(std::move(result));
  }
}

}  // namespace

void bump_version(const at::Tensor& tensor) {
  const auto& excluded = c10::impl::tls_local_dispatch_key_set().excluded_;
  if (!excluded.has(c10::DispatchKey::ADInplaceOrView) && !tensor.is_inference()) {
    tensor.unsafeGetTensorImpl()->bump_version();
  }
}

bool record_empty(const Call& call) {
  const auto arguments = call.arguments();
  const bool strided = arguments.size() == 6 && arguments[1].isIntList();
  // size, [stride,] dtype, layout, device, pin_memory, [memory_format]
  const size_t options = strided ? 2 : 1;
  if (!arguments[0].isIntList() ||
      (call.op.operator_name().name == "aten::empty_strided" && !strided)) {
    return false;
  }
  const auto& dtype = arguments[options];
  const auto& layout = arguments[options + 1];
  const auto& device = arguments[options + 2];
  const auto& pinned = arguments[options + 3];
  if ((!layout.isNone() && layout.toLayout() != c10::kStrided) ||
      (!device.isNone() && device.toDevice().type() != c10::DeviceType::CPU) ||
      (!pinned.isNone() && pinned.toBool())) {
    return false;
  }
  Geometry geometry;
  geometry.dtype = dtype.isNone() ? c10::get_default_dtype_as_scalartype() : dtype.toScalarType();
  if (c10::isQIntType(geometry.dtype) || geometry.dtype == c10::ScalarType::Undefined) {
    return false;
  }
  const auto sizes = arguments[0].toIntVector();
  for (const auto size : sizes) {
    if (size < 0) {
      return false;
    }
  }
  geometry.sizes.assign(sizes.begin(), sizes.end());
  std::vector<int64_t> strides;
  if (strided) {
    strides = arguments[1].toIntVector();
    if (strides.size() != sizes.size()) {
      return false;
    }
    for (const auto stride : strides) {
      if (stride < 0) {
        return false;
      }
    }
  } else {
    const auto format =
        arguments[5].isNone() ? c10::MemoryFormat::Contiguous : arguments[5].toMemoryFormat();
    if (format == c10::MemoryFormat::ChannelsLast && sizes.size() == 4) {
      strides = c10::get_channels_last_strides_2d(sizes);
    } else if (format == c10::MemoryFormat::ChannelsLast3d && sizes.size() == 5) {
      strides = c10::get_channels_last_strides_3d(sizes);
    } else if (format == c10::MemoryFormat::Contiguous) {
      strides.resize(sizes.size());
      int64_t stride = 1;
      for (size_t i = sizes.size(); i-- > 0;) {
        strides[i] = stride;
        if (__builtin_mul_overflow(stride, std::max<int64_t>(sizes[i], 1), &stride)) {
          return false;
        }
      }
    } else {
      return false;
    }
  }
  geometry.strides.assign(strides.begin(), strides.end());
  auto tensor = make_tensor(make_lazy_storage(geometry.nbytes_needed()), geometry);
  torch::jit::drop(*call.stack, arguments.size());
  call.stack->emplace_back(std::move(tensor));
  return true;
}

bool record_in_place(const Call& call) {
  for (const auto argument : call.traits.written) {
    const auto& tensor = call.arguments()[argument].toTensor();
    if (!is_lazy(tensor) || at::has_internal_overlap(tensor) == at::MemOverlap::Yes ||
        operands_overlap(call, tensor)) {
      return false;
    }
  }
  std::vector<Geometry> changed;
  if (!valid_write(call, changed)) {
    return false;
  }
  if (call.traits.random && !has_generator_argument(call)) {
    return false;
  }
  for (size_t i = 0; i < changed.size(); ++i) {
    reshape_for_writing(call.arguments()[call.traits.written[i]].toTensor(), changed[i]);
  }
  auto node = new_node(call, NodeKind::in_place);
  if (!node || !draw(call, *node)) {
    return false;
  }
  node->sequence = next_sequence();
  for (const auto argument : call.traits.written) {
    const auto& tensor = call.arguments()[argument].toTensor();
    append(tensor.storage().unsafeGetStorageImpl(), node);
    bump_version(tensor);
  }
  push_returns(call);
  return true;
}

bool record_functional(const Call& call) {
  // Without a generator argument replay could not be told where its random numbers start.
  if (call.traits.random && !has_generator_argument(call)) {
    return false;
  }
  auto results = infer_elementwise(call);
  if (!results) {
    results = infer_results(call);
  }
  if (!results) {
    return false;
  }
  auto node = new_node(call, NodeKind::functional);
  if (!node || !draw(call, *node)) {
    return false;
  }
  node->sequence = next_sequence();
  node->first_result = node->operands.size();
  std::vector<at::Tensor> tensors;
  tensors.reserve(results->size());
  for (auto& geometry : *results) {
    auto storage = make_lazy_storage(geometry.nbytes_needed());
    auto* history = history_of(storage.unsafeGetStorageImpl());
    node->operands.push_back({geometry, history->buffer, nullptr, {}, true});
    append(storage.unsafeGetStorageImpl(), node);
    tensors.push_back(make_tensor(std::move(storage), geometry));
  }
  torch::jit::drop(*call.stack, call.arguments().size());
  size_t next = 0;
  for (const auto& result : call.op.schema().returns()) {
    if (result.type()->kind() == c10::TypeKind::TensorType) {
      call.stack->emplace_back(tensors[next++]);
    } else {
      // A list takes what the single tensors leave: no recorded operator returns two lists.
      c10::List<at::Tensor> list;
      while (next < tensors.size()) {
        list.push_back(tensors[next++]);
      }
      call.stack->emplace_back(std::move(list));
    }
  }
  return true;
}

bool record_resize(const Call& call) {
  const auto arguments = call.arguments();
  const auto& tensor = arguments[0].toTensor();
  const auto* history = history_of(tensor);
  if (history == nullptr || !arguments[1].isIntList() || !arguments[2].isNone()) {
    return false;
  }
  Geometry wanted;
  const auto sizes = arguments[1].toIntVector();
  wanted.sizes.assign(sizes.begin(), sizes.end());
  wanted.strides.resize(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    if (sizes[i] < 0) {
      return false;
    }
    wanted.strides[i] = stride;
    if (__builtin_mul_overflow(stride, std::max<int64_t>(sizes[i], 1), &stride)) {
      return false;
    }
  }
  if (tensor.sizes() == at::IntArrayRef(sizes)) {
    wanted.strides.assign(tensor.strides().begin(), tensor.strides().end());
  }
  wanted.offset = tensor.storage_offset();
  wanted.dtype = tensor.scalar_type();
  if (wanted.nbytes_needed() > history->buffer->nbytes && history->tail) {
    return false;
  }
  const bool changes = tensor.sizes() != at::IntArrayRef(sizes);
  reshape_for_writing(tensor, wanted);
  if (changes) {
    bump_version(tensor);
  }
  torch::jit::drop(*call.stack, arguments.size() - 1);
  return true;
}

c10::Storage clone_storage(const c10::Storage& source) {
  const auto* history = history_of(source.unsafeGetStorageImpl());
  TORCH_CHECK_VALUE(history != nullptr, "dormant: clone_storage of a storage that has memory");
  static const auto copy = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  auto storage = make_lazy_storage(source.nbytes());
  auto* copied = history_of(storage.unsafeGetStorageImpl());
  if (!history->tail) {
    return storage;
  }
  auto node = c10::make_intrusive<Node>(copy);
  node->sequence = next_sequence();
  const auto bytes = Geometry::bytes(source.nbytes());
  node->operands.push_back({bytes, copied->buffer, nullptr, {}, true});
  node->operands.push_back({bytes, history->buffer, history->tail, {}, false});
  node->arguments.emplace_back(TensorSlot{0});
  node->arguments.emplace_back(TensorSlot{1});
  node->arguments.emplace_back(c10::IValue(false));
  append(storage.unsafeGetStorageImpl(), std::move(node));
  return storage;
}

}  // namespace dormant::record
