#include "record/operator_traits.h"

#include <ATen/core/enum_tag.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace dormant::record {
namespace {

using NameSet = std::unordered_set<std::string_view>;

// Names are without "aten::" and without overload: the overloads of an operator behave alike here.

/// Factories whose CompositeExplicit kernels consist of empty + in-place writes and read no value
/// of their arguments.
const NameSet kFactories = {"empty_like",
                            "empty_permuted",
                            "new_empty",
                            "new_empty_strided",
                            "new_full",
                            "new_ones",
                            "new_zeros",
                            "ones",
                            "ones_like",
                            "zeros",
                            "zeros_like",
                            "full",
                            "full_like",
                            "rand",
                            "rand_like",
                            "randn",
                            "randn_like",
                            "randint",
                            "randint_like",
                            "randperm",
                            "arange",
                            "linspace",
                            "logspace",
                            "range",
                            "eye",
                            "scalar_tensor",
                            "hann_window",
                            "hamming_window",
                            "blackman_window",
                            "bartlett_window",
                            "fft_fftfreq",
                            "fft_rfftfreq",
                            "normal"};

/// CompositeExplicit kernels made of empty + copy_: they move data.
const NameSet kMovements = {"clone", "_to_copy"};

/// Operators on lists of tensors, whose CompositeExplicit kernels call the operator of each tensor.
bool works_on_lists(std::string_view name) { return name.compare(0, 9, "_foreach_") == 0; }

/// Elementary operators that move or initialise data.
const NameSet kElementaryMovements = {"copy_",         "fill_",          "zero_",
                                      "normal_",       "uniform_",       "bernoulli_",
                                      "exponential_",  "cauchy_",        "geometric_",
                                      "log_normal_",   "random_",        "cat",
                                      "stack",         "repeat",         "_stack",
                                      "narrow_copy",   "split_copy",     "split_with_sizes_copy",
                                      "slice_copy",    "select_copy",    "view_copy",
                                      "t_copy",        "transpose_copy", "permute_copy",
                                      "expand_copy",   "unbind_copy",    "as_strided_copy",
                                      "_reshape_copy", "_conj_copy",     "alias_copy",
                                      "detach_copy",   "constant_pad_nd"};

/// In-place operators that never read what they overwrite.
const NameSet kWriteOnly = {"copy_",      "fill_",       "zero_",        "normal_",
                            "uniform_",   "bernoulli_",  "exponential_", "cauchy_",
                            "geometric_", "log_normal_", "random_"};

/// Read or change geometry only.
const NameSet kMetadata = {"size",
                           "stride",
                           "numel",
                           "dim",
                           "storage_offset",
                           "sym_size",
                           "sym_stride",
                           "sym_numel",
                           "sym_storage_offset",
                           "sym_is_contiguous",
                           "is_contiguous",
                           "is_same_size",
                           "is_set_to",
                           "_has_same_storage_numel",
                           "is_pinned",
                           "is_coalesced",
                           "is_floating_point",
                           "is_complex",
                           "is_signed",
                           "is_conj",
                           "is_neg",
                           "is_inference",
                           "_is_zerotensor",
                           "_debug_has_internal_overlap",
                           "_version",
                           "output_nr",
                           "is_leaf",
                           "retains_grad",
                           "result_type",
                           "can_cast",
                           "get_device",
                           "_has_compatible_shallow_copy_type",
                           "is_distributed",
                           "cudnn_is_acceptable",
                           "_fused_sdp_choice",
                           "detach_",
                           "squeeze_",
                           "unsqueeze_",
                           "t_",
                           "transpose_",
                           "swapdims_",
                           "swapaxes_",
                           "as_strided_",
                           "set_data",
                           "dense_dim",
                           "sparse_dim",
                           "_assert_tensor_metadata",
                           "_dimI",
                           "_dimV",
                           "_unsafe_view",
                           "unsafe_split",
                           "unsafe_split_with_sizes",
                           "lift",
                           "_make_dual",
                           "_unpack_dual",
                           "_fw_primal"};

/// Never recorded, each for the reason given.
const NameSet kAlwaysReal = {
    // the schema hides that running statistics are written
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm_update_stats",
    "batch_norm_gather_stats", "batch_norm_gather_stats_with_counts", "_batch_norm_with_update",
    "rrelu_with_noise", "rrelu_with_noise_",
    // the strides of the CPU kernel differ from the Meta kernel's, or depend on the backend library
    "linalg_eig", "linalg_eigvals", "_linalg_svd", "_linalg_eigh", "linalg_lstsq",
    "linalg_ldl_factor_ex", "_fft_c2c", "_fft_r2c", "_fft_c2r", "_euclidean_dist", "_convolution",
    "convolution", "mkldnn_convolution", "kaiser_window", "lstsq", "geqrf", "_linalg_solve_ex",
    "linalg_lu_solve",
    // results that alias an input depending on values or geometry
    "_coalesced", "coalesce", "_conj_physical", "slice_inverse",
    // quantised tensors are real at once
    "quantize_per_tensor", "quantize_per_tensor_dynamic", "quantize_per_channel",
    "_empty_affine_quantized", "_empty_per_channel_affine_quantized",
    "_make_per_tensor_quantized_tensor", "_make_per_channel_quantized_tensor",
    // dtypes of the CPU kernel's statistics, or strides of its result, or the size of the workspace
    // that it returns, differ from the Meta kernel's
    "mkldnn_rnn_layer", "_fused_rms_norm", "nonzero_static", "ctc_loss", "_ctc_loss",
    "_use_cudnn_ctc_loss",
    // composite kernels that look at data pointers
    "max_pool1d", "fbgemm_linear_quantize_weight", "fbgemm_pack_gemm_matrix_fp16",
    // effects outside the tensor
    "from_file", "_print", "_assert_async", "_assert_scalar", "_functional_assert_async",
    "_functional_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size",
    "_functional_sym_constrain_range", "_functional_sym_constrain_range_for_size", "record_stream",
    "_efficientzerotensor", "_resize_output_", "_resize_output", "resize_as_", "resize_as_sparse_",
    "copy_sparse_to_sparse_", "_amp_update_scale_", "_amp_foreach_non_finite_check_and_unscale_",
    "_pin_memory", "pin_memory", "_nested_tensor_from_tensor_list", "_nested_tensor_from_mask",
    "_test_parallel_materialize", "_test_warn_in_autograd", "_async_error", "_lazy_clone",
    "_local_scalar_dense"};

const std::unordered_map<std::string_view, IndexRule> kIndexRules = {
    {"index_select", IndexRule::along_dim},
    {"gather", IndexRule::along_dim},
    {"index_add", IndexRule::along_dim},
    {"index_add_", IndexRule::along_dim},
    {"index_copy", IndexRule::along_dim},
    {"index_copy_", IndexRule::along_dim},
    {"index_fill", IndexRule::along_dim},
    {"index_fill_", IndexRule::along_dim},
    {"index_reduce", IndexRule::along_dim},
    {"index_reduce_", IndexRule::along_dim},
    {"scatter", IndexRule::along_dim},
    {"scatter_", IndexRule::along_dim},
    {"scatter_add", IndexRule::along_dim},
    {"scatter_add_", IndexRule::along_dim},
    {"scatter_reduce", IndexRule::along_dim},
    {"scatter_reduce_", IndexRule::along_dim},
    {"embedding", IndexRule::first_dim},
    {"index", IndexRule::per_element},
    {"index_put", IndexRule::per_element},
    {"index_put_", IndexRule::per_element},
    {"_index_put_impl_", IndexRule::per_element},
    {"_unsafe_index", IndexRule::per_element},
    {"_unsafe_index_put", IndexRule::per_element}};

/// Index operators without a rule above check their bounds only when they run.
const NameSet kUncheckedIndex = {"take",
                                 "put",
                                 "put_",
                                 "one_hot",
                                 "embedding_bag",
                                 "_embedding_bag",
                                 "_embedding_bag_forward_only",
                                 "index_put_with_sort",
                                 "_unsafe_masked_index",
                                 "nll_loss_forward",
                                 "nll_loss2d_forward",
                                 "cross_entropy_loss",
                                 "bincount",
                                 "histc",
                                 "lu_unpack",
                                 "embedding_renorm_",
                                 "searchsorted"};

bool is_tensor(const c10::Argument& argument) {
  return argument.type()->kind() == c10::TypeKind::TensorType;
}

bool is_tensor_list(const c10::Argument& argument) {
  return argument.type()->isSubtypeOf(*c10::ListType::ofTensors());
}

/// Indices of the arguments that are written, tensors and lists of them.
std::vector<size_t> written_arguments(const c10::FunctionSchema& schema) {
  std::vector<size_t> written;
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias != nullptr && alias->isWrite()) {
      written.push_back(i);
    }
  }
  return written;
}

