"""A Llama as lmdeploy.pytorch's document builds one, from its builders, with nothing changed but the imports; and what maps it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from flatlm.authoring.modules import (
    ApplyRotaryEmb,
    Attention,
    RMSNorm,
    SiluAndMul,
    StepContextManager,
    build_merged_colwise_linear,
    build_qkv_proj,
    build_rotary_embedding_from_config,
    build_rowwise_linear,
    load_weight,
)


class LlamaAttention(nn.Module):
    def __init__(self, config: Any, dtype: torch.dtype | None = None, device: torch.device | None = None):
        super().__init__()
        quantization_config = getattr(config, "quantization_config", None)
        heads, keys = config.num_attention_heads, config.num_key_value_heads
        width = getattr(config, "head_dim", config.hidden_size // heads)
        self.qkv_proj = build_qkv_proj(
            config.hidden_size,
            num_q_heads=heads,
            num_kv_heads=keys,
            head_size=width,
            bias=config.attention_bias,
            quant_config=quantization_config,
            dtype=dtype,
            device=device,
        )
        self.apply_rotary_pos_emb = ApplyRotaryEmb()
        self.attn_fwd = Attention(heads, width, num_kv_heads=keys, v_head_size=width)
        self.o_proj = build_rowwise_linear(
            heads * width,
            config.hidden_size,
            bias=config.attention_bias,
            quant_config=quantization_config,
            dtype=dtype,
            device=device,
            is_tp=True,
        )

    def forward(self, hidden_states: Any, rotary_pos_emb: Any, past_key_value: Any, attn_metadata: Any = None) -> Any:
        qkv_states = self.qkv_proj(hidden_states).flatten(0, -2)
        query, key, value = self.qkv_proj.split_qkv(qkv_states)
        cos, sin = rotary_pos_emb
        query, key = self.apply_rotary_pos_emb(query, key, cos, sin, inplace=True)
        attended = self.attn_fwd(query, key, value, past_key_value[0], past_key_value[1], attn_metadata, inplace=True)
        return self.o_proj(attended.reshape(*hidden_states.shape[:-1], -1))


class LlamaMLP(nn.Module):
    def __init__(self, config: Any, dtype: torch.dtype | None = None, device: torch.device | None = None):
        super().__init__()
        quantization_config = getattr(config, "quantization_config", None)
        self.gate_up_proj = build_merged_colwise_linear(
            config.hidden_size,
            [config.intermediate_size, config.intermediate_size],
            bias=config.mlp_bias,
            dtype=dtype,
            device=device,
            quant_config=quantization_config,
            is_tp=True,
        )
        self.act_fn = SiluAndMul(inplace=True)
        self.down_proj = build_rowwise_linear(
            config.intermediate_size,
            config.hidden_size,
            bias=config.mlp_bias,
            quant_config=quantization_config,
            dtype=dtype,
            device=device,
            is_tp=True,
        )

    def forward(self, x: Any) -> Any:
        return self.down_proj(self.act_fn(self.gate_up_proj(x)))


class LlamaDecoderLayer(nn.Module):
    def __init__(self, config: Any, layer_idx: int, dtype: torch.dtype | None = None, device: torch.device | None = None):
        super().__init__()
        self.layer_idx = layer_idx
        self.self_attn = LlamaAttention(config, dtype=dtype, device=device)
        self.mlp = LlamaMLP(config, dtype=dtype, device=device)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype, device=device)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype, device=device)

    def forward(self, hidden_states: Any, rotary_pos_emb: Any, past_key_value: Any, residual: Any = None, attn_metadata: Any = None) -> Any:
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(hidden_states, rotary_pos_emb, past_key_value, attn_metadata)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class LlamaModel(nn.Module):
    def __init__(self, config: Any, dtype: torch.dtype | None = None, device: torch.device | None = None):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id, dtype=dtype, device=device)
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, i, dtype=dtype, device=device) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype, device=device)
        self.rotary_emb = build_rotary_embedding_from_config(config)

    def forward(
        self, input_ids: Any, position_ids: Any, past_key_values: Any, attn_metadata: Any = None, inputs_embeds: Any = None
    ) -> torch.Tensor:
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cos, sin = self.rotary_emb(hidden_states, position_ids)
        rotary_pos_emb = (cos[0], sin[0])
        residual = None
        for index, layer in enumerate(self.layers):
            hidden_states, residual = layer(hidden_states, rotary_pos_emb, past_key_values[index], residual, attn_metadata)
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states


class LlamaForCausalLM(nn.Module):
    support_cuda_graph = True

    def __init__(self, config: Any, ctx_mgr: StepContextManager, dtype: torch.dtype | None = None, device: torch.device | None = None):
        super().__init__()
        self.config = config
        self.ctx_mgr = ctx_mgr
        self.model = LlamaModel(config, dtype=dtype, device=device)
        self.lm_head = build_rowwise_linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype, device=device)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: list[list[torch.Tensor]],
        attn_metadata: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        hidden_states = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            attn_metadata=attn_metadata,
            inputs_embeds=inputs_embeds,
        )
        return self.lm_head(hidden_states).float()

    def update_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def prepare_inputs_for_generation(self, past_key_values: Any, inputs_embeds: Any = None, context: Any = None) -> dict[str, Any]:
        return {
            "input_ids": context.input_ids,
            "position_ids": context.position_ids,
            "past_key_values": past_key_values,
            "attn_metadata": context.attn_metadata,
            "inputs_embeds": inputs_embeds,
        }

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        stacked_params_mapping: list[tuple[str, str, Any]] = [
            (".qkv_proj", ".q_proj", "q"),
            (".qkv_proj", ".k_proj", "k"),
            (".qkv_proj", ".v_proj", "v"),
            (".gate_up_proj", ".gate_proj", 0),
            (".gate_up_proj", ".up_proj", 1),
        ]
        params_dict = dict(self.named_parameters())
        for name, loaded_weight in weights:
            if "rotary_emb.inv_freq" in name:
                continue
            if self.config.tie_word_embeddings and "lm_head.weight" in name:
                continue
            for param_name, weight_name, shard_id in stacked_params_mapping:
                if weight_name not in name:
                    continue
                load_weight(params_dict[name.replace(weight_name, param_name)], loaded_weight, shard_id=shard_id)
                break
            else:
                load_weight(params_dict[name], loaded_weight)


MODULE_MAP = {"LlamaForCausalLM": LlamaForCausalLM}
