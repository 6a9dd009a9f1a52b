"""The Llama network, written small so that it compiles whole, with Hugging Face's parameter names. Knows tensors.

`to_hugging_face` gives the same network as `LlamaForCausalLM`; a test holds the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

INIT_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """What the network looks like. The defaults are the model in data/base."""

    vocab: int = 12288
    hidden: int = 384
    layers: int = 12
    heads: int = 6
    kv_heads: int = 2
    ffn: int = 1024
    context: int = 2048
    theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head(self) -> int:
        return self.hidden // self.heads


def rope_tables(shape: Shape, T: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, (T, head) fp32 each, in Llama's half-split order."""
    freq = shape.theta ** (-torch.arange(0, shape.head, 2, device=device).float() / shape.head)
    angle = torch.outer(torch.arange(T, device=device).float(), freq).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, head) turned by its position."""
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)


def document_mask(docs: Tensor, flex: bool) -> BlockMask | Tensor:
    """Which tokens see which: earlier ones of the same document. docs (B, T): a number for each document."""
    B, T = docs.shape
    if flex:

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (docs[b, q] == docs[b, k])

        return create_block_mask(sees, B=B, H=None, Q_LEN=T, KV_LEN=T, device=docs.device, _compile=True)
    causal = torch.ones(T, T, dtype=torch.bool, device=docs.device).tril()
    return (docs[:, None, :, None] == docs[:, None, None, :]) & causal


def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | Tensor | None) -> Tensor:
    """q (B, H, T, head), k and v (B, KV, T, head) -> (B, H, T, head). mask None: all earlier tokens."""
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


class Norm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.hidden, s.hidden, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head, bias=False)
        self.o_proj = nn.Linear(s.hidden, s.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | Tensor | None) -> Tensor:
        B, T, _ = x.shape
        s = self.s
        # One product for three: at this width reading x costs more than the arithmetic.
        qkv = F.linear(x, torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)).to(x.dtype))
        q, k, v = qkv.view(B, T, -1, s.head).transpose(1, 2).split((s.heads, s.kv_heads, s.kv_heads), dim=1)
        y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, mask)  # (B, H, T, head)
        return F.linear(y.transpose(1, 2).reshape(B, T, s.hidden), self.o_proj.weight.to(x.dtype))


class SwiGLU(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.ffn, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.ffn, bias=False)
        self.down_proj = nn.Linear(s.ffn, s.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, torch.cat((self.gate_proj.weight, self.up_proj.weight)).to(x.dtype)).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj.weight.to(x.dtype))


class Block(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(s.hidden, s.eps), Norm(s.hidden, s.eps)
        self.self_attn, self.mlp = Attention(s), SwiGLU(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """tokens (B, T) -> the last hidden states; `loss` for training. Embeddings are tied."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.eps)

    def init_(self, generator: torch.Generator) -> Llama:
        """Normal(0, 0.02); the two matrices that write into the residual stream smaller by sqrt(2 layers)."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                thin = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, 0, INIT_STD / (2 * self.shape.layers) ** (0.5 * thin), generator=generator)
        return self

    def hidden(self, tokens: Tensor, mask: BlockMask | Tensor | None = None) -> Tensor:
        """tokens (B, T) -> (B, T, hidden): bf16 on a GPU, where the weights stay fp32 for the optimiser."""
        cos, sin = rope_tables(self.shape, tokens.shape[1], tokens.device)
        x = self.embed_tokens(tokens)
        x = x.bfloat16() if x.is_cuda else x
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)

    def forward(self, tokens: Tensor, targets: Tensor, mask: BlockMask | Tensor | None = None) -> Tensor:
        """Sum of the cross-entropy in nats over the targets that are not -100."""
        x = self.hidden(tokens, mask)
        logits = F.linear(x, self.embed_tokens.weight.to(x.dtype))  # (B, T, vocab)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def config_of(shape: Shape, bos: int, eos: int) -> LlamaConfig:
    """The same shape in Hugging Face's words. bos also pads."""
    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=bos,
    )


def to_hugging_face(model: Llama, bos: int, eos: int) -> LlamaForCausalLM:
    """A copy of `model` as fp32 LlamaForCausalLM, greedy by default."""
    twin = LlamaForCausalLM(config_of(model.shape, bos, eos)).float()
    state = {f"model.{name}": p.detach().float().cpu() for name, p in model.state_dict().items()}
    twin.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    twin.tie_weights()
    twin.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=bos, do_sample=False)
    return twin.eval()


def from_hugging_face(twin: LlamaForCausalLM) -> Llama:
    """The way back, for tuning on from a saved model."""
    c = twin.config
    shape = Shape(
        vocab=c.vocab_size,
        hidden=c.hidden_size,
        layers=c.num_hidden_layers,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        ffn=c.intermediate_size,
        context=c.max_position_embeddings,
        theta=c.rope_parameters["rope_theta"],
        eps=c.rms_norm_eps,
    )
    model = Llama(shape)
    state = {n.removeprefix("model."): p for n, p in twin.state_dict().items() if n != "lm_head.weight"}
    model.load_state_dict(state)
    return model