/// Fills the tables of an operator that writes arguments. False if one of them can't be described.
bool describe_writes(const c10::FunctionSchema& schema, OperatorTraits& traits) {
  const auto& arguments = schema.arguments();
  traits.written = written_arguments(schema);
  for (const auto i : traits.written) {
    if (!is_tensor(arguments[i])) {
      return false;
    }
  }
  for (const auto& result : schema.returns()) {
    const auto* alias = result.alias_info();
    if (alias == nullptr || !alias->isWrite()) {
      return false;
    }
    const auto source = std::find_if(traits.written.begin(), traits.written.end(), [&](size_t i) {
      return arguments[i].alias_info()->beforeSets() == alias->beforeSets();
    });
    if (source == traits.written.end()) {
      return false;
    }
    traits.return_alias.push_back(*source);
  }
  return true;
}

Route route_of(const c10::OperatorHandle& op, std::string_view name, OperatorTraits& traits) {
  const auto& schema = op.schema();
  const auto has_kernel = [&](c10::DispatchKey key) { return op.hasKernelForDispatchKey(key); };
  if (name == "empty" && schema.overload_name() == "memory_format") {
    return Route::make_empty;
  }
  if (name == "empty_strided") {
    return Route::make_empty;
  }
  if (name == "set_") {
    return Route::set_storage;
  }
  if (name == "resize_") {
    return Route::resize;
  }
  if (kMetadata.count(name) != 0) {
    return Route::metadata;
  }
  if (name == "repeat_interleave" && schema.overload_name() != "self_int") {
    return Route::real;  // its size is the sum of the repeats
  }
  if (kAlwaysReal.count(name) != 0 || kUncheckedIndex.count(name) != 0) {
    return Route::real;
  }
  if (kFactories.count(name) != 0 || kMovements.count(name) != 0 || works_on_lists(name)) {
    for (const auto key : {c10::DispatchKey::CompositeExplicitAutograd,
                           c10::DispatchKey::CompositeExplicitAutogradNonFunctional}) {
      if (has_kernel(key)) {
        traits.composite_key = key;
        traits.below_autograd = true;
        traits.written = written_arguments(schema);
        return Route::decompose;
      }
    }
  }
  if (has_kernel(c10::DispatchKey::CompositeImplicitAutograd) &&
      !has_kernel(c10::DispatchKey::CPU)) {
    return Route::decompose;
  }
  const bool writes = schema.is_mutable();
  const bool aliases =
      std::any_of(schema.returns().begin(), schema.returns().end(),
                  [](const auto& result) { return result.alias_info() != nullptr; });
  if (!writes && aliases) {
    return Route::view;
  }
  // An index of numbers tells the shape, a mask doesn't: values_in_range refuses those.
  const bool by_mask_only = traits.index_rule == IndexRule::per_element;
  if (op.hasTag(at::Tag::data_dependent_output) ||
      (op.hasTag(at::Tag::dynamic_output_shape) && !by_mask_only)) {
    return Route::real;
  }
  if (writes) {
    return !op.hasTag(at::Tag::inplace_view) && describe_writes(schema, traits) ? Route::in_place
                                                                                : Route::real;
  }
  const bool only_tensors =
      !schema.returns().empty() &&
      std::all_of(schema.returns().begin(), schema.returns().end(),
                  [](const auto& result) { return is_tensor(result) || is_tensor_list(result); });
  return only_tensors ? Route::functional : Route::real;
}

