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

#include <cstring>
#include <exception>
#include <mutex>
#include <optional>

#include "random/draws.h"
#include "record/default_dtype.h"
#include "record/elementwise.h"
#include "record/infer.h"
#include "record/lazy_storage.h"
#include "record/validity.h"
#include "record/value_checks.h"

namespace dormant::record {
namespace {

/// A lazy tensor that a call writes: what it is to be afterwards, and what its storage holds before
/// the write.
struct Written {
  at::Tensor tensor;
  Geometry geometry;
  History before;   ///< what the storage has now
  History current;  ///< what the node writes over: of a storage that grows, a larger one

  c10::StorageImpl* storage() const { return tensor.storage().unsafeGetStorageImpl(); }
};
using WrittenTensors = c10::SmallVector<Written, 2>;

/// Adds the arguments and operands of a call to its node. False if a tensor can be neither lazy nor
/// captured.
class NodeBuilder {
 public:
  NodeBuilder(Node& node, const WrittenTensors& written) : node_(node), written_(written) {}

  bool add(const Call& call) {
    const auto arguments = call.arguments();
    node_.arguments.reserve(arguments.size());
    const auto& written = call.traits.written;
    for (size_t i = 0; i < arguments.size(); ++i) {
      const auto found = std::find(written.begin(), written.end(), i);
      if (found != written.end()) {
        node_.arguments.emplace_back(TensorSlot{add_written(
            written_[static_cast<size_t>(found - written.begin())], call.traits.write_only)});
      } else if (!add(arguments[i])) {
        return false;
      }
    }
    return true;
  }

