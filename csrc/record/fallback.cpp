#include "record/fallback.h"

#include <ATen/Context.h>
#include <ATen/Dispatch_v2.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_local_scalar_dense_ops.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/strides.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "record/call.h"
#include "record/grad_accumulator.h"
#include "record/lazy_storage.h"
#include "record/recorder.h"
#include "record/replay.h"
#include "record/validity.h"
#include "system/dispatch_state.h"

namespace dormant::record {

void run_below(const Call& call) {
  const c10::impl::ExcludeDispatchKeyGuard no_recording(c10::DispatchKey::DeferredInit);
  call.op.redispatchBoxed(call.keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER,
                                                          c10::DispatchKey::DeferredInit),
                          call.stack);
}

namespace {

constexpr auto kKey = c10::DispatchKey::DeferredInit;

/// A key below autograd that no tensor and no thread carries, of a device that PyTorch has no
/// operators for: a call is sent there by hand, through autograd's kernel, so that it is recorded
/// and noted in the graph.
constexpr auto kBelowAutograd = c10::DispatchKey::FPGA;

/// Layers between us and the kernels that unwrap tensors and call operators anew: modes and
/// subclasses with
/// __torch_dispatch__, vmap, functionalization. They come first; what they call comes back here.
const c10::DispatchKeySet kWrappers(
    {c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot,
     c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper,
     c10::DispatchKey::FuncTorchVmapMode, c10::DispatchKey::FuncTorchDynamicLayerBackMode,
     c10::DispatchKey::Functionalize, c10::DispatchKey::BatchedNestedTensor});

thread_local std::unordered_map<std::string, uint64_t> reads_of_this_thread;

/// Whether `op` comes back to us below autograd; sees to it the first time.
bool returns_below_autograd(const c10::OperatorHandle& op);

bool autograd_would_track(const Call& call) {
  if (!at::GradMode::is_enabled() ||
      c10::impl::tls_local_dispatch_key_set().excluded_.has(c10::DispatchKey::AutogradCPU)) {
    return false;
  }
  bool requires_grad = false;
  for_each_tensor(call,
                  [&](const at::Tensor& t) { requires_grad = requires_grad || t.requires_grad(); });
  return requires_grad;
}

/// Whether the options ask for a layout whose key BackendSelect, below us, puts before
/// kBelowAutograd.
bool makes_another_layout(const Call& call) {
  const auto& arguments = call.op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& value = call.arguments()[i];
    if (value.isInt() && arguments[i].name() == "layout") {
      return value.toLayout() != c10::kStrided;
    }
  }
  return false;
}

/// Whether autograd's kernel may be asked to note a call that is not run, but recorded.
bool can_note(const Call& call) {
  // What comes between autograd and us: bits that are resolved first, and other layouts.
  static const c10::DispatchKeySet between(
      {c10::DispatchKey::Conjugate, c10::DispatchKey::Negative, c10::DispatchKey::ZeroTensor,
       c10::DispatchKey::NestedTensor, c10::DispatchKey::SparseCsr, c10::DispatchKey::Sparse,
       c10::DispatchKey::MkldnnCPU, c10::DispatchKey::Quantized});
  const auto route = call.traits.route;
  return recording() &&
         (route == Route::in_place || route == Route::functional || route == Route::decompose) &&
         !call.keys.has_any(between) && !makes_another_layout(call) &&
         returns_below_autograd(call.op);
}

/// Eager refuses these before it touches any data.
bool writes_to_leaf(const Call& call) {
  for (const auto argument : call.traits.written) {
    const auto& tensor = call.arguments()[argument].toTensor();
    if (tensor.requires_grad() && tensor.is_leaf()) {
      return true;
    }
  }
  return false;
}

bool writes_are_refused(const Call& call) {
  bool refused = false;
  for (const auto argument : call.traits.written) {
    for_each_tensor(call.arguments()[argument],
                    [&](const at::Tensor& tensor) { refused = refused || refuses_writes(tensor); });
  }
  return refused;
}

