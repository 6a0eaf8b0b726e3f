"""The training step of the Python program in PyTorch, for side-by-side timing: the same towers,
loss and optimizer, random weights, fp32. Prints one JSON line."""

import argparse
import json
import math
import resource
import time

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

VISION = {"width": 768, "layers": 12, "heads": 12, "patch": 16, "resolution": 224, "embed": 512}
TEXT = {"hidden": 768, "layers": 12, "heads": 12, "inner": 3072, "vocab": 21128}


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class VisionBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), QuickGelu(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class Vision(nn.Module):
    def __init__(self, config, checkpointing):
        super().__init__()
        width = config["width"]
        tokens = (config["resolution"] // config["patch"]) ** 2 + 1
        self.patches = nn.Conv2d(3, width, config["patch"], config["patch"], bias=False)
        self.label = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position = nn.Parameter(torch.randn(tokens, width) * width**-0.5)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        blocks = [VisionBlock(width, config["heads"]) for _ in range(config["layers"])]
        self.blocks = nn.ModuleList(blocks)
        self.projection = nn.Parameter(torch.randn(width, config["embed"]) * width**-0.5)
        self.checkpointing = checkpointing

    def forward(self, pixels, mask_ratio):
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        first = self.label.expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], 1) + self.position
        if mask_ratio > 0:
            rest = x.shape[1] - 1
            keep = torch.rand(x.shape[0], rest).argsort(1)[:, : int(rest * (1 - mask_ratio))] + 1
            kept = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
            x = torch.cat([x[:, :1], kept], 1)
        x = self.before(x).transpose(0, 1)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        return self.after(x[0]) @ self.projection


class TextLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, self.heads = config["hidden"], config["heads"]
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))
        self.inner = nn.Linear(hidden, config["inner"])
        self.outer = nn.Linear(config["inner"], hidden)
        self.first = nn.LayerNorm(hidden, eps=1e-12)
        self.second = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, mask):
        batch, tokens, hidden = x.shape

        def split(y):
            return y.view(batch, tokens, self.heads, -1).permute(0, 2, 1, 3)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(-1, -2) / math.sqrt(hidden // self.heads) + mask
        context = self.dropout(scores.softmax(-1)) @ value
        context = context.permute(0, 2, 1, 3).reshape(batch, tokens, hidden)
        x = self.first(x + self.dropout(self.out(context)))
        inner = nn.functional.gelu(self.inner(x))
        return self.second(x + self.dropout(self.outer(inner)))


class Text(nn.Module):
    def __init__(self, config, embed, checkpointing):
        super().__init__()
        hidden = config["hidden"]
        self.words = nn.Embedding(config["vocab"], hidden, padding_idx=0)
        self.positions = nn.Embedding(512, hidden)
        self.kinds = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.ModuleList([TextLayer(config) for _ in range(config["layers"])])
        self.projection = nn.Parameter(torch.randn(hidden, embed) * hidden**-0.5)
        self.checkpointing = checkpointing

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1])[None]
        x = self.words(tokens) + self.positions(places) + self.kinds(torch.zeros_like(tokens))
        x = self.dropout(self.norm(x))
        mask = (tokens == 0)[:, None, None].float() * -10000.0
        for layer in self.layers:
            if self.checkpointing:
                x = checkpoint(layer, x, mask, use_reentrant=False)
            else:
                x = layer(x, mask)
        return x[:, 0] @ self.projection


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context-length", type=int, default=52)
    parser.add_argument("--mask-ratio", type=float, default=0.0)
    parser.add_argument("--grad-checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    vision = Vision(VISION, args.grad_checkpointing)
    text = Text(TEXT, VISION["embed"], args.grad_checkpointing)
    scale = nn.Parameter(torch.tensor(2.6592))
    parameters = [*vision.parameters(), *text.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, betas=(0.9, 0.98), eps=1e-6)
    pixels = torch.rand(args.batch, 3, VISION["resolution"], VISION["resolution"]) * 2 - 1
    tokens = torch.randint(1, 20000, (args.batch, args.context_length))
    labels = torch.arange(args.batch)
    seconds = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        images = nn.functional.normalize(vision(pixels, args.mask_ratio), dim=-1)
        texts = nn.functional.normalize(text(tokens), dim=-1)
        logits = scale.exp() * images @ texts.t()
        entropy = nn.functional.cross_entropy
        loss = (entropy(logits, labels) + entropy(logits.t(), labels)) / 2
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            scale.clamp_(0, math.log(100))
        loss.item()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds[1:], "peak_mib": peak}))


main()
