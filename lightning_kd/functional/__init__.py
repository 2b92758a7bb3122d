"""The mathematics: pure functions on tensors, unreduced, importing nothing but torch."""

from lightning_kd.functional.annealing import (
    annealed_logit_mse,
    centered,
    hinge,
    quantile_margin,
    smoothing_factor,
)
from lightning_kd.functional.averaging import (
    averaging_start,
    cyclic_rate,
    is_snapshot,
    izmailov_rate,
    running_mean_,
)
from lightning_kd.functional.dynamic_lora import (
    LORA_SCALINGS,
    dynamic_lora,
    dynamic_lora_sweep,
    lora_scale,
    truncate_svd,
)
from lightning_kd.functional.early_exit import (
    CONFIDENCES,
    agreement_threshold,
    exit_confidence,
)
from lightning_kd.functional.exit_analysis import exit_distances, preference_score
from lightning_kd.functional.four_bit import (
    dequantize_four_bit,
    four_bit_bytes,
    four_bit_levels,
    quantize_four_bit,
)
from lightning_kd.functional.kd import kd_loss, logit_mse
from lightning_kd.functional.label_regularization import (
    confidence,
    gold_entropy,
    gold_target,
    label_gap,
    label_smoothing_gold,
    label_smoothing_loss,
    mixed_target,
    softened_gold,
    taught_loss,
    teacher_free_code_loss,
    tf_reg_loss,
)
from lightning_kd.functional.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_sum,
)
from lightning_kd.functional.noise import (
    blended_loss,
    draw_noisy_labels,
    forward_loss,
    gce_loss,
    keep_rate,
    mae_loss,
    noise_matrix,
    relabel,
    robust_loss,
    sce_loss,
    small_loss,
)
from lightning_kd.functional.spans import best_spans, best_threshold
from lightning_kd.functional.speculation import (
    best_window,
    replayed_rounds,
    speculative_speedup,
    tokens_per_round,
)
from lightning_kd.functional.token_kd import linear_kd_loss, token_kd_loss
from lightning_kd.functional.trajectory import (
    checkpoint_of_epoch,
    checkpoint_temperature,
    epoch_temperature,
    evenly_kept,
    visiting_order,
)

__all__ = [
    "CONFIDENCES",
    "LORA_SCALINGS",
    "agreement_threshold",
    "annealed_logit_mse",
    "averaging_start",
    "best_spans",
    "best_threshold",
    "best_window",
    "blended_loss",
    "centered",
    "checkpoint_of_epoch",
    "checkpoint_temperature",
    "confidence",
    "cyclic_rate",
    "dequantize_four_bit",
    "draw_noisy_labels",
    "dynamic_lora",
    "dynamic_lora_sweep",
    "epoch_temperature",
    "evenly_kept",
    "exit_confidence",
    "exit_distances",
    "forward_loss",
    "four_bit_bytes",
    "four_bit_levels",
    "gce_loss",
    "gold_entropy",
    "gold_target",
    "hinge",
    "is_snapshot",
    "izmailov_rate",
    "kd_loss",
    "keep_rate",
    "label_gap",
    "label_smoothing_gold",
    "label_smoothing_loss",
    "linear_cross_entropy",
    "linear_cross_entropy_sum",
    "linear_kd_loss",
    "logit_mse",
    "lora_scale",
    "mae_loss",
    "mixed_target",
    "noise_matrix",
    "preference_score",
    "quantile_margin",
    "quantize_four_bit",
    "relabel",
    "replayed_rounds",
    "robust_loss",
    "running_mean_",
    "sce_loss",
    "small_loss",
    "smoothing_factor",
    "softened_gold",
    "speculative_speedup",
    "taught_loss",
    "teacher_free_code_loss",
    "tf_reg_loss",
    "token_kd_loss",
    "tokens_per_round",
    "truncate_svd",
    "visiting_order",
]
