"""Fields of SAELens' ``cfg.json`` in all versions, and checks of fields that SAELens ignores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saematch.core.errors import InputError
from saematch.sae.formats.settings import Fields

CONFIG = Fields(
    {"architecture": str, "d_in": int, "d_sae": int, "d_out": int, "k": float, "dtype": str,
     "apply_b_dec_to_input": bool, "finetuning_scaling_factor": bool, "reshape_activations": str,
     "rescale_acts_by_decoder_norm": bool, "normalize_activations": (str, bool),
     "activation_fn": str, "activation_fn_str": str, "activation_fn_kwargs": dict,
     "hook_name": str, "hook_point": str, "model_name": str, "model_from_pretrained_kwargs": dict,
     "neuronpedia_id": str, "sae_lens_version": str, "metadata": dict},
    "act_store_device activations_mixing_fraction adam_beta1 adam_beta2 autocast autocast_lm "
    "aux_loss_coefficient b_dec_init_method cached_activations_path checkpoint_path "
    "compile_llm compile_sae context_size dataset_path dataset_trust_remote_code "
    "dead_feature_estimation_method dead_feature_threshold dead_feature_window "
    "decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm "
    "decoder_orthogonal_init device disable_concat_sequences eval_batch_size_prompts "
    "eval_every_n_wandb_logs exclude_special_tokens expansion_factor feature_reinit_scale "
    "feature_sampling_method feature_sampling_window finetuning_method finetuning_tokens "
    "from_pretrained_path hf_hook_name hf_hook_name_out hook_eval hook_head_index "
    "hook_head_index_out hook_layer hook_layer_out hook_name_out hook_point_eval "
    "hook_point_head_index hook_point_layer init_encoder_as_decoder_transpose "
    "is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold "
    "jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient "
    "l0_warm_up_steps l1_coefficient l1_warm_up_steps llm_compilation_mode llm_device "
    "log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb "
    "log_weights_to_wandb logger lp_norm lr lr_decay_steps lr_end lr_scheduler_name "
    "lr_warm_up_steps matryoshka_widths model_class_name model_kwargs mse_loss_normalization "
    "n_batches_for_norm_estimate n_batches_in_buffer n_checkpoints n_eval_batches "
    "n_restart_cycles noise_scale normalize_sae_decoder output_path "
    "pre_act_loss_coefficient prefetch_llm_batches prepend_bos resample_batches resume "
    "resume_from_checkpoint run_name sae sae_compilation_mode sae_lens_training_version "
    "save_final_checkpoint scale_sparsity_penalty_by_decoder_norm seqpos_slice "
    "sequence_separator_token store_batch_size store_batch_size_prompts streaming target_l0 "
    "tokens_per_buffer topk_threshold_lr total_training_samples total_training_steps "
    "total_training_tokens train_batch_size train_batch_size_samples train_batch_size_tokens "
    "training_tokens use_cached_activations use_chat_formatting use_ghost_grads "
    "use_matryoshka_aux_loss use_sparse_activations verbose wandb_entity wandb_group "
    "wandb_id wandb_log_frequency wandb_project",
)  # fmt: skip
"""Fields of ``cfg.json``. Settings of the training and of the source of activations are harmless;
so is noise, which SAEs add only in training."""
METADATA = Fields(
    {"sae_lens_version": str, "model_name": str, "hook_name": str, "l0": float,
     "neuronpedia_id": str, "model_from_pretrained_kwargs": dict},
    closed=False,
)  # fmt: skip
"""Fields of the group ``metadata`` since version 6. Users may add any others."""
_KWARGS = Fields({"k": float})
_RESHAPES = ("none", "hook_z")


def check_computation(where: str, config: Mapping[str, Any], loaded: str) -> None:
    """Raise ``InputError`` for a field that SAELens ignores although it changes the computation.

    ``config`` has the known fields; ``loaded`` is the architecture that SAELens derives from them.
    Before version 6 the activation was a separate field; SAELens now assumes ReLU unless the
    architecture is TopK.
    """
    legal = ("relu", "topk") if "topk" in loaded else ("relu",)
    for name in ("activation_fn_str", "activation_fn"):
        activation = config.get(name, "relu")
        if activation not in legal:
            raise InputError(
                f"{where}: {name}={activation!r}, but with it SAELens loads an SAE of architecture "
                f"{loaded!r}, which computes {' or '.join(legal)}; choose an SAE with one of these"
            )
    kwargs = _KWARGS.checked(
        f"{where}: activation_fn_kwargs", config.get("activation_fn_kwargs", {})
    )
    if "topk" in loaded and "k" not in config and "k" not in kwargs:
        raise InputError(f"{where} is of architecture {loaded!r}, but does not state k")
    if config.get("rescale_acts_by_decoder_norm") and "topk" not in loaded:
        raise InputError(
            f"{where}: rescale_acts_by_decoder_norm=true, which SAELens supports only for TopK, "
            f"but the architecture is {loaded!r}"
        )
    if config.get("reshape_activations", "none") not in _RESHAPES:
        raise InputError(
            f"{where}: reshape_activations={config['reshape_activations']!r} must be one of "
            f"{', '.join(_RESHAPES)}"
        )