OperatorTraits describe(const c10::OperatorHandle& op) {
  OperatorTraits traits;
  const std::string& full = op.operator_name().name;
  constexpr std::string_view kNamespace = "aten::";
  if (full.compare(0, kNamespace.size(), kNamespace) != 0) {
    return traits;  // another namespace: collectives, custom operators; they may read raw pointers
  }
  const std::string_view name = std::string_view(full).substr(kNamespace.size());
  const auto& overload = op.operator_name().overload_name;
  const auto& arguments = op.schema().arguments();
  traits.factory = kFactories.count(name) != 0;
  traits.movement =
      traits.factory || kMovements.count(name) != 0 || kElementaryMovements.count(name) != 0;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].type()->str().find("Generator") != std::string::npos) {
      traits.generator = i;
    }
  }
  traits.random = op.hasTag(at::Tag::nondeterministic_seeded) || traits.generator;
  traits.write_only = kWriteOnly.count(name) != 0 || overload.find("out") != std::string::npos;
  traits.autocast = op.hasKernelForDispatchKey(c10::DispatchKey::AutocastCPU);
  if (const auto rule = kIndexRules.find(name); rule != kIndexRules.end()) {
    traits.index_rule = rule->second;
  }
  traits.route = route_of(op, name, traits);
  return traits;
}

}  // namespace

const OperatorTraits& traits_of(const c10::OperatorHandle& op) {
  // Keyed by the address of the schema, which is stable while the operator is registered and,
  // unlike its name, needs no hashing of a string on every call.
  thread_local std::unordered_map<const c10::FunctionSchema*, OperatorTraits> cache;
  const auto* key = &op.schema();
  const auto found = cache.find(key);
  return found != cache.end() ? found->second : cache.emplace(key, describe(op)).first->second;
}

}  // namespace dormant::record