bool autocast_active(const Call& call) {
  return call.traits.autocast && call.keys.has(c10::DispatchKey::AutocastCPU);
}

/// A copy_ that replaces all of a lazy storage by plain real values and that nobody has to note:
/// nothing needs to be initialized first.
bool replaces_all(const Call& call) {
  if (call.traits.write != WriteRule::copy || autograd_would_track(call)) {
    return false;
  }
  const auto& self = call.arguments()[0].toTensor();
  const auto& source = call.arguments()[1].toTensor();
  const auto history = history_of(self);
  return history && !is_lazy(source) && source.sizes() == self.sizes() && source.is_cpu() &&
         source.layout() == c10::kStrided && !source.is_quantized() && !source._is_zerotensor() &&
         !refuses_writes(self) && Geometry::of(self).covers(history->buffer->nbytes);
}

/// A copy_ to a meta tensor moves nothing.
bool copies_to_meta(const Call& call) {
  return call.traits.write == WriteRule::copy && call.arguments()[0].toTensor().is_meta();
}

/// _to_copy to the meta device makes a tensor without values, whatever autograd notes of it.
bool moves_to_meta(const Call& call) {
  if (call.traits.kind != Kind::composite || call.op.operator_name().name != "aten::_to_copy") {
    return false;
  }
  const auto& device = call.arguments()[3];
  return device.isDevice() && device.toDevice().is_meta();
}

/// Materializes what `op` reads.
void materialize_for(const c10::OperatorHandle& op, const std::vector<c10::Storage>& storages) {
  ReplayOptions options;
  options.keep_intermediates = true;
  const auto done = materialize(storages, options);
  if (recording()) {
    uint64_t bytes = 0;
    for (const auto& storage : done) {
      bytes += storage.nbytes;
    }
    reads_of_this_thread[full_name(op)] += bytes;
  }
}

void materialize_arguments(const Call& call) {
  std::vector<c10::Storage> storages;
  for_each_tensor(call, [&](const at::Tensor& tensor) {
    if (is_lazy(tensor)) {
      storages.push_back(tensor.storage());
    }
  });
  if (!storages.empty()) {
    materialize_for(call.op, storages);
  }
  for_each_tensor(call, [](const at::Tensor& tensor) { sync_key(tensor); });
}

/// set_(source, offset, sizes, strides); without strides it is contiguous.
std::optional<Geometry> explicit_geometry(const Call& call) {
  const auto arguments = call.arguments();
  if (!arguments[2].isInt() || !arguments[3].isIntList() || !arguments[4].isIntList()) {
    return std::nullopt;
  }
  const auto sizes = arguments[3].toIntVector();
  const auto strides = arguments[4].toIntVector();
  Geometry geometry;
  geometry.sizes.assign(sizes.begin(), sizes.end());
  geometry.strides.assign(strides.begin(), strides.end());
  if (strides.empty()) {
    geometry.strides = c10::contiguous_strides(sizes);
  }
  geometry.offset = arguments[2].toInt();
  geometry.dtype = arguments[0].toTensor().scalar_type();
  return geometry;
}

/// set_(storage): all of it, in one dimension.
Geometry flat_geometry(const at::Tensor& self, const c10::Storage& source) {
  auto geometry = Geometry::bytes(source.nbytes() / self.element_size());
  geometry.dtype = self.scalar_type();
  return geometry;
}

/// copy_ into memory of its own, which the storage gets when the copy is complete. False where
/// another thread has changed the storage meanwhile.
bool replace(const Call& call) {
  const auto arguments = call.arguments();
  const auto& self = arguments[0].toTensor();
  const auto history = history_of(self);
  if (!history) {
    return false;
  }
  const auto memory = allocate(history->buffer->nbytes);
  {
    const system::PlainDispatch plain;
    Geometry::of(self).over(memory).copy_(arguments[1].toTensor());
  }
  auto& copied = memory.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks();
  if (!commit(self.storage().unsafeGetStorageImpl(), *history, std::move(copied))) {
    return false;
  }
  sync_key(self);
  bump_version(self);
  torch::jit::drop(*call.stack, arguments.size() - 1);
  return true;
}

