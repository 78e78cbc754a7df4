"""The quantities that a scenario may name in `expect:` and `claims:`; how each is computed is `assess`'s business."""

from __future__ import annotations

__all__ = ["METRIC_NAMES", "SWEEP_METRICS", "TOKEN_METRICS"]

# Of trained cells: the rows of `assess`'s catalogue, which a test compares with this one.
METRIC_NAMES: tuple[str, ...] = (
    "accuracy",
    "best_accuracy",
    "error",
    "accuracy_gap",
    "accuracy_gap_sd",
    "test_loss",
    "train_loss",
    "token_loss",
    "token_accuracy",
    "word_accuracy",
    "chrf",
    "loss_gap_area",
    "loss_gap_end",
    "first_divergence",
    "nonfinite_step",
    "loss_spikes",
    "loss_spike_height",
    "loss_spike_steps",
    "unrecovered_spikes",
    "overflow_rate",
    "underflow_rate",
    "subnormal_rate",
    "saturation_rate",
    "nan_rate",
    "gradient_overflow_rate",
    "gradient_underflow_rate",
    "collapsed_channels",
    "gradient_cosine",
    "weight_distance",
    "angular_update",
    "weight_norm_error",
    "weight_gradient_zeros",
    "zero_updates",
    "headroom_up",
    "headroom_down",
    "scale_low",
    "scale_high",
)

# Of swept cells: the contiguous scales 2^k around 1 where s is within 1 % of the exact one (k low, k high, count).
SWEEP_METRICS: tuple[str, ...] = ("sweep_low", "sweep_high", "sweep_binades")

# Of these, what only networks for tokens have; the last two only those that write sequences by themselves.
TOKEN_METRICS: tuple[str, ...] = ("token_loss", "token_accuracy", "word_accuracy", "chrf")
