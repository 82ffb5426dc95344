"""A tiny random model of every causal class of the installed transformers, where its configuration allows one."""

from __future__ import annotations

import dataclasses

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tiny import tiny_tokenizer

MODEL_TYPES = [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]

#: Small values of settings, by their names.
_SMALL = {
    name: value
    for names, value in {
        "vocab_size vocab_size_per_layer_input audio_vocab_size unpadded_vocab_size decoder_vocab_size "
        "encoder_hash_byte_group_vocab shape_vocab_size pronunciation_vocab_size": len(tiny_tokenizer()),
        "hidden_size n_embd d_model emb_dim embedding_size input_embedding_size output_embedding_size "
        "pronunciation_embed_dim shape_embed_dim lru_width backbone_hidden_size dim_model_base": 32,
        "intermediate_size ffn_dim n_inner d_inner dff dim_ff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size "
        "feed_forward_size intermediate_size_mlp dense_intermediate_size shared_intermediate_size": 64,
        "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_experts_intermediate_size "
        "moe_shared_expert_intermediate_size kv_lora_rank q_lora_rank o_lora_rank": 16,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers "
        "num_decoder_layers num_experts_per_tok moe_topk moe_k top_k_experts num_key_value_heads "
        "swa_num_key_value_heads linear_num_key_heads num_kv_heads n_groups zero_expert_num": 2,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads index_n_heads "
        "linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads num_experts num_local_experts "
        "n_routed_experts moe_num_experts rotary_dim": 4,
        "head_dim dim_head swa_head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim index_head_dim "
        "linear_key_head_dim linear_value_head_dim kv_channels linear_head_dim attention_head_size d_head "
        "mamba_head_dim sliding_window window_size sliding_window_size local_attention attention_window_size "
        "attention_chunk_size index_topk mamba_d_state state_size ssm_state_size mamba_chunk_size chunk_size "
        "hidden_size_per_layer_input laurel_rank": 8,
        "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions": 512,
        "n_group topk_group first_k_dense_replace pad_token_id": 1,
        "initializer_range init_std": 0.2,
        "bos_token_id": 2,
        "eos_token_id": 0,
    }.items()
    for name in names.split()
}
_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
#: What some types need besides: attention beside recurrence, sizes that fit together.
_MORE = {
    **dict.fromkeys("granitemoehybrid qwen3_5_moe_text qwen3_5_text qwen3_next".split(), _MIXED),
    **{name: {"text_config": _MIXED} for name in ("qwen3_5", "qwen3_5_moe")},
    **{
        name: {"num_key_value_heads": 4, "head_dim": None}
        for name in "axk1 deepseek_v2 deepseek_v3 minicpm3 youtu".split()
    },
    **{name: {"num_key_value_heads": 4} for name in "axk2 deepseek_v32 glm4_moe_lite glm_moe_dsa".split()},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "num_hidden_layers": 3, "attn_layer_indices": [1]},
    "bailing_hybrid": {"num_key_value_heads": 4, "layer_group_size": 2},
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 2, "clip_qkv": 8}},
    "dots1": {"max_window_layers": 1, "n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "fuyu": {"text_config": {"model_type": "persimmon"}},
    "gemma3": {
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        }
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "got_ocr2": {"text_config": {"model_type": "qwen2"}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hy_v4": {"index_n_heads": 32},  # of few, all are 0 behind a ReLU, and which tokens are looked at is a tie
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_MIXED, "num_key_value_heads": 4, "head_dim": None},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "moss_transcribe_diarize": {"text_config": {"model_type": "qwen3"}},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "num_mem_blocks": 1,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}
_LARGEST = 40_000_000


def tiny_model(model_type: str, **more: object) -> torch.nn.Module:
    """In float32. Raises whatever a configuration raises that does not take small values, ValueError where the model is
    not small.
    """
    config = CONFIG_MAPPING[model_type](**{**_settings(CONFIG_MAPPING[model_type], model_type), **more})
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > _LARGEST:
        raise ValueError(f"it has {size} parameters")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).float().eval()


def _settings(cls: type, model_type: str) -> dict[str, object]:
    renamed = getattr(cls, "attribute_map", {})
    names = {f.name for f in dataclasses.fields(cls)} | set(renamed)
    found = {name: value for name, value in _SMALL.items() if name in names}
    found = {name: value for name, value in found.items() if renamed.get(name) not in found}
    for name, inner in (getattr(cls, "sub_configs", None) or {}).items():
        if dataclasses.is_dataclass(inner) and hasattr(inner, "model_type"):
            found[name] = {**_settings(inner, inner.model_type), "model_type": inner.model_type}
    for name, value in _MORE.get(model_type, {}).items():
        own = found.get(name)
        found[name] = {**own, **value} if isinstance(own, dict) and isinstance(value, dict) else value
    text = found.get("text_config")
    if isinstance(text, dict) and (inner_type := text.get("model_type")) in CONFIG_MAPPING:
        found["text_config"] = {**_settings(CONFIG_MAPPING[inner_type], inner_type), **text}
    return found
