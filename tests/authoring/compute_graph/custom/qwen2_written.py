"""Qwen2, written from the tables of fastllm's documentation: biases on queries, keys and values, grouped queries."""

from flatlm.llm import ComputeGraph


class Qwen2Written(ComputeGraph):
    def build(self):
        weight, data, config = self.weight, self.data, self.config
        config["max_positions"] = 64
        width = config["hidden_size"] / config["num_attention_heads"]
        eps = config["rms_norm_eps"]
        x = data["x"]
        self.Embedding(data["inputIds"], weight["model.embed_tokens.weight"], x)
        self.DataTypeAs(x, data["atype"])
        for i in range(config["num_hidden_layers"]):
            layer = weight["model.layers."][i]
            self.RMSNorm(x, layer[".input_layernorm.weight"], eps, data["normed"])
            for name in ("q", "k", "v"):
                own = layer[".self_attn."][name]["_proj"]
                self.Linear(data["normed"], own[".weight"], own[".bias"], data[name])
                self.ExpandHead(data[name], width)
            for name in ("q", "k"):
                self.LlamaRotatePosition2D(data[name], data["positionIds"], data["sin"], data["cos"], width // 2)
            self.FusedAttention(
                data["q"],
                data["pastKey."][i],
                data["pastValue."][i],
                data["k"],
                data["v"],
                data["normed"],
                data["attentionMask"],
                data["mixed"],
                data["seqLens"],
                width**-0.5,
            )
            output = layer[".self_attn.o_proj"]
            self.Linear(data["mixed"], output[".weight"], output[".bias"], data["mixed"])
            self.AddTo(x, data["mixed"])
            self.RMSNorm(x, layer[".post_attention_layernorm.weight"], eps, data["normed"])
            self.Linear(data["normed"], layer[".mlp.gate_proj.weight"], layer[".mlp.gate_proj.bias"], data["gate"])
            self.Linear(data["normed"], layer[".mlp.up_proj.weight"], layer[".mlp.up_proj.bias"], data["up"])
            self.Silu(data["gate"], data["gate"])
            self.MulTo(data["gate"], data["up"])
            self.Linear(data["gate"], layer[".mlp.down_proj.weight"], layer[".mlp.down_proj.bias"], data["down"])
            self.AddTo(x, data["down"])
        self.SplitLastTokenStates(x, data["seqLens"], data["last"])
        self.RMSNorm(data["last"], weight["model.norm.weight"], eps, data["last"])
        self.Linear(data["last"], weight["lm_head.weight"], weight["lm_head.bias"], data["logits"])


__model__ = Qwen2Written
