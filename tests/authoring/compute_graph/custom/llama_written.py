"""Llama, written from the tables of fastllm's documentation; it has no biases, and names none."""

import math

from flatlm import ComputeGraph


class LlamaWritten(ComputeGraph):
    def build(self):
        self.config["max_positions"] = self.config["max_position_embeddings"]
        self.heads = self.config["hidden_size"] // self.config["num_attention_heads"]
        x = self.data["hidden"]
        self.Embedding(self.data["inputIds"], self.weight["model.embed_tokens.weight"], x)
        for i in range(self.config["num_hidden_layers"]):
            self.attention(x, i)
            self.feed_forward(x, i)
        self.SplitLastTokenStates(x, self.data["seqLens"], x)
        self.norm(x, self.weight["model.norm"], x)
        self.Linear(x, self.weight["lm_head.weight"], None, self.data["logits"])

    def norm(self, x, weight, output):
        self.RMSNorm(x, weight[".weight"], self.config["rms_norm_eps"], output)

    def attention(self, x, i):
        data, layer = self.data, self.weight["model.layers."][i]
        self.norm(x, layer[".input_layernorm"], data["read"])
        for name in "qkv":
            self.Linear(data["read"], layer[f".self_attn.{name}_proj.weight"], None, data[name])
            self.ExpandHead(data[name], self.heads)
        for name in "qk":
            self.LlamaRotatePosition2D(data[name], data["positionIds"], data["sin"], data["cos"], self.heads // 2)
        caches = data["pastKey."][i], data["pastValue."][i]
        step = data["attentionMask"], data["attended"], data["seqLens"]
        self.FusedAttention(data["q"], *caches, data["k"], data["v"], data["read"], *step, 1 / math.sqrt(self.heads))
        self.Linear(data["attended"], layer[".self_attn.o_proj.weight"], None, data["added"])
        self.AddTo(x, data["added"])

    def feed_forward(self, x, i):
        data, layer = self.data, self.weight["model.layers."][i]
        self.norm(x, layer[".post_attention_layernorm"], data["read"])
        self.Linear(data["read"], layer[".mlp.up_proj.weight"], None, data["up"])
        self.Linear(data["read"], layer[".mlp.gate_proj.weight"], None, data["gate"])
        self.Silu(data["gate"], data["activated"])
        self.MulTo(data["up"], data["activated"])
        self.Linear(data["up"], layer[".mlp.down_proj.weight"], None, data["added"])
        self.AddTo(x, data["added"])


__model__ = LlamaWritten