void run_real(const Call& call) {
  if (replaces_all(call) && replace(call)) {
    return;
  }
  materialize_arguments(call);
  run_below(call);
}

void decompose(const Call& call) {
  std::optional<c10::impl::IncludeDispatchKeyGuard> record_inside;
  if (call.traits.movement) {
    record_inside.emplace(kKey);
  }
  std::vector<at::Tensor> written;
  for (const auto argument : call.traits.written) {
    for_each_tensor(call.arguments()[argument],
                    [&](const at::Tensor& tensor) { written.push_back(tensor); });
  }
  // Eager comes to such a kernel through autograd's, if autograd's keys are there at all: factories
  // that C++ calls have none, and count their writes. Those to arguments are counted here, once.
  std::optional<at::AutoDispatchBelowADInplaceOrView> below_autograd;
  if (call.traits.below_autograd &&
      (!written.empty() || call.keys.has_any(c10::autograd_dispatch_keyset))) {
    below_autograd.emplace();
  }
  call.op.callBoxedForDispatchKey(call.traits.composite_key, *call.stack);
  below_autograd.reset();
  for (const auto& tensor : written) {
    bump_version(tensor);
  }
}

/// aten::set_ gives a tensor another storage. The CPU kernel looks at the data pointers of both,
/// which lazy storages refuse, so a lazy source is handled here.
void set_storage(const Call& call) {
  const auto arguments = call.arguments();
  const at::Tensor self = arguments[0].toTensor();
  c10::Storage source;
  std::optional<Geometry> wanted;
  if (arguments.size() > 1 && arguments[1].isStorage()) {
    source = arguments[1].toStorage();
  } else if (arguments.size() > 1 && arguments[1].isTensor() &&
             arguments[1].toTensor().has_storage()) {
    source = arguments[1].toTensor().storage();
    wanted = Geometry::of(arguments[1].toTensor());
  }
  if (source && is_lazy(source.unsafeGetStorageImpl())) {
    wanted = arguments.size() == 5 ? explicit_geometry(call)
             : wanted              ? wanted
                                   : flat_geometry(self, source);
    const auto needed = wanted ? valid_nbytes(*wanted) : std::nullopt;
    // Of a tensor that requires grad, autograd notes that its storage was exchanged.
    if (needed && *needed <= source.nbytes() && !autograd_would_track(call) &&
        !refuses_writes(self)) {
      auto* impl = self.unsafeGetTensorImpl();
      impl->set_storage_keep_dtype(source);
      impl->set_sizes_and_strides(wanted->sizes, wanted->strides, wanted->offset);
      sync_key(self);
      bump_version(self);
      if (call.keys.has_any(c10::autograd_dispatch_keyset)) {
        reset_grad_accumulator(self);
      }
      torch::jit::drop(*call.stack, arguments.size() - 1);
      return;
    }
    ReplayOptions options;
    options.keep_intermediates = true;
    materialize({source}, options);
  }
  const auto before = self.storage();
  const auto placeholder = is_lazy(self) ? allocate(0) : before;
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(placeholder);
  try {
    run_below(call);
  } catch (...) {
    // What the operator has exchanged before it raised stays so, sizes and storage, as in eager.
    if (self.storage().is_alias_of(placeholder)) {
      self.unsafeGetTensorImpl()->set_storage_keep_dtype(before);
    }
    sync_key(self);
    throw;
  }
  sync_key(self);
}

