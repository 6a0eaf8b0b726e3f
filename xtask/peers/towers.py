"""Chinese-CLIP (ViT and BERT) in PyTorch under the official names of its parameters."""

import json
import math

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Switches:
    """What training does besides the default."""

    dropout = 0.1
    checkpointing = False
    mask_ratio = 0.0


def run(block, switches, *inputs):
    if switches.checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class VisionAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x):
        projected = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = (split(part, self.heads) for part in projected.chunk(3, dim=-1))
        context = functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(context.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x))


class VisionBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = VisionAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    def __init__(self, config, switches):
        super().__init__()
        width, patch = config["vision_width"], config["vision_patch_size"]
        tokens = (config["image_resolution"] // patch) ** 2 + 1
        heads = width // config.get("vision_head_width", 64)
        self.switches = switches
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(tokens, width) * width**-0.5)
        self.proj = nn.Parameter(torch.randn(width, config["embed_dim"]) * width**-0.5)
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        blocks = [VisionBlock(width, heads) for _ in range(config["vision_layers"])]
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(blocks)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], 1) + self.positional_embedding
        if self.training and self.switches.mask_ratio > 0:
            patches = x.shape[1] - 1
            kept = int(patches * (1 - self.switches.mask_ratio))
            keep = torch.rand(x.shape[0], patches).argsort(1)[:, :kept] + 1
            patches = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
            x = torch.cat([x[:, :1], patches], 1)
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x = run(block, self.switches, x)
        return self.ln_post(x[:, 0]) @ self.proj


def named(**modules):
    holder = nn.Module()
    for name, module in modules.items():
        setattr(holder, name, module)
    return holder


class TextLayer(nn.Module):
    def __init__(self, config, switches):
        super().__init__()
        hidden, inner = config["text_hidden_size"], config["text_intermediate_size"]
        self.heads, self.switches = config["text_num_attention_heads"], switches

        def norm():
            return nn.LayerNorm(hidden, eps=1e-12)

        own = named(**{key: nn.Linear(hidden, hidden) for key in ("query", "key", "value")})
        output = named(dense=nn.Linear(hidden, hidden), LayerNorm=norm())
        self.attention = named(self=own, output=output)
        self.intermediate = named(dense=nn.Linear(hidden, inner))
        self.output = named(dense=nn.Linear(inner, hidden), LayerNorm=norm())

    def drop(self, x):
        return functional.dropout(x, self.switches.dropout, self.training)

    def attend(self, x, mask):
        own = getattr(self.attention, "self")
        parts = (own.query(x), own.key(x), own.value(x))
        query, key, value = (split(part, self.heads) for part in parts)
        if self.training:
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + mask
            context = self.drop(scores.softmax(-1)) @ value
        else:
            context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return context.transpose(1, 2).flatten(2)

    def forward(self, x, mask):
        output = self.attention.output
        x = output.LayerNorm(x + self.drop(output.dense(self.attend(x, mask))))
        inner = functional.gelu(self.intermediate.dense(x))
        return self.output.LayerNorm(x + self.drop(self.output.dense(inner)))


class Bert(nn.Module):
    def __init__(self, config, switches):
        super().__init__()
        hidden = config["text_hidden_size"]
        self.switches = switches
        self.embeddings = named(
            word_embeddings=nn.Embedding(config["vocab_size"], hidden, padding_idx=0),
            position_embeddings=nn.Embedding(config["text_max_position_embeddings"], hidden),
            token_type_embeddings=nn.Embedding(config["text_type_vocab_size"], hidden),
            LayerNorm=nn.LayerNorm(hidden, eps=1e-12),
        )
        layers = [TextLayer(config, switches) for _ in range(config["text_num_hidden_layers"])]
        self.encoder = named(layer=nn.ModuleList(layers))

    def forward(self, tokens):
        own = self.embeddings
        places = own.position_embeddings.weight[: tokens.shape[1]]
        x = own.word_embeddings(tokens) + places + own.token_type_embeddings.weight[0]
        x = functional.dropout(own.LayerNorm(x), self.switches.dropout, self.training)
        mask = (tokens == 0)[:, None, None].to(x.dtype) * -10000.0
        for layer in self.encoder.layer:
            x = run(layer, self.switches, x, mask)
        return x[:, 0]


class Clip(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.switches = Switches()
        hidden, embed = config["text_hidden_size"], config["embed_dim"]
        self.text_projection = nn.Parameter(torch.randn(hidden, embed) * hidden**-0.5)
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))
        self.visual = VisionTransformer(config, self.switches)
        self.bert = Bert(config, self.switches)

    def encode_image(self, pixels):
        return self.visual(pixels)

    def encode_text(self, tokens):
        return self.bert(tokens) @ self.text_projection

    def loss(self, pixels, tokens):
        images = functional.normalize(self.encode_image(pixels), dim=-1)
        texts = functional.normalize(self.encode_text(tokens), dim=-1)
        logits = self.logit_scale.exp() * images @ texts.t()
        labels = torch.arange(len(logits))
        rows, columns = (functional.cross_entropy(x, labels) for x in (logits, logits.t()))
        return (rows + columns) / 2


def load(config, path):
    """The model of a JSON file with the weights of an official checkpoint, to evaluate."""
    with open(config, encoding="utf-8") as file:
        model = Clip(json.load(file))
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    state = {key.removeprefix("module."): value for key, value in state.items()}
    unknown = model.load_state_dict(state, strict=False)
    assert not unknown.missing_keys, unknown.missing_keys
    # The pooler of BERT, which nothing uses.
    other = [key for key in unknown.unexpected_keys if not key.startswith("bert.pooler.")]
    assert not other, other
    return model.eval()
