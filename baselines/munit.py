"""MUNIT (arXiv 1804.04732) as plainly as possible: its networks and its iteration.

Pair by pair and direction by direction, with two content encoders, style encoders, decoders and
discriminators. Nothing is shared between phases and nothing is frozen. Tests require the project's
networks and iteration to equal these.
"""

import torch
import torch.nn.functional as F


def _conv(h, state, name, pad, stride=1):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return F.conv2d(F.pad(h, [pad] * 4, mode="reflect"), weight, bias, stride)


def _instance_norm(h):
    mean = h.mean((2, 3), keepdim=True)
    variance = ((h - mean) ** 2).mean((2, 3), keepdim=True)
    return (h - mean) / torch.sqrt(variance + 1e-5)


def _layer_norm(h, state, name):
    samples = []
    for sample in h:
        deviations = sample - sample.mean()
        std = torch.sqrt((deviations**2).sum() / (sample.numel() - 1))
        samples.append(deviations / (std + 1e-5))
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return torch.stack(samples) * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def literal_content(state, x):
    """Compute a content encoder: c7s1-64, d128, d256, R256 four times.

    Args:
        state: weights of a `ContentEncoder` by name.
        x: (B, 3, H, H).
    """
    h = torch.relu(_instance_norm(_conv(x, state, "0", 3)))
    for i in (3, 6):
        h = torch.relu(_instance_norm(_conv(h, state, f"{i}", 1, 2)))
    for i in (9, 10, 11, 12):
        r = torch.relu(_instance_norm(_conv(h, state, f"{i}.main.0", 1)))
        h = h + _instance_norm(_conv(r, state, f"{i}.main.3", 1))
    return h


def literal_style(state, x):
    """Compute a style encoder: c7s1-64, d128, d256, d256, d256, the mean over pixels, fc8.

    Args:
        state: weights of a style encoder of one domain by name.
        x: (B, 3, H, H).
    """
    h = torch.relu(_conv(x, state, "trunk.0", 3))
    for i in (2, 4, 6, 8):
        h = torch.relu(_conv(h, state, f"trunk.{i}", 1, 2))
    weight, bias = state["head.1.weight"], state["head.1.bias"]
    return h.mean((2, 3)) @ weight[:, :, 0, 0].T + bias


def literal_decoder(state, content, style):
    """Compute a decoder: R256 with AdaIN four times, u128, u64, c7s1-3.

    Args:
        state: weights of a `Decoder` by name.
        content: (B, C, h, h).
        style: (B, style_dim).
    """
    p = style
    for i in (0, 2, 4):
        p = p @ state[f"mlp.{i}.weight"].T + state[f"mlp.{i}.bias"]
        p = p if i == 4 else torch.relu(p)
    h, width = content, content.shape[1]
    for i in range(4):
        r = h
        for conv in ("conv1", "conv2"):
            shift, scale, p = p[:, :width], p[:, width : 2 * width], p[:, 2 * width :]
            r = _instance_norm(_conv(r, state, f"blocks.{i}.{conv}", 1))
            r = r * scale.reshape(-1, width, 1, 1) + shift.reshape(-1, width, 1, 1)
            r = torch.relu(r) if conv == "conv1" else r
        h = h + r
    for i in (1, 5):
        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = torch.relu(_layer_norm(_conv(h, state, f"up.{i}", 2), state, f"up.{i + 1}"))
    return torch.tanh(_conv(h, state, "to_rgb.0", 3))


def literal_patches(state, x):
    """Compute a discriminator of one resolution: d64, d128, d256, d512 without norms, the scores.

    Args:
        state: weights of a discriminator of one domain and resolution by name.
        x: (B, 3, h, h).
    """
    h = x
    for i in (0, 2, 4, 6):
        h = _conv(h, state, f"trunk.{i}", 1, 2)
        h = torch.where(h > 0, h, 0.2 * h)
    return F.conv2d(h, state["src.weight"], state["src.bias"]).flatten(1)


