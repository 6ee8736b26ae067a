"""Plain forwards of the authors' networks, from state dicts with their names.

Written from the documented layout: names, shapes and formulas. No blocks of this project are used.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F

SKIP_SIZES = (32, 64, 128)


def random_state_dicts(
    size, num_domains, w_hpf=0.0, *, with_d=False, latent_dim=16, style_dim=64, zeros=False
):
    """Return state dicts by network: `generator`, `mapping_network`, …

    Values are random, float64; or zeros that take neither memory nor time.
    """
    generator = torch.Generator().manual_seed(size + num_domains)

    def random(*shape):
        if zeros:
            return torch.zeros(1).expand(shape)
        return torch.randn(shape, generator=generator, dtype=torch.float64) / 8

    def layer(name, *shape, bias=True):
        weights = {f"{name}.weight": random(*shape)}
        return weights | ({f"{name}.bias": random(shape[0])} if bias else {})

    halvings = int(math.log2(size)) - 4 + (w_hpf > 0)
    widths = [min(2**14 // size * 2**i, 512) for i in range(halvings + 1)]
    deep = widths[-1]
    encoder = [*pairwise(widths), (deep, deep), (deep, deep)]
    decoder = [(b, a) for a, b in reversed(encoder)]
    g = layer("from_rgb", widths[0], 3, 3, 3)
    for i, (a, b) in enumerate(encoder):
        g |= layer(f"encode.{i}.conv1", a, a, 3, 3) | layer(f"encode.{i}.conv2", b, a, 3, 3)
        g |= layer(f"encode.{i}.norm1", a) | layer(f"encode.{i}.norm2", a)
        g |= layer(f"encode.{i}.conv1x1", b, a, 1, 1, bias=False) if a != b else {}
    for i, (a, b) in enumerate(decoder):
        g |= layer(f"decode.{i}.conv1", b, a, 3, 3) | layer(f"decode.{i}.conv2", b, b, 3, 3)
        g |= layer(f"decode.{i}.norm1.fc", 2 * a, style_dim)
        g |= layer(f"decode.{i}.norm2.fc", 2 * b, style_dim)
        g |= layer(f"decode.{i}.conv1x1", b, a, 1, 1, bias=False) if a != b else {}
    g |= layer("to_rgb.0", widths[0]) | layer("to_rgb.2", 3, widths[0], 1, 1)
    if w_hpf:
        g["hpf.filter"] = (
            torch.full((3, 3), -1.0) + torch.eye(3)[1].outer(torch.eye(3)[1]) * 9
        ) / w_hpf

    f = {}
    for i in range(4):
        f |= layer(f"shared.{2 * i}", 512, latent_dim if i == 0 else 512)
        for k in range(num_domains):
            f |= layer(f"unshared.{k}.{2 * i}", style_dim if i == 3 else 512, 512)

    def trunk(name):
        count = int(math.log2(size)) - 2
        wide = [min(2**14 // size * 2**i, 512) for i in range(count + 1)]
        tensors = layer(f"{name}.0", wide[0], 3, 3, 3)
        for i, (a, b) in enumerate(pairwise(wide), 1):
            tensors |= layer(f"{name}.{i}.conv1", a, a, 3, 3) | layer(
                f"{name}.{i}.conv2", b, a, 3, 3
            )
            tensors |= layer(f"{name}.{i}.conv1x1", b, a, 1, 1, bias=False) if a != b else {}
        return tensors | layer(f"{name}.{count + 2}", wide[-1], wide[-1], 4, 4)

    e, d = trunk("shared"), trunk("main")
    width = e[f"shared.{int(math.log2(size))}.weight"].shape[0]
    for k in range(num_domains):
        e |= layer(f"unshared.{k}", style_dim, width)
    d |= layer(f"main.{int(math.log2(size)) + 2}", num_domains, width, 1, 1)
    networks = {"generator": g, "mapping_network": f, "style_encoder": e}
    return networks | ({"discriminator": d} if with_d else {})


def conv(p, name, x, padding=1):
    return F.conv2d(x, p[f"{name}.weight"], p.get(f"{name}.bias"), padding=padding)


def activation(x):
    return F.leaky_relu(x, 0.2)


def adain(p, name, x, s):
    gamma, beta = F.linear(s, p[f"{name}.fc.weight"], p[f"{name}.fc.bias"]).chunk(2, 1)
    return (1 + gamma[:, :, None, None]) * F.instance_norm(x) + beta[:, :, None, None]


def norm(p, name, x):
    return F.instance_norm(x, weight=p[f"{name}.weight"], bias=p[f"{name}.bias"])


def shortcut(p, name, x):
    return conv(p, f"{name}.conv1x1", x, 0) if f"{name}.conv1x1.weight" in p else x


def residual_block(p, name, x, *, halve, normalize):
    h = activation(norm(p, f"{name}.norm1", x) if normalize else x)
    h, short = conv(p, f"{name}.conv1", h), shortcut(p, name, x)
    if halve:
        h, short = F.avg_pool2d(h, 2), F.avg_pool2d(short, 2)
    h = activation(norm(p, f"{name}.norm2", h) if normalize else h)
    return (short + conv(p, f"{name}.conv2", h)) / math.sqrt(2)


def generator(p, x, s, masks=None):
    halvings = len({n.split(".")[1] for n in p if n.startswith("encode.")}) - 2
    h, kept = conv(p, "from_rgb", x), {}
    for i in range(halvings + 2):
        if masks is not None and h.shape[2] in SKIP_SIZES:
            kept[h.shape[2]] = h
        h = residual_block(p, f"encode.{i}", h, halve=i < halvings, normalize=True)
    for i in range(halvings + 2):
        name, doubles = f"decode.{i}", i >= 2
        short = shortcut(p, name, F.interpolate(h, scale_factor=2) if doubles else h)
        h = activation(adain(p, f"{name}.norm1", h, s))
        h = conv(p, f"{name}.conv1", F.interpolate(h, scale_factor=2) if doubles else h)
        h = conv(p, f"{name}.conv2", activation(adain(p, f"{name}.norm2", h, s)))
        if masks is None:
            h = (short + h) / math.sqrt(2)
        elif h.shape[2] in kept:
            size = h.shape[2]
            mask = masks[:, :1] if size == 32 else masks[:, 1:]
            masked = F.interpolate(mask, size=size, mode="bilinear") * kept[size]
            kernel = p["hpf.filter"].double().expand(masked.shape[1], 1, 3, 3)
            h = h + F.conv2d(masked, kernel, padding=1, groups=masked.shape[1])
    return conv(p, "to_rgb.2", activation(norm(p, "to_rgb.0", h)), 0)


def mlp(p, name, x):
    for i in (0, 2, 4, 6):
        x = F.linear(x, p[f"{name}.{i}.weight"], p[f"{name}.{i}.bias"])
        x = F.relu(x) if i < 6 else x
    return x


def mapping_network(p, z, y):
    shared = F.relu(mlp(p, "shared", z))
    rows = [mlp(p, f"unshared.{k}", row[None]) for k, row in zip(y.tolist(), shared, strict=True)]
    return torch.cat(rows)


def trunk(p, name, x):
    count = int(math.log2(x.shape[2])) - 2
    h = conv(p, f"{name}.0", x)
    for i in range(1, count + 1):
        h = residual_block(p, f"{name}.{i}", h, halve=True, normalize=False)
    return activation(conv(p, f"{name}.{count + 2}", activation(h), 0))


def style_encoder(p, x, y):
    h = trunk(p, "shared", x).flatten(1)
    rows = [
        F.linear(row, p[f"unshared.{k}.weight"], p[f"unshared.{k}.bias"])
        for k, row in zip(y.tolist(), h, strict=True)
    ]
    return torch.stack(rows)


def discriminator(p, x, y):
    logits = conv(p, f"main.{int(math.log2(x.shape[2])) + 2}", trunk(p, "main", x), 0).flatten(1)
    return logits[torch.arange(len(y)), y]


# StarGAN.


def random_stargan(label_dim, width=8, *, size=64, blocks=6):
    """Return random float64 state dicts of StarGAN's G (with statistics) and D."""
    generator = torch.Generator().manual_seed(label_dim)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) / 8

    g = {"main.0.weight": random(width, 3 + label_dim, 7, 7)}
    g["main.3.weight"], g["main.6.weight"] = (
        random(b, a, 4, 4) for a, b in ((width, 2 * width), (2 * width, 4 * width))
    )
    norms = {"main.1": width, "main.4": 2 * width, "main.7": 4 * width}
    for i in range(9, 9 + blocks):
        for conv_index, norm_index in ((0, 1), (3, 4)):
            g[f"main.{i}.main.{conv_index}.weight"] = random(4 * width, 4 * width, 3, 3)
            norms[f"main.{i}.main.{norm_index}"] = 4 * width
    g["main.15.weight"], g["main.18.weight"] = (
        random(4 * width, 2 * width, 4, 4),
        random(2 * width, width, 4, 4),
    )
    norms |= {"main.16": 2 * width, "main.19": width}
    g["main.21.weight"] = random(3, width, 7, 7)
    for name, channels in norms.items():
        g[f"{name}.weight"], g[f"{name}.bias"] = random(channels), random(channels)
        g[f"{name}.running_mean"], g[f"{name}.running_var"] = random(channels), random(channels)
        g[f"{name}.num_batches_tracked"] = torch.tensor(5)
    widths = [3, *(width * 2**i for i in range(6))]
    d = {}
    for i in range(6):
        d[f"main.{2 * i}.weight"] = random(widths[i + 1], widths[i], 4, 4)
        d[f"main.{2 * i}.bias"] = random(widths[i + 1])
    d["conv1.weight"] = random(1, widths[-1], 3, 3)
    d["conv2.weight"] = random(label_dim, widths[-1], size // 64, size // 64)
    return g, d


def stargan_generator(p, x, c):
    def block(h, conv_name, norm_name, **options):
        h = F.conv2d(h, p[f"{conv_name}.weight"], **options)
        return norm(p, norm_name, h)

    h = torch.cat([x, c[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)
    h = F.relu(block(h, "main.0", "main.1", padding=3))
    h = F.relu(block(h, "main.3", "main.4", stride=2, padding=1))
    h = F.relu(block(h, "main.6", "main.7", stride=2, padding=1))
    for i in range(9, 15):
        r = F.relu(block(h, f"main.{i}.main.0", f"main.{i}.main.1", padding=1))
        h = h + block(r, f"main.{i}.main.3", f"main.{i}.main.4", padding=1)
    for i in (15, 18):
        h = F.conv_transpose2d(h, p[f"main.{i}.weight"], stride=2, padding=1)
        h = F.relu(norm(p, f"main.{i + 1}", h))
    return torch.tanh(F.conv2d(h, p["main.21.weight"], padding=3))


def stargan_discriminator(p, x):
    for i in range(6):
        x = F.conv2d(x, p[f"main.{2 * i}.weight"], p[f"main.{2 * i}.bias"], stride=2, padding=1)
        x = F.leaky_relu(x, 0.01)
    src, cls = F.conv2d(x, p["conv1.weight"], padding=1), F.conv2d(x, p["conv2.weight"])
    return src.flatten(1), cls.flatten(1)