 private:
  bool add(const c10::IValue& value) {
    if (value.isTensor() && value.toTensor().defined()) {
      const auto operand = add(value.toTensor());
      node_.arguments.emplace_back(TensorSlot{operand});
      return operand >= 0;
    }
    if (value.isTensorList() || value.isOptionalTensorList()) {
      TensorListSlot list{{}, value.isOptionalTensorList()};
      for (const auto& element : value.toListRef()) {
        const bool present = element.isTensor() && element.toTensor().defined();
        list.operands.push_back(present ? add(element.toTensor()) : -1);
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

  int32_t add_written(const Written& written, bool write_only) {
    const auto& [buffer, tail] = written.current;
    const bool forgets = write_only && written.geometry.covers(buffer->nbytes);
    node_.operands.push_back({written.geometry, buffer, forgets ? nullptr : tail, {}, true});
    return static_cast<int32_t>(node_.operands.size() - 1);
  }

  /// What a lazy tensor's storage holds: of one that the call also writes, what it is written over.
  std::optional<History> history(const at::Tensor& tensor) const {
    for (const auto& written : written_) {
      if (tensor.has_storage() && tensor.storage().unsafeGetStorageImpl() == written.storage()) {
        return written.current;
      }
    }
    return history_of(tensor);
  }

  /// The index of the new operand, or -1.
  int32_t add(const at::Tensor& tensor) {
    Operand operand;
    if (auto lazy = history(tensor)) {
      operand.geometry = Geometry::of(tensor);
      operand.buffer = std::move(lazy->buffer);
      operand.before = std::move(lazy->tail);
    } else {
      if (tensor.layout() != c10::kStrided || !tensor.is_cpu() || tensor.is_quantized() ||
          tensor._is_zerotensor() ||
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
  const WrittenTensors& written_;
};

NodePtr new_node(const Call& call, NodeKind kind, const WrittenTensors& written = {}) {
  auto node = c10::make_intrusive<Node>(call.op);
  node->kind = kind;
  node->threads = call.threads ? *call.threads : at::get_num_threads();
  return NodeBuilder(*node, written).add(call) ? node : NodePtr();
}

/// The generator that a random call draws from; undefined where that is not one of the CPU.
at::Generator generator_of(const Call& call) {
  const auto& argument = call.arguments()[*call.traits.generator];
  const auto generator =
      argument.isGenerator() ? argument.toGenerator() : at::detail::getDefaultCPUGenerator();
  return generator.device().type() == c10::DeviceType::CPU ? generator : at::Generator();
}

/// What a recorded call draws: moves the generator as eager would, and back, when this is
/// destroyed, where the call was not recorded after all.
class Drawing {
 public:
  explicit Drawing(const Call& call) : call_(call) {}
  ~Drawing() {
    if (before_ && !recorded_) {
      undo();
    }
  }
  Drawing(const Drawing&) = delete;
  Drawing& operator=(const Drawing&) = delete;

  /// False if only running the call can tell how far the generator moves.
  bool draw(Node& node) {
    if (!call_.traits.random) {
      return true;
    }
    if (!before_ && !move()) {
      return false;
    }
    node.position = before_;
    // Replay hands the node a generator of its own, so the slot must exist even where the caller
    // passed None.
    node.arguments[*call_.traits.generator] = GeneratorSlot{};
    return true;
  }

  /// The generator stays where it is.
  void keep() noexcept { recorded_ = true; }

 private:
  /// Puts the generator back, unless somebody else has moved it meanwhile.
  void undo() noexcept {
    auto* cpu = generator_.get<at::CPUGeneratorImpl>();
    const std::lock_guard<std::mutex> lock(cpu->mutex_);
    if (!moved_by_others(*cpu)) {
      before_->restore_to(*cpu);
    }
  }

  /// Taken for no where there is no memory to find out.
  bool moved_by_others(at::CPUGeneratorImpl& generator) const noexcept {
    try {
      const auto again = before_->restore();
      auto* moved = again.get<at::CPUGeneratorImpl>();
      random::skip(call_.traits.law, call_.op, call_.arguments(), *moved);
      return !(random::Position::of(generator) == random::Position::of(*moved));
    } catch (const std::exception&) {
      return false;
    }
  }

  bool move() {
    generator_ = generator_of(call_);
    if (!generator_.defined()) {
      return false;
    }
    random::prepare(call_.traits.law, call_.op, call_.arguments());
    auto* cpu = generator_.get<at::CPUGeneratorImpl>();
    const std::lock_guard<std::mutex> lock(cpu->mutex_);
    auto before = random::Position::of(*cpu);
    try {
      const auto drawn = random::skip(call_.traits.law, call_.op, call_.arguments(), *cpu);
      if (drawn != random::Draw::none && drawn != random::Draw::skipped) {
        return false;
      }
    } catch (...) {
      before.restore_to(*cpu);
      throw;
    }
    before_ = std::move(before);
    return true;
  }

  const Call& call_;
  at::Generator generator_;
  std::optional<random::Position> before_;  ///< where the generator stood, once it was moved
  bool recorded_ = false;
};

const c10::OperatorHandle& copy_operator() {
  static const auto copy = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  return copy;
}

/// A node that gives the first bytes of `to` those that `from` holds.
NodePtr copy_bytes(const History& from, const BufferPtr& to) {
  auto node = c10::make_intrusive<Node>(copy_operator());
  node->sequence = next_sequence();
  const auto bytes = Geometry::bytes(std::min(from.buffer->nbytes, to->nbytes));
  node->operands.push_back({bytes, to, nullptr, {}, true});
  node->operands.push_back({bytes, from.buffer, from.tail, {}, false});
  node->arguments.emplace_back(TensorSlot{0});
  node->arguments.emplace_back(TensorSlot{1});
  node->arguments.emplace_back(c10::IValue(false));
  return node;
}

/// What a storage holds once it has grown to `nbytes`: what it held, and bytes nobody wrote.
History grown(const History& history, size_t nbytes, c10::StorageImpl* storage) {
  History larger{make_buffer(nbytes, storage), nullptr};
  if (history.tail) {
    larger.tail = copy_bytes(history, larger.buffer);
  }
  return larger;
}

/// The tensors that the call writes as they are now, to get the geometry that `changed` says, if
/// any. False where one of them is no longer lazy, or can't have that geometry.
bool look_at_written(const Call& call, const std::vector<Geometry>& changed,
                     WrittenTensors& written) {
  written.clear();
  for (size_t i = 0; i < call.traits.written.size(); ++i) {
    const auto& tensor = call.arguments()[call.traits.written[i]].toTensor();
    auto history = history_of(tensor);
    if (!history) {
      return false;
    }
    Written each{tensor, Geometry::of(tensor), *history, *history};
    if (!changed.empty() && changed[i].sizes != each.geometry.sizes) {
      each.geometry.sizes = changed[i].sizes;
      each.geometry.strides = changed[i].strides;
      const auto bytes = valid_nbytes(each.geometry);
      if (!bytes) {
        return false;
      }
      if (*bytes > history->buffer->nbytes) {
        each.current = grown(*history, *bytes, each.storage());
      }
    }
    written.push_back(std::move(each));
  }
  return true;
}

/// Whether a storage that the call changes the size of is met by another argument, too: what they
/// share then is PyTorch's to judge.
bool shares_what_grows(const Call& call, const WrittenTensors& written) {
  for (const auto& each : written) {
    if (each.before == each.current) {
      continue;
    }
    int met = 0;
    for_each_tensor(call, [&](const at::Tensor& tensor) {
      met += tensor.has_storage() && tensor.storage().unsafeGetStorageImpl() == each.storage();
    });
    if (met > 1) {
      return true;
    }
  }
  return false;
}

/// Makes `node` the last write of each; false, and nothing is changed, where another thread was
/// faster.
bool publish(const NodePtr& node, const WrittenTensors& written) {
  c10::SmallVector<Exchange, 2> exchanges;
  for (const auto& each : written) {
    const auto known = std::any_of(exchanges.begin(), exchanges.end(), [&](const auto& exchange) {
      return exchange.storage == each.storage();
    });
    if (!known) {
      exchanges.push_back({each.storage(), each.before, {each.current.buffer, node}});
    }
  }
  if (!exchange(exchanges)) {
    return false;
  }
  for (const auto& each : written) {
    each.tensor.unsafeGetTensorImpl()->set_sizes_and_strides(each.geometry.sizes,
                                                             each.geometry.strides);
  }
  return true;
}

void push_returns(const Call& call) {
  const auto arguments = call.arguments();
  c10::SmallVector<c10::IValue, 4> results;  // in place: the write has happened
  for (const auto argument : call.traits.return_alias) {
    results.push_back(arguments[argument]);
  }
  torch::jit::drop(*call.stack, arguments.size());
  for (auto& result : results) {
    call.stack->push_back(std::move(result));
  }
}

/// aten::empty.memory_format, aten::empty_strided.
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
  geometry.sizes.assign(sizes.begin(), sizes.end());
  std::vector<int64_t> strides;
  if (strided) {
    strides = arguments[1].toIntVector();
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
  const auto nbytes = valid_nbytes(geometry);
  if (!nbytes) {
    return false;
  }
  auto tensor = make_lazy_tensor({make_buffer(*nbytes, nullptr), nullptr}, geometry);
  torch::jit::drop(*call.stack, arguments.size());
  call.stack->emplace_back(std::move(tensor));
  return true;
}

/// The node computes the same whatever the default dtype is at replay.
NodePtr new_functional_node(const Call& call, const std::vector<Geometry>& results) {
  if (!depends_on_default_dtype(call, results)) {
    return new_node(call, NodeKind::functional);
  }
  auto converted = convert_integers(call, results);
  if (!converted) {
    return {};
  }
  Call independent(call.op, call.keys, &*converted);
  independent.threads = call.threads;
  return new_node(independent, NodeKind::functional);
}

bool all_contiguous(const Call& call) {
  bool contiguous = true;
  for_each_tensor(call, [&](const at::Tensor& t) { contiguous = contiguous && t.is_contiguous(); });
  return contiguous;
}

/// In-place and out= operators whose written arguments are lazy.
bool record_in_place(const Call& call) {
  for (const auto argument : call.traits.written) {
    const auto& tensor = call.arguments()[argument].toTensor();
    if (!is_lazy(tensor) || at::has_internal_overlap(tensor) == at::MemOverlap::Yes ||
        operands_overlap(call, tensor) || refuses_writes(tensor)) {
      return false;
    }
  }
  std::vector<Geometry> changed;
  if (!valid_write(call, changed) || (call.traits.random && !call.traits.generator)) {
    return false;
  }
  if (!changed.empty() && !all_contiguous(call)) {
    return false;  // the new strides follow those of the inputs, which Meta kernels may not tell
  }
  if (depends_on_default_dtype(call, {})) {
    return false;  // what it computes in is not what it writes: converted first, it may differ
  }
  Drawing drawing(call);
  WrittenTensors written;
  NodePtr node;
  do {  // once, unless another thread writes to the same storage
    if (!look_at_written(call, changed, written) || shares_what_grows(call, written) ||
        !(node = new_node(call, NodeKind::in_place, written)) || !drawing.draw(*node)) {
      return false;
    }
    node->sequence = next_sequence();
  } while (!publish(node, written));
  drawing.keep();
  for (const auto& each : written) {
    bump_version(each.tensor);
  }
  push_returns(call);
  return true;
}

/// Operators that return new tensors.
bool record_functional(const Call& call) {
  // Without a generator argument replay could not be told where its random numbers start.
  if (call.traits.random && !call.traits.generator) {
    return false;
  }
  auto results = infer_elementwise(call);
  if (!results) {
    results = infer_results(call);
  }
  if (!results) {
    return false;
  }
  const auto node = new_functional_node(call, *results);
  if (!node) {
    return false;
  }
  std::vector<History> histories;
  for (const auto& geometry : *results) {
    const auto nbytes = valid_nbytes(geometry);
    if (!nbytes) {
      return false;
    }
    histories.push_back({make_buffer(*nbytes, nullptr), node});
  }
  Drawing drawing(call);
  if (!drawing.draw(*node)) {
    return false;
  }
  node->sequence = next_sequence();
  node->first_result = node->operands.size();
  for (size_t i = 0; i < results->size(); ++i) {
    node->operands.push_back({(*results)[i], histories[i].buffer, nullptr, {}, true});
  }
  std::vector<at::Tensor> tensors;
  tensors.reserve(results->size());
  for (size_t i = 0; i < results->size(); ++i) {
    tensors.push_back(make_lazy_tensor(histories[i], (*results)[i]));
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
  drawing.keep();
  return true;
}

/// aten::resize_ of a lazy tensor.
bool record_resize(const Call& call) {
  const auto arguments = call.arguments();
  const auto& tensor = arguments[0].toTensor();
  // Eager refuses to resize what requires grad, whatever the grad mode.
  if (tensor.requires_grad() || refuses_writes(tensor) || !arguments[1].isIntList() ||
      !arguments[2].isNone()) {
    return false;
  }
  const auto sizes = arguments[1].toIntVector();
  if (tensor.sizes() == at::IntArrayRef(sizes)) {
    torch::jit::drop(*call.stack, arguments.size() - 1);
    return true;
  }
  Geometry wanted;
  try {
    wanted = Geometry::contiguous(sizes, tensor.scalar_type());
  } catch (const c10::ValueError&) {
    return false;
  }
  wanted.offset = tensor.storage_offset();
  const auto bytes = valid_nbytes(wanted);
  if (!bytes) {
    return false;
  }
  WrittenTensors written;
  c10::SmallVector<Exchange, 1> growth;
  do {
    growth.clear();
    const auto history = history_of(tensor);
    if (!history) {
      return false;
    }
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    if (*bytes > history->buffer->nbytes) {
      growth.push_back({storage, *history, grown(*history, *bytes, storage)});
    }
  } while (!exchange(growth));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(wanted.sizes, wanted.strides);
  bump_version(tensor);
  torch::jit::drop(*call.stack, arguments.size() - 1);
  return true;
}

}  // namespace

bool refuses_writes(const at::Tensor& tensor) {
  return tensor.is_inference() && !c10::InferenceMode::is_enabled();
}

void bump_version(const at::Tensor& tensor) {
  const auto& excluded = c10::impl::tls_local_dispatch_key_set().excluded_;
  if (!excluded.has(c10::DispatchKey::ADInplaceOrView) && !tensor.is_inference()) {
    tensor.unsafeGetTensorImpl()->bump_version();
  }
}

c10::Storage clone_storage(const c10::Storage& source) {
  const StorageToCome copy_to_come;
  const auto found = history_or_memory_of(source.unsafeGetStorageImpl());
  const auto* history = std::get_if<History>(&found);
  if (history == nullptr) {
    const auto memory = std::get<Memory>(found);
    auto copy = allocate(memory.nbytes);
    std::memcpy(copy.mutable_data(), memory.data, memory.nbytes);
    return copy;
  }
  History copied{make_buffer(history->buffer->nbytes, nullptr), nullptr};
  if (history->tail) {
    copied.tail = copy_bytes(*history, copied.buffer);
  }
  return make_first_storage(copied);
}

bool record(const Call& call) {
  // What recording itself calls (copies of captured tensors, checks of arguments) is not recorded.
  const c10::impl::ExcludeDispatchKeyGuard no_recording(c10::DispatchKey::DeferredInit);
  switch (call.traits.route) {
    case Route::make_empty:
      return record_empty(call);
    case Route::in_place:
      return values_in_range(call) && record_in_place(call);
    case Route::functional:
      return values_in_range(call) && record_functional(call);
    case Route::resize:
      return record_resize(call);
    default:
      return false;
  }
}

}  // namespace dormant::record
