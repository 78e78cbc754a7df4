"""Operations computed wide inside and rounded once: functions of one element, softmax, losses, pooling.

Inside is float64, so that the one rounding is the only one to be seen. Attention alone is torch's own
kernel. Sums that follow the stated accumulation are in `reductions`, products in `products`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normstab.simulation.aten.operation import Handler, Operation, Result
from normstab.simulation.aten.round_and_attribute import narrow, settle, settle_elements
from normstab.torch_private import sparse_parts

__all__ = ["ATTENTION", "WIDE", "wide", "wide_elements"]

# Functions that are infinite at some finite points, and below float64's largest everywhere else.
POLES = frozenset(
    ["log", "log2", "log10", "log1p", "rsqrt", "atanh", "logit", "digamma", "lgamma", "erfinv", "special_ndtri"]
)


def wide_elements(op: Operation) -> Result:
    """Compute a function of one element of each operand in float64 and round once."""
    value = op.function(*_widened(op.args), **_widened_kwargs(op))
    call = op.call()
    settled = settle_elements(value, call, op.args, has_poles=_has_poles(op))
    return narrow(settled, op.dtype, call.format)


def _has_poles(op: Operation) -> bool:
    """Whether the operation, computed wide, is infinite at poles alone; of powers those that no float32 overflows."""
    if op.name == "pow":
        exponent = op.args[1]
        return isinstance(exponent, int | float) and -6 <= exponent < 0
    return op.name in POLES


def wide(op: Operation) -> Result:
    """Compute in float64 and round every floating result once; several results at `name.0`, `name.1`, ..."""
    results = op.function(*_widened(op.args), **_widened_kwargs(op))
    if isinstance(results, Tensor):
        return _rounded(op, results, "")
    is_single = sum(isinstance(x, Tensor) and x.is_floating_point() for x in results) == 1
    return tuple(_rounded(op, x, "" if is_single else f".{i}") for i, x in enumerate(results))


def first_only(op: Operation) -> Result:
    """As `wide`, where only the first result is a value of the network and the others are torch's bookkeeping."""
    results = op.function(*_widened(op.args), **_widened_kwargs(op))
    return (_rounded(op, results[0], ""), *(x.to(op.dtype) if _is_wide(x) else x for x in results[1:]))


def bag_gradient(op: Operation) -> Result:
    """As `wide`; of a sparse gradient the values that it holds are rounded."""
    whole = op.function(*_widened(op.args), **_widened_kwargs(op))
    if whole.layout == torch.strided:
        return _rounded(op, whole, "")
    indices, values = sparse_parts(whole)
    return torch.sparse_coo_tensor(indices, _rounded(op, values, ""), whole.shape, check_invariants=False)


def attention(op: Operation) -> Result:
    """Round the output of torch's attention kernel once; what it saves for its gradient stays as it is."""
    results = op.native()
    call = op.call()
    return (settle(results[0], call, op.args), *results[1:])


def attention_backward(op: Operation) -> Result:
    """Round the gradients of query, key, value (and bias) of torch's attention kernel once each."""
    names = (".query", ".key", ".value", ".bias")
    results = op.native()
    return tuple(
        settle(x, op.call(name), op.args) if isinstance(x, Tensor) and x.numel() else x
        for name, x in zip(names, results, strict=False)
    )