def halved(x):
    """Halve images (B, 3, h, h): means of 3 × 3 pixels around every second one."""
    windows, inside = (
        F.pad(images, [1] * 4).unfold(2, 3, 2).unfold(3, 3, 2).sum((4, 5))
        for images in (x, torch.ones_like(x))
    )
    return windows / inside


def literal_iteration(networks, optimizers, batch, cyc_weight=0.0):
    """Run one iteration on pairs of images of two domains, a and b: both D, then all the others.

    Args:
        networks: G, E and D of the project, of which the networks of each domain are used.
        optimizers: by letter.
        batch: sources 2i and 2i + 1 are pair i, in either order. The latent of a source is the
            style of its fake.
        cyc_weight: weight of the style-augmented cycle consistency.

    Returns:
        Every loss term, under the name that the project gives it: means over both directions.
    """
    (content_a, content_b), (decode_a, decode_b) = networks["G"].encoder, networks["G"].decoder
    style_a, style_b = networks["E"].of_domain
    D, pairs = networks["D"], [*_pairs(batch)]
    real = fake = 0
    for x_a, x_b, s_a, s_b in pairs:
        with torch.no_grad():
            fake_a = decode_a(content_b(x_b), s_a)
            fake_b = decode_b(content_a(x_a), s_b)
        real = real + _squares(D, 0, x_a, 1) + _squares(D, 1, x_b, 1)
        fake = fake + _squares(D, 0, fake_a, 0) + _squares(D, 1, fake_b, 0)
    number = len(batch.x)
    real, fake = real / number, fake / number
    _step(networks, optimizers, real + fake, ("D",))
    adv = idt = sty = con = cyc = 0
    for x_a, x_b, s_a, s_b in pairs:
        c_a, c_b = content_a(x_a), content_b(x_b)
        own_a, own_b = style_a(x_a), style_b(x_b)
        fake_a, fake_b = decode_a(c_b, s_a), decode_b(c_a, s_b)
        again_b, again_a = content_a(fake_a), content_b(fake_b)
        adv = adv + _squares(D, 0, fake_a, 1) + _squares(D, 1, fake_b, 1)
        idt = idt + _distance(decode_a(c_a, own_a), x_a) + _distance(decode_b(c_b, own_b), x_b)
        sty = sty + _distance(style_a(fake_a), s_a) + _distance(style_b(fake_b), s_b)
        con = con + _distance(again_a, c_a) + _distance(again_b, c_b)
        back_a, back_b = decode_a(again_a, own_a), decode_b(again_b, own_b)
        cyc = cyc + _distance(back_a, x_a) + _distance(back_b, x_b)
    adv, idt, sty, con, cyc = (term / number for term in (adv, idt, sty, con, cyc))
    _step(networks, optimizers, adv + 10 * idt + sty + con + cyc_weight * cyc, ("G", "E"))
    terms = {"G/latent/adv": adv, "G/latent/idt": idt, "G/latent/sty": sty, "G/latent/con": con}
    terms |= {"G/latent/cyc": cyc} if cyc_weight else {}
    return terms | {"D/latent/real": real, "D/latent/fake": fake}


def _pairs(batch):
    """Yield the images of a and b, and the styles of the fakes of a and b, of each pair."""
    for i in range(len(batch.x) // 2):
        a, b = (2 * i, 2 * i + 1) if batch.y[2 * i] == 0 else (2 * i + 1, 2 * i)
        yield batch.x[a : a + 1], batch.x[b : b + 1], batch.z[b : b + 1], batch.z[a : a + 1]


def _squares(D, domain, x, target):
    total = 0
    for networks in D.scales:
        total = total + ((networks[domain](x) - target) ** 2).mean()
        x = halved(x)
    return total


def _distance(a, b):
    return (a - b).abs().mean()


def _step(networks, optimizers, loss, letters):
    for network in networks.values():
        network.zero_grad()
    loss.backward()
    for letter in letters:
        optimizers[letter].step()
