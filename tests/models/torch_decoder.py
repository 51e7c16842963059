"""Llama in plain PyTorch, with windows, norms of heads and experts; parameters under our names, one layer after the other.

Written from the papers alone: scores in full, a loop over layers and over experts, `repeat_interleave` for groups of heads.
"""

import math

import torch
from torch.nn import functional


def rotary_frequencies(width, theta, stretch):
    """By Llama 3.1's rule, wave by wave."""
    found = []
    for n in range(0, width, 2):
        f = theta ** (-n / width)
        length = 2 * math.pi / f
        if stretch != 1 and length > 8192:
            f /= stretch
        elif stretch != 1 and length > 8192 / 4:
            smooth = (8192 / length - 1) / (4 - 1)
            f = (1 - smooth) * f / stretch + smooth * f
        found.append(f)
    return torch.tensor(found, dtype=torch.float64)


def rotated(x, waves):
    """[B, L, H, K]: complex numbers of first and second half turn."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * waves
    z = (
        torch.complex(x[..., :half], x[..., half:])
        * torch.polar(torch.ones_like(angles), angles).to(
            torch.complex64 if x.dtype == torch.float32 else torch.complex128
        )[:, None]
    )
    return torch.cat([z.real, z.imag], -1)


def normed(x, scale, epsilon):
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * scale


def feed_forward(x, gate, up, down):
    return (functional.silu(x @ gate) * (x @ up)) @ down


def experts(x, p, chosen):
    """Token by token and expert by expert."""
    flat = x.flatten(0, 1)
    found = []
    for token in flat:
        logits = token @ p["router"]
        best = logits.topk(chosen).indices
        weights = logits[best].softmax(0)
        found.append(
            sum(
                w * feed_forward(token, p["gate"][e], p["up"][e], p["down"][e])
                for w, e in zip(weights, best, strict=True)
            )
        )
    return torch.stack(found).reshape(x.shape)


def changed(x, p, number, config, dims=1):
    """What a low-rank change adds, without dropout."""
    x = x.flatten(-dims)
    down = p["down"].reshape(-1, config.low_rank)
    up = p[f"up_{number}"]
    return (x @ down @ up.flatten(1)).unflatten(-1, up.shape[1:]) * config.low_rank_alpha / config.low_rank


def layer(x, p, config, number):
    """[B, L, D]; `p` holds the parameters of this layer."""
    length = x.shape[1]
    a, y = p["attention"], normed(x, p["attention_norm"]["scale"], config.epsilon)
    q, k, v = (torch.einsum("bld,dhk->blhk", y, a[name]["kernel"]) for name in ("query", "key", "value"))
    if config.low_rank:
        q, k, v = (part + changed(y, a["low_rank_in"], n, config) for n, part in enumerate((q, k, v)))
    if config.query_key_norm:
        q, k = (
            normed(z, a[f"{name}_norm"]["scale"], config.epsilon) for z, name in ((q, "query"), (k, "key"))
        )
    waves = rotary_frequencies(config.head_width, config.rope_theta, config.rope_stretch)
    q, k = rotated(q, waves), rotated(k, waves)
    k, v = (z.repeat_interleave(config.num_heads // config.num_key_heads, 2) for z in (k, v))
    scores = torch.einsum("blhk,bmhk->bhlm", q, k) / math.sqrt(config.head_width)
    behind = torch.arange(length)[:, None] - torch.arange(length)
    seen = behind >= 0
    if config.window and number % config.window_every == 0:
        seen &= behind <= config.window - 1
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    found = torch.einsum("bhlm,bmhk->blhk", weights, v)
    y = torch.einsum("blhk,hkd->bld", found, a["out"]["kernel"])
    if config.low_rank:
        y = y + changed(found, a["low_rank_out"], 0, config, dims=2)
    x = x + y
    y = normed(x, p["mlp_norm"]["scale"], config.epsilon)
    m = p["mlp"]
    if config.num_experts:
        return x + experts(y, m, config.num_chosen)
    return x + feed_forward(y, m["gate"]["kernel"], m["up"]["kernel"], m["down"]["kernel"])


def logits(params, config, tokens):
    """[B, L, V] of parameters as a tree of tensors, stacked as ours are."""
    x = params["embedding"][tokens]
    for number in range(config.num_layers):
        x = layer(x, at(params["layers"], number), config, number)
    last = params["embedding"].T if config.tied else params["head"]
    return normed(x, params["norm"]["scale"], config.epsilon) @ last


def at(tree, number):
    """One layer of stacked parameters."""
    return {
        name: at(value, number) if isinstance(value, dict) else value[number] for name, value in tree.items()
    }