/// torch.use_deterministic_algorithms fills what nobody initialized, and counts that as a write
/// where the caller's are counted (at::native::fill_empty_deterministic_).
void fill_if_deterministic(const at::Tensor& tensor) {
  const auto& context = at::globalContext();
  if (!context.deterministicAlgorithms() || !context.deterministicFillUninitializedMemory()) {
    return;
  }
  if (tensor.is_floating_point() || tensor.is_complex()) {
    tensor.fill_(std::numeric_limits<double>::quiet_NaN());
  } else if (tensor.scalar_type() == c10::ScalarType::Bool) {
    tensor.fill_(true);
  } else {
    AT_DISPATCH_V2(tensor.scalar_type(), "fill_if_deterministic", AT_WRAP([&] {
                     tensor.fill_(static_cast<int64_t>(std::numeric_limits<scalar_t>::max()));
                   }),
                   AT_EXPAND(AT_INTEGRAL_TYPES_V2));
  }
}

/// Autograd's kernel sets up the graph, as in eager, around what `below_autograd` does.
void through_autograd(const Call& call) {
  const auto below = c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kKey);
  call.op.redispatchBoxed((call.keys & below).add(kBelowAutograd), call.stack);
}

void below_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                    torch::jit::Stack* stack) {
  const Call call(op, keys, stack);
  if (call.traits.route == Route::decompose) {
    decompose(call);
  } else if (!record(call)) {
    materialize_arguments(call);
    const c10::impl::ExcludeDispatchKeyGuard no_recording(kKey);
    op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kBelowAutograd),
                       stack);
  }
}

bool returns_below_autograd(const c10::OperatorHandle& op) {
  static std::mutex mutex;
  static std::unordered_map<const c10::FunctionSchema*, std::optional<bool>> known;
  static torch::Library library(torch::Library::IMPL, "aten", kBelowAutograd, __FILE__, __LINE__);
  const std::lock_guard<std::mutex> lock(mutex);
  auto& returns = known[&op.schema()];
  if (returns) {
    return *returns;
  }
  // An extension for that device comes first; and the kernel would make it ambiguous what autograd
  // takes for a composite operator.
  if (!op.hasKernelForDispatchKey(kBelowAutograd) &&
      !op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) {
    const auto& name = op.operator_name();
    const auto overload = name.overload_name.empty() ? "" : "." + name.overload_name;
    library.impl((name.name + overload).c_str(),
                 torch::CppFunction::makeFromBoxedFunction<&below_autograd>());
    returns = true;
  } else {
    returns = false;
  }
  return *returns;
}

void without_lazy_arguments(const Call& call, bool has_tensors) {
  if (recording()) {
    if (call.traits.route == Route::make_empty && record(call)) {
      fill_if_deterministic(call.stack->back().toTensor());
      return;
    }
    const bool makes_tensors = call.traits.factory && call.traits.written.empty();
    if (call.traits.route == Route::decompose && (makes_tensors || !has_tensors)) {
      decompose(call);
      return;
    }
  }
  run_below(call);
}

void with_lazy_arguments(const Call& call) {
  switch (call.traits.route) {
    case Route::metadata:
    case Route::view:
      run_below(call);
      return;
    case Route::set_storage:
      set_storage(call);
      return;
    case Route::decompose:
      if (moves_to_meta(call)) {
        run_below(call);
        return;
      }
      if (writes_are_refused(call)) {
        break;
      }
      if (!call.traits.below_autograd || (call.traits.factory && call.traits.written.empty()) ||
          !autograd_would_track(call)) {
        if (!autocast_active(call)) {
          decompose(call);
          return;
        }
      } else if (can_note(call) && !autocast_active(call)) {
        through_autograd(call);
        return;
      }
      break;
    default:
      if (copies_to_meta(call)) {
        torch::jit::drop(*call.stack, call.arguments().size() - 1);
        return;
      }
      if (call.traits.route == Route::in_place && at::GradMode::is_enabled() &&
          writes_to_leaf(call)) {
        // Autograd refuses most of these, before any data is touched.
        if (!can_note(call)) {
          break;
        }
        through_autograd(call);
        return;
      }
      if (autocast_active(call)) {
        break;
      }
      if (autograd_would_track(call)) {
        if (can_note(call)) {
          through_autograd(call);
          return;
        }
        break;
      }
      if ((recording() || call.traits.movement || call.traits.route == Route::resize) &&
          record(call)) {
        return;
      }
  }
  run_real(call);
}

