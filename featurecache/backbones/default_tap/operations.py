"""Operations of ATen by what they do to activations, named without underscores before and after."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Named as below autograd, where `nn.Linear` is addmm or mm, and dropout in eval mode is nothing.
SAME_NUMBERS = _names(
    "view unsafe_view reshape reshape_alias flatten unflatten squeeze unsqueeze clone contiguous to_copy "
    "to detach alias lift_fresh dropout native_dropout feature_dropout alpha_dropout"
)
SLICES = _names("select slice index index_select gather split split_with_sizes chunk unbind narrow diagonal take")
SHAPES = _names(
    "transpose t permute expand movedim repeat tile roll flip stack cat constant_pad_nd pad "
    "reflection_pad2d replication_pad2d pixel_shuffle as_strided unfold im2col col2im written copy "
    "scatter index_put slice_scatter select_scatter masked_fill zeros_like"
)
POOLS = _names(
    "mean sum nansum amax amin max min logsumexp median adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "max_pool2d max_pool2d_with_indices upsample_bilinear2d upsample_nearest2d upsample_bicubic2d "
    "upsample_bilinear2d_aa upsample_nearest_exact2d argmax argmin topk sort any all cumsum cumprod"
)
# What may follow an output layer: activations between hidden layers stand apart, in ACTIVATIONS.
SQUASHES = _names(
    "sigmoid tanh softmax log_softmax log_sigmoid log_sigmoid_forward softplus exp exp2 expm1 log log2 "
    "log10 log1p neg abs pow square sqrt rsqrt reciprocal clamp clamp_min clamp_max erf erfc floor ceil "
    "round trunc sign sgn logit hardsigmoid gt lt ge le eq ne logical_not bitwise_not sin cos atan arctan "
    "isnan isinf nan_to_num float one_hot safe_softmax sparsemax"
)
SUMS = _names(
    "add sub rsub mul div true_divide floor_divide maximum minimum where lerp addcmul addcdiv fmod "
    "remainder atan2 logaddexp fmax fmin bitwise_and bitwise_or logical_and logical_or"
)
ROW_NORMS = {"norm", "linalg_vector_norm", "sqrt", "rsqrt", "linalg_norm"}
NORMS = _names(
    "native_batch_norm cudnn_batch_norm batch_norm native_batch_norm_legit "
    "native_batch_norm_legit_no_training native_batch_norm_legit_functional batch_norm_impl_index "
    "miopen_batch_norm native_layer_norm layer_norm native_group_norm group_norm rms_norm fused_rms_norm "
    "instance_norm"
)
ACTIVATIONS = _names(
    "relu leaky_relu prelu rrelu rrelu_with_noise elu celu selu gelu silu mish hardswish hardtanh "
    "softshrink hardshrink glu threshold"
)
OPEN = SAME_NUMBERS | SLICES | SHAPES | POOLS | SQUASHES | SUMS | NORMS | ROW_NORMS
CONVOLUTIONS = _names(
    "convolution conv1d conv2d conv3d convolution_overrideable mkldnn_convolution cudnn_convolution "
    "slow_conv2d_forward conv_depthwise2d conv_transpose1d conv_transpose2d conv_transpose3d "
    "miopen_convolution"
)
MATRIX_PRODUCTS = _names(
    "mm addmm bmm baddbmm addbmm matmul linear mv addmv dot vdot inner tensordot einsum bilinear "
    "trilinear cdist cdist_forward euclidean_dist native_multi_head_attention mkldnn_linear "
    "addmm_activation linear_dynamic linear_relu_dynamic pairwise_distance"
)
# With broadcasting these make distances and scores from a row of activations and a matrix of prototypes.
OUTER = {"mul", "add", "sub", "rsub", "div", "minimum", "maximum"}