def _rounded(op: Operation, value: Any, suffix: str) -> Any:
    """Round one wide result; indices, masks and None pass."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    call = op.call(suffix)
    return narrow(settle(value, call, op.args), op.dtype, call.format)


def _is_wide(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float64


def _widened(args: Any) -> Any:
    """Return the arguments with every float32 tensor, and every float32 dtype, made float64."""
    if isinstance(args, Tensor):
        return args.to(torch.float64) if args.is_floating_point() else args
    if isinstance(args, list | tuple):
        return type(args)(_widened(x) for x in args)
    return torch.float64 if args in (torch.float32, torch.float16, torch.bfloat16) else args


def _widened_kwargs(op: Operation) -> dict[str, Any]:
    return {name: _widened(value) for name, value in op.kwargs.items()} if op.kwargs else {}


def _table(handler: Handler, names: str) -> dict[str, Handler]:
    return dict.fromkeys(names.split(), handler)


# The fused forward kernels: an output, and what their backward needs.
ATTENTION = frozenset(
    "_scaled_dot_product_" + name
    for name in (
        *("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"),
        "fused_attention_overrideable",
    )
)
# Name of torch's operation -> its handler.
WIDE: dict[str, Handler] = {
    **_table(
        wide_elements,
        """acos acosh asin asinh atan atan2 atanh cos cosh digamma erf erfc erfinv exp exp2 expm1 lgamma log log10
        log1p log2 logaddexp logaddexp2 logit sigmoid sin sinc sinh tan tanh xlogy special_xlog1py special_entr
        special_erfcx special_i0e special_i1 special_i1e special_ndtri special_log_ndtr i0 hypot ldexp deg2rad rad2deg
        celu elu gelu hardsigmoid hardswish hardshrink leaky_relu mish selu silu softplus softshrink
        addcdiv addcmul lerp remainder nan_to_num float_power special_zeta polygamma mvlgamma
        gelu_backward sigmoid_backward silu_backward tanh_backward elu_backward hardsigmoid_backward
        hardswish_backward leaky_relu_backward log_sigmoid_backward logit_backward mish_backward softplus_backward
        softshrink_backward hardshrink_backward native_dropout_backward _masked_scale _prelu_kernel
        rrelu_with_noise_backward floor_divide""",
    ),
    **_table(
        wide,
        """_softmax _softmax_backward_data _safe_softmax _log_softmax _log_softmax_backward_data logsumexp logcumsumexp
        nll_loss_backward nll_loss2d_backward mse_loss mse_loss_backward smooth_l1_loss smooth_l1_loss_backward
        huber_loss huber_loss_backward soft_margin_loss soft_margin_loss_backward binary_cross_entropy
        binary_cross_entropy_backward binary_cross_entropy_with_logits multi_margin_loss multi_margin_loss_backward
        avg_pool2d avg_pool2d_backward avg_pool3d avg_pool3d_backward avg_pool1d _adaptive_avg_pool2d
        _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward
        max_pool2d_with_indices_backward max_pool3d_with_indices_backward adaptive_max_pool2d_backward
        adaptive_max_pool3d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward
        upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa upsample_linear1d_backward upsample_bilinear2d_backward upsample_bicubic2d_backward
        upsample_trilinear3d_backward upsample_nearest1d_backward upsample_nearest2d_backward
        upsample_nearest3d_backward _upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward
        reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward
        replication_pad2d_backward replication_pad3d_backward grid_sampler_2d grid_sampler_2d_backward
        grid_sampler_3d grid_sampler_3d_backward affine_grid_generator
        cumsum cumprod prod nansum renorm _cdist_forward _pdist_forward _euclidean_dist trace col2im
        addr conv_tbc conv_tbc_backward _trilinear
        embedding_dense_backward index_add index_put scatter_add unfold_backward
        _unsafe_index_put glu glu_backward _prelu_kernel_backward native_dropout _weight_norm_interface
        _weight_norm_interface_backward linalg_cross _embedding_bag _embedding_bag_dense_backward
        _embedding_bag_per_sample_weights_backward embedding_renorm linalg_householder_product
        _unsafe_masked_index_put_accumulate""",
    ),
    "_embedding_bag_backward": bag_gradient,
    **_table(first_only, "nll_loss_forward nll_loss2d_forward multilabel_margin_loss_forward log_sigmoid_forward"),
    **dict.fromkeys(sorted(ATTENTION), attention),
    **_table(
        attention_backward,
        """_scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_flash_attention_backward
        _scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward
        _scaled_dot_product_fused_attention_overrideable_backward""",
    ),
}
