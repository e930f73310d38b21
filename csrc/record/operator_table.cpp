#include "record/operator_table.h"

#include <sstream>
#include <string>
#include <unordered_map>

namespace dormant::record {
namespace {

using G = GeometryRule;
using T = TileRule;
using W = WriteRule;

const OperatorRow kRows[] = {
    // First values.
    {"empty_like empty_permuted new_empty new_empty_strided new_full new_ones new_zeros ones"
     " ones_like zeros zeros_like full full_like scalar_tensor"
     " hann_window hamming_window blackman_window bartlett_window fft_fftfreq fft_rfftfreq rand"
     " rand_like randn randn_like randint randint_like",
     {.kind = Kind::factory}},
    {"linspace logspace randperm", {.kind = Kind::factory, .geometry = G::vector_of_numbers}},
    {"eye", {.kind = Kind::factory, .geometry = G::matrix_of_numbers}},
    {"arange range", {.kind = Kind::factory, .write = W::range}},
    {"normal", {.kind = Kind::factory, .values = ValueRule::deviation}},
    {"zero_", {.kind = Kind::overwrite, .write = W::always, .tile = T::compute_in_place}},
    {"fill_",
     {.kind = Kind::overwrite,
      .geometry = G::broadcast,
      .write = W::value,
      .tile = T::compute_in_place}},
    {"normal_", {.kind = Kind::overwrite, .write = W::normal, .tile = T::normal}},
    {"uniform_", {.kind = Kind::overwrite, .write = W::uniform, .tile = T::uniform}},
    {"bernoulli_",
     {.kind = Kind::overwrite, .values = ValueRule::probability, .tile = T::bernoulli}},
    {"exponential_ cauchy_ geometric_", {.kind = Kind::overwrite, .tile = T::draw_twice}},
    {"random_", {.kind = Kind::overwrite, .tile = T::draw_integer}},
    {"log_normal_", {.kind = Kind::overwrite}},
    {"bernoulli", {.values = ValueRule::probability}},
    {"multinomial", {.values = ValueRule::weights}},

    // Moving elements.
    {"copy_", {.kind = Kind::overwrite, .write = W::copy, .tile = T::copy}},
    {"clone _to_copy", {.kind = Kind::composite}},
    {"cat", {.kind = Kind::movement, .geometry = G::cat, .tile = T::join}},
    {"stack", {.kind = Kind::movement, .geometry = G::stack, .tile = T::join}},
    {"constant_pad_nd", {.kind = Kind::movement, .tile = T::pad}},
    {"repeat", {.kind = Kind::movement, .geometry = G::repeat}},
    {"_stack narrow_copy split_copy split_with_sizes_copy slice_copy select_copy view_copy"
     " t_copy transpose_copy permute_copy expand_copy unbind_copy as_strided_copy _reshape_copy"
     " _conj_copy alias_copy detach_copy",
     {.kind = Kind::movement}},

    // Elementwise.
    {"add sub", {.geometry = G::sum, .write = W::summand, .tile = T::compute}},
    {"mul", {.geometry = G::binary, .write = W::factor, .tile = T::compute}},
    {"div", {.geometry = G::binary_float, .write = W::factor, .tile = T::compute}},
    {"clamp", {.write = W::bounds, .tile = T::compute}},
    {"neg floor ceil", {.geometry = G::unary, .tile = T::compute}},
    {"sqrt reciprocal", {.geometry = G::unary_float, .tile = T::compute}},
    {"clamp_min clamp_max abs round trunc sign relu logical_not logical_and logical_or"
     " logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor",
     {.tile = T::compute}},
    {"masked_fill", {.geometry = G::broadcast, .tile = T::compute}},
    {"eq ne lt le gt ge", {.geometry = G::comparison, .tile = T::compute_functional}},
    {"rsub where", {.tile = T::compute_functional}},
    {"complex polar floor_divide", {.geometry = G::broadcast}},
    {"maximum minimum", {.geometry = G::binary}},
    {"sin cos exp log rsqrt tanh sigmoid", {.geometry = G::unary_float}},
    {"erfinv_", {.write = W::floating, .tile = T::compute_in_place}},

    // Of a whole tensor.
    {"tril triu cumsum cumprod flip roll _softmax _log_softmax", {.geometry = G::same_sizes}},
    {"sum mean prod any all amax amin argmax argmin std var logsumexp norm linalg_vector_norm"
     " count_nonzero",
     {.geometry = G::reduction}},
    {"mm bmm mv dot", {.geometry = G::product}},

    // Indices that are looked at.
    {"index_select gather index_add index_copy index_fill index_reduce scatter scatter_add"
     " scatter_reduce",
     {.index = IndexRule::along_dim}},
    {"embedding", {.index = IndexRule::first_dim}},
    {"index _unsafe_index", {.index = IndexRule::per_element, .geometry = G::index}},
    {"index_put _index_put_impl_ _unsafe_index_put", {.index = IndexRule::per_element}},

    {"size stride numel dim storage_offset sym_size sym_stride sym_numel sym_storage_offset"
     " sym_is_contiguous is_contiguous is_same_size is_set_to _has_same_storage_numel"
     " is_coalesced is_floating_point is_complex is_signed is_conj is_neg is_inference"
     " _is_zerotensor _debug_has_internal_overlap _version output_nr is_leaf retains_grad"
     " result_type can_cast get_device _has_compatible_shallow_copy_type is_distributed"
     " cudnn_is_acceptable detach_ squeeze_ unsqueeze_ t_ transpose_"
     " swapdims_ swapaxes_ as_strided_ set_data dense_dim sparse_dim _assert_tensor_metadata _dimI"
     " _dimV _unsafe_view unsafe_split unsafe_split_with_sizes lift _make_dual _unpack_dual"
     " _fw_primal _fused_sdp_choice",
     {.kind = Kind::metadata}},

    // The schema hides that running statistics are written.
    {"native_batch_norm cudnn_batch_norm miopen_batch_norm batch_norm_update_stats"
     " batch_norm_gather_stats batch_norm_gather_stats_with_counts _batch_norm_with_update"
     " rrelu_with_noise",
     {.kind = Kind::real}},
    // The strides of the CPU kernel differ from the Meta kernel's, or depend on the backend
    // library.
    {"linalg_eig linalg_eigvals _linalg_svd _linalg_eigh linalg_lstsq linalg_ldl_factor_ex _fft_c2c"
     " _fft_r2c _fft_c2r _euclidean_dist _convolution convolution mkldnn_convolution kaiser_window"
     " lstsq geqrf _linalg_solve_ex linalg_lu_solve",
     {.kind = Kind::real}},
    // So do the dtypes of its statistics, or the size of the workspace that it returns.
    {"mkldnn_rnn_layer _fused_rms_norm nonzero_static ctc_loss _ctc_loss _use_cudnn_ctc_loss",
     {.kind = Kind::real}},
    // Results that alias an input depending on values or geometry.
    {"_coalesced coalesce _conj_physical slice_inverse", {.kind = Kind::real}},
    // Quantized tensors are real at once.
    {"quantize_per_tensor quantize_per_tensor_dynamic quantize_per_channel _empty_affine_quantized"
     " _empty_per_channel_affine_quantized _make_per_tensor_quantized_tensor"
     " _make_per_channel_quantized_tensor",
     {.kind = Kind::real}},
    // Composite kernels that look at data pointers.
    {"max_pool1d fbgemm_linear_quantize_weight fbgemm_pack_gemm_matrix_fp16 is_pinned",
     {.kind = Kind::real}},
    // Indices whose bounds are only checked when it runs.
    {"take put one_hot embedding_bag _embedding_bag _embedding_bag_forward_only index_put_with_sort"
     " _unsafe_masked_index nll_loss_forward nll_loss2d_forward cross_entropy_loss bincount histc"
     " lu_unpack embedding_renorm searchsorted",
     {.kind = Kind::real}},
    // Effects outside the tensor.
    {"from_file _print _assert_async _assert_scalar _functional_assert_async"
     " _functional_assert_scalar sym_constrain_range sym_constrain_range_for_size"
     " _functional_sym_constrain_range _functional_sym_constrain_range_for_size record_stream"
     " _efficientzerotensor _resize_output resize_as resize_as_sparse copy_sparse_to_sparse"
     " _amp_update_scale _amp_foreach_non_finite_check_and_unscale _pin_memory pin_memory"
     " _nested_tensor_from_tensor_list _nested_tensor_from_mask _test_parallel_materialize"
     " _test_warn_in_autograd _async_error _lazy_clone _local_scalar_dense",
     {.kind = Kind::real}}};

std::unordered_map<std::string, OperatorFacts> by_name() {
  std::unordered_map<std::string, OperatorFacts> found;
  for (const auto& row : kRows) {
    std::istringstream names(row.names);
    for (std::string name; names >> name;) {
      found.emplace(std::move(name), row.facts);
    }
  }
  return found;
}

}  // namespace

c10::ArrayRef<OperatorRow> operator_table() noexcept { return kRows; }

OperatorFacts facts_of(std::string_view name) {
  static const auto* known = new auto(by_name());  // NOLINT: threads may outlive static destructors
  auto found = known->find(std::string(name));
  if (found == known->end() && name.ends_with('_')) {
    found = known->find(std::string(name.substr(0, name.size() - 1)));
  }
  return found == known->end() ? OperatorFacts() : found->second;
}

}  // namespace dormant::record
