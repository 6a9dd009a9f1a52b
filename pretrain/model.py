"""The Llama network, written small so that it compiles whole, with Hugging Face's parameter names. Knows tensors.

`to_hugging_face` gives the same network as `LlamaForCausalLM`; a test holds the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:  # loaded where it is needed: training starts faster without it
    from transformers import LlamaConfig, LlamaForCausalLM

INIT_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """What the network looks like. The defaults are the model in data/base."""

    vocab: int = 16384
    hidden: int = 512
    layers: int = 14
    heads: int = 8
    kv_heads: int = 2
    ffn: int = 1280
    context: int = 2048
    theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def rows8_bytes(self) -> int:
        """What the weights take as 8-bit rows with an fp16 scale each; norms are fp32."""
        kv = self.kv_heads * self.head
        outs = [self.hidden, kv, kv, self.hidden, self.ffn, self.ffn]  # matrices of `hidden` columns
        layer = sum(n * (self.hidden + 2) for n in outs) + self.hidden * (self.ffn + 2) + 8 * self.hidden
        return self.vocab * (self.hidden + 2) + self.layers * layer + 4 * self.hidden


@dataclass(frozen=True)
class Extra:
    """What training adds to the network and its loss. All off by default; none of it changes the saved weights' form."""

    dropout: float = 0.0  # of what each half block adds to the residual stream
    z_loss: float = 0.0  # times the square of log-sum-exp of the logits, in nats a target
    kurtosis: float = 0.0  # times the mean kurtosis, above a normal's 3, of what half blocks add (arXiv:2404.03605)
    bits: int = 0  # of the matrices, rounded with straight-through gradients; 0: not rounded
    group: int = 128  # columns that share a scale when `bits` is below 8; at 8 a row shares one, as it is shipped


def rounded(w: Tensor, bits: int, group: int) -> Tensor:
    """w (N, D) to the nearest of 2^bits - 1 levels, symmetrical; the gradient passes straight through."""
    levels = 2 ** (bits - 1) - 1
    wide = w.detach().view(w.shape[0], -1, w.shape[1] if bits >= 8 or w.shape[1] % group else group)
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=1e-8) / levels
    near = ((wide / scale).round() * scale).view_as(w)
    return w + (near - w.detach())


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


class Matrices(nn.Module):
    """A half block: its matrices are read through `weights`, which rounds them if the training asks for it."""

    extra = Extra()

    def weights(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        """The matrices of `layers` stacked, in x's type."""
        parts = [layer.weight for layer in layers]
        if self.extra.bits:
            parts = [rounded(w, self.extra.bits, self.extra.group) for w in parts]
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).to(x.dtype)


class Attention(Matrices):
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
        qkv = F.linear(x, self.weights(x, self.q_proj, self.k_proj, self.v_proj))
        q, k, v = qkv.view(B, T, -1, s.head).transpose(1, 2).split((s.heads, s.kv_heads, s.kv_heads), dim=1)
        y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, mask)  # (B, H, T, head)
        return F.linear(y.transpose(1, 2).reshape(B, T, s.hidden), self.weights(x, self.o_proj))


class SwiGLU(Matrices):
    def __init__(self, s: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.ffn, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.ffn, bias=False)
        self.down_proj = nn.Linear(s.ffn, s.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.weights(x, self.gate_proj, self.up_proj)).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.weights(x, self.down_proj))


class Block(nn.Module):
    extra = Extra()

    def __init__(self, s: Shape):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(s.hidden, s.eps), Norm(s.hidden, s.eps)
        self.self_attn, self.mlp = Attention(s), SwiGLU(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | Tensor | None) -> tuple[Tensor, Tensor]:
        """x and the sum of the kurtosis of what was added to it."""
        a = self.self_attn(self.input_layernorm(x), cos, sin, mask)
        x = x + self._dropped(a)
        b = self.mlp(self.post_attention_layernorm(x))
        return x + self._dropped(b), (kurtosis(a) + kurtosis(b) if self.extra.kurtosis else x.new_zeros(()))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.extra.dropout, self.training) if self.extra.dropout else x


def kurtosis(x: Tensor) -> Tensor:
    """Mean over tokens of the fourth standardised moment of x (B, T, D) over D; 3 for normal numbers."""
    z = x.float() - x.float().mean(-1, keepdim=True)
    return (z.pow(4).mean(-1) / z.pow(2).mean(-1).pow(2).clamp(min=1e-12)).mean()


class Llama(nn.Module):
    """tokens (B, T) -> the last hidden states; the loss for training. Embeddings are tied."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, self.extra = shape, Extra()
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

    def train_with_(self, extra: Extra) -> Llama:
        """Use `extra` from now on."""
        for module in self.modules():
            if isinstance(module, Matrices | Block | Llama):
                module.extra = extra
        return self

    def _hidden(self, tokens: Tensor, mask: BlockMask | Tensor | None) -> tuple[Tensor, Tensor]:
        cos, sin = rope_tables(self.shape, tokens.shape[1], tokens.device)
        x = self.embed_tokens(tokens)
        x = x.bfloat16() if x.is_cuda else x
        tails = torch.zeros((), device=x.device)
        for layer in self.layers:
            x, tail = layer(x, cos, sin, mask)
            tails = tails + tail
        return self.norm(x), tails / (2 * len(self.layers))

    def hidden(self, tokens: Tensor, mask: BlockMask | Tensor | None = None) -> Tensor:
        """tokens (B, T) -> (B, T, hidden): bf16 on a GPU, where the weights stay fp32 for the optimiser."""
        return self._hidden(tokens, mask)[0]

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states -> (B, T, vocab)."""
        w = self.embed_tokens.weight
        return F.linear(x, (rounded(w, 8, 0) if self.extra.bits else w).to(x.dtype))

    def probabilities(self, tokens: Tensor, mask: BlockMask | Tensor | None = None) -> Tensor:
        """(B, T, vocab) of the next token, in the type of the hidden states: what a student learns from."""
        return self.logits(self.hidden(tokens, mask)).float().softmax(-1).to(torch.bfloat16)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        mask: BlockMask | Tensor | None = None,
        taught: Tensor | None = None,
        share: float = 0.0,
    ) -> Tensor:
        """Sum over the targets that are not -100 of the cross-entropy in nats, with what `extra` adds.

        taught (B, T, vocab): a teacher's probabilities, which take `share` of the loss.
        """
        x, tails = self._hidden(tokens, mask)
        logits, targets = self.logits(x).float().flatten(0, 1), targets.flatten()
        loss = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        told = targets >= 0
        if taught is not None:
            soft = -(taught.flatten(0, 1).float() * logits.log_softmax(-1)).sum(-1)
            loss = (1 - share) * loss + share * (soft * told).sum()
        if self.extra.z_loss and self.training:
            loss = loss + self.extra.z_loss * (logits.logsumexp(-1).square() * told).sum()
        if self.extra.kurtosis and self.training:
            loss = loss + self.extra.kurtosis * (tails - 3.0) * told.sum()
        return loss


def config_of(shape: Shape, bos: int, eos: int) -> LlamaConfig:
    """The same shape in Hugging Face's words. bos also pads."""
    from transformers import LlamaConfig

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
    from transformers import GenerationConfig, LlamaForCausalLM

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
