"""Which operations of torch are understood, by name: what computes each of them, and which round nothing.

A name in none of these tables is listed in `run.unrecognised` and computed as torch does. In-place, out= and
foreach forms go by the name of their functional form.
"""

from __future__ import annotations

from normstab.simulation.aten.convolution import CONVOLUTIONS
from normstab.simulation.aten.norm_ops import NORM_OPERATIONS
from normstab.simulation.aten.operation import Handler
from normstab.simulation.aten.parts.complex_parts import ONLY_COMPLEX
from normstab.simulation.aten.pointwise import POINTWISE
from normstab.simulation.aten.products import PRODUCTS
from normstab.simulation.aten.reductions import REDUCTIONS
from normstab.simulation.aten.selections import SELECTIONS

__all__ = ["EXACT", "HANDLERS", "MADE", "MOVING", "PASSING"]


def _names(text: str) -> frozenset[str]:
    """Return the words of `text`."""
    return frozenset(text.split())


# Rounded: the arithmetic computes these.
HANDLERS: dict[str, Handler] = {
    **POINTWISE,
    **REDUCTIONS,
    **SELECTIONS,
    **PRODUCTS,
    **CONVOLUTIONS,
    **NORM_OPERATIONS,
    **ONLY_COMPLEX,
}

# Exact: a value is moved, selected or compared, and torch's own kernel serves. Outside every module these see
# a parameter itself, not its rounded copy, but for those that `selections` names.
EXACT = _names(
    """abs neg sign sgn floor ceil trunc round frac fmod copysign fmax fmin threshold threshold_backward
    hardtanh_backward heaviside nextafter frexp positive conj_physical where masked_fill masked_scatter
    masked_scatter_backward masked_select cat stack index _unsafe_index index_select take gather scatter
    select_scatter slice_scatter diagonal_scatter as_strided_scatter index_copy index_fill flip roll rot90
    repeat repeat_interleave constant_pad_nd tril triu diag_embed block_diag sort topk kthvalue median nanmedian
    mode max min amax amin aminmax cummax cummin unique_dim _unique2 unique_consecutive max_pool2d_with_indices
    max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d
    max_unpool2d max_unpool3d mkldnn_max_pool2d im2col pixel_shuffle pixel_unshuffle channel_shuffle embedding
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d slice_backward select_backward diagonal_backward eq ne lt le gt ge isnan
    isinf isfinite isneginf isposinf signbit argmax argmin any all nonzero count_nonzero equal isclose
    searchsorted bucketize histc bincount isin logical_and logical_or logical_xor logical_not
    _local_scalar_dense fill _chunk_cat _pack_padded_sequence _unsafe_masked_index _shape_as_tensor
    view_as_complex complex _amp_update_scale clone _to_copy copy contiguous lift is_nonzero allclose unsafe_split
    unsafe_split_with_sizes _reshape_copy"""
)

# Tensors of given or random numbers: in a network that sees 16 bits these are numbers of its format.
MADE = _names(
    """full full_like new_full scalar_tensor arange range linspace logspace rand rand_like randn randn_like uniform
    normal exponential cauchy geometric log_normal lift_fresh hann_window hamming_window _sample_dirichlet
    _standard_gamma lift_fresh_copy"""
)

# No floating operand is read, or only its shape: factories, random numbers, changes of shape in place.
PASSING = _names(
    """empty empty_like empty_strided empty_permuted new_empty new_empty_strided new_ones new_zeros ones ones_like
    zeros zeros_like zero randint randint_like randperm bernoulli random multinomial poisson binomial eye
    resize resize_as set _resize_output t transpose squeeze unsqueeze
    swapaxes swapdims detach as_strided is_same_size is_pinned _pin_memory _unsafe_view record_stream
    _amp_foreach_non_finite_check_and_unscale
    _assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async sym_size sym_stride sym_numel
    sym_storage_offset _nested_tensor_from_tensor_list _has_same_storage_numel _version data requires_grad
    retain_grad _record_function_enter_new _record_function_exit
    _print _make_dep_token tril_indices triu_indices"""
)

# Collectives that carry numbers to other processes as they are, in torch.distributed's two catalogues, and
# what fully_shard lays out for them.
MOVING = _names(
    """c10d.broadcast_ c10d.allgather_ c10d._allgather_base_ c10d.allgather_coalesced_
    c10d.allgather_into_tensor_coalesced_ c10d.gather_ c10d.scatter_ c10d.send c10d.recv_ c10d.recv_any_source_
    c10d.barrier c10d.monitored_barrier_ c10d.alltoall_ c10d.alltoall_base_ _c10d_functional.all_gather_into_tensor
    _c10d_functional.all_gather_into_tensor_out _c10d_functional.all_gather_into_tensor_coalesced
    _c10d_functional.all_to_all_single _c10d_functional.broadcast _c10d_functional.broadcast_
    _c10d_functional.wait_tensor fsdp.all_gather_copy_in fsdp.split_with_sizes_copy fsdp.chunk_cat fsdp.copy_"""
)