bool fake_mode_is_on() {
  using Modes = c10::impl::TorchDispatchModeTLS;
  return Modes::get_mode(c10::impl::TorchDispatchModeKey::FAKE).has_value();
}

/// Whether somebody watches what runs: TorchScript's tracer, or a mode with __torch_dispatch__,
/// which calls operators with our key off. They are to see what eager calls, with values. Fake
/// tensors need none.
bool is_watched(c10::DispatchKeySet keys) {
  return keys.has(c10::DispatchKey::Tracer) ||
         (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::Python) && !fake_mode_is_on());
}

/// Gives lazy arguments values that whoever gets the call next can't record.
void show_values(const Call& call) {
  if (call.traits.route == Route::metadata || call.traits.route == Route::view) {
    return;
  }
  bool has_lazy = false;
  for_each_tensor(call, [&](const at::Tensor& tensor) { has_lazy = has_lazy || is_lazy(tensor); });
  if (has_lazy) {
    materialize_arguments(call);
  }
}

void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const bool watched = is_watched(keys);
  // A subclass (AsyncCollectiveTensor) calls operators with our key off, too. Parts of a DTensor
  // are not seen here, and fake tensors need no values.
  if (watched || (keys.has(c10::DispatchKey::Python) && !fake_mode_is_on())) {
    show_values(Call(op, keys, stack));
  }
  if (keys.has_any(kWrappers)) {
    op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kKey), stack);
    return;
  }
  const Call call(op, keys, stack);
  if (watched) {
    run_below(call);
    return;
  }
  // From the look at the arguments to the result: no thread finds the last lazy tensor gone
  // between.
  const StorageToCome result;
  bool has_tensors = false;
  bool has_lazy = false;
  for_each_tensor(call, [&](const at::Tensor& tensor) {
    has_tensors = true;
    if (is_lazy(tensor)) {
      has_lazy = true;
    } else if (carries_key(tensor)) {
      sync_key(tensor);  // its storage got memory through another tensor
    }
  });
  if (call.traits.route == Route::set_storage && has_tensors) {
    set_storage(call);
  } else if (has_lazy) {
    with_lazy_arguments(call);
  } else {
    without_lazy_arguments(call, has_tensors);
  }
}

/// An element is read where somebody has turned DeferredInit off: torch.tensor does while it goes
/// through nested sequences (internal_new_from_data, torch/csrc/utils/tensor_new.cpp). What it does
/// not turn off is BackendSelect, which is on in every thread; other operators fall through it.
/// Like any other operator, this may run whatever makes the value.
at::Scalar read_value(c10::DispatchKeySet keys, const at::Tensor& self) {
  if (carries_key(self)) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("aten::_local_scalar_dense", "");
    if (is_lazy(self)) {
      materialize_for(op, {self.storage()});
    }
    sync_key(self);
  }
  return at::_ops::_local_scalar_dense::redispatch(
      keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::BackendSelect),
      self);
}

}  // namespace

bool recording() noexcept { return c10::impl::tls_is_dispatch_key_included(kKey); }

bool set_recording(bool on) noexcept {
  const bool before = recording();
  c10::impl::tls_set_dispatch_key_included(kKey, on);
  return before;
}

const std::unordered_map<std::string, uint64_t>& value_reads() noexcept {
  return reads_of_this_thread;
}

void reset_value_reads() { reads_of_this_thread.clear(); }

}  // namespace dormant::record

TORCH_LIBRARY_IMPL(_, DeferredInit, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&dormant::record::fallback>());
}

TORCH_LIBRARY_IMPL(aten, BackendSelect, library) {
  library.impl("_local_scalar_dense", TORCH_FN(dormant::record::read_value));
}
