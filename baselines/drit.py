"""DRIT (arXiv 1808.00948) and MSGAN (arXiv 1903.05628) as plainly as possible.

Networks layer by layer, and the iteration with the numbers of the authors' programs: pair by pair,
with losses that are sums over the two directions. Nothing is shared between phases and nothing is
frozen. Tests require the project's networks and iteration to equal these.
"""

import torch
import torch.nn.functional as F

WEIGHT_KL, WEIGHT_L2, WEIGHT_L1 = 0.01, 0.01, 10
MAX_NORM_C = 5
D_ITER = 3  # G steps in every third iteration


def _norm(h):
    mean = h.mean((2, 3), keepdim=True)
    variance = ((h - mean) ** 2).mean((2, 3), keepdim=True)
    return (h - mean) / torch.sqrt(variance + 1e-5)


def _layer_norm(h, state, name):
    mean = h.mean((1, 2, 3), keepdim=True)
    variance = ((h - mean) ** 2).mean((1, 2, 3), keepdim=True)
    scale, shift = (state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return scale * (h - mean) / torch.sqrt(variance + 1e-5) + shift


def _conv(h, state, name, pad, stride=1):
    h = F.pad(h, [pad] * 4, mode="reflect") if pad else h
    return F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], stride)


def _leaky(h, slope):
    return torch.where(h > 0, h, slope * h)


def _residual(h, state, name):
    r = torch.relu(_norm(_conv(h, state, f"{name}.main.0", 1)))
    return h + _norm(_conv(r, state, f"{name}.main.3", 1))


def _halved(h):
    return (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4


def literal_content(state, domain, x):
    """Encode the contents (B, 4·width, H/4, H/4) of images of a domain.

    Args:
        state: weights of the project's ContentEncoder by name.
        domain: 0 or 1.
        x: (B, 3, H, H).
    """
    own = f"of_domain.{domain}"
    h = _leaky(_conv(x, state, f"{own}.0", 3), 0.01)
    for i in (2, 5):
        h = torch.relu(_norm(_conv(h, state, f"{own}.{i}", 1, stride=2)))
    for i in (8, 9, 10):
        h = _residual(h, state, f"{own}.{i}")
    return _residual(h, state, "shared.0")


def literal_image(state, domain, content, z):
    """Decode images of a domain from contents and attributes.

    Args:
        state: weights of the project's Decoder by name.
        domain: 0 or 1.
        content: (B, 4·width, h, h).
        z: (B, n).
    """

    def with_z(h):
        return torch.cat([h, z[:, :, None, None].repeat(1, 1, h.shape[2], h.shape[3])], 1)

    own = f"of_domain.{domain}"
    h = with_z(_residual(content, state, "shared.0"))
    for i in range(3):
        h = _residual(h, state, f"{own}.blocks.{i}")
    for up in (f"{own}.up1", f"{own}.up2"):
        weight, bias = state[f"{up}.0.weight"], state[f"{up}.0.bias"]
        h = F.conv_transpose2d(with_z(h), weight, bias, stride=2, padding=1, output_padding=1)
        h = torch.relu(_layer_norm(h, state, f"{up}.1"))
    weight, bias = state[f"{own}.to_rgb.weight"], state[f"{own}.to_rgb.bias"]
    return torch.tanh(F.conv_transpose2d(with_z(h), weight, bias))


def literal_attribute(state, x):
    """Return mean and log variance (B, n) of the attributes of images.

    Args:
        state: weights of the project's AttributeNet by name.
        x: (B, 3, H, H).
    """
    h = _conv(x, state, "trunk.0", 1, stride=2)
    for block in ("trunk.1", "trunk.2", "trunk.3"):
        r = _conv(_leaky(h, 0.2), state, f"{block}.conv1", 1)
        r = _conv(_leaky(r, 0.2), state, f"{block}.conv2", 1)
        h = _halved(r) + _conv(_halved(h), state, f"{block}.conv1x1", 0)
    h = _leaky(h, 0.2).mean((2, 3))
    output = h @ state["head.weight"].T + state["head.bias"]
    return output[:, : len(output[0]) // 2], output[:, len(output[0]) // 2 :]


def literal_logits(state, domain, x, scales):
    """Return D's logits (B, patches) of images of a domain, at each resolution.

    Args:
        state: weights of the project's MultiScaleDiscriminator by name.
        domain: 0 or 1.
        x: (B, 3, H, H).
        scales: number of resolutions.
    """
    logits = []
    for scale in range(scales):
        own, h = f"scales.{scale}.{domain}", x
        for i in (0, 2, 4, 6):
            h = _leaky(_conv(h, state, f"{own}.trunk.{i}", 1, stride=2), 0.01)
        logits.append(_conv(h, state, f"{own}.src", 0).flatten(1))
        # Means of windows of 3 × 3 pixels around every second one, without what is outside.
        ones = torch.ones_like(x[:, :1])
        kernel = torch.ones(1, 1, 3, 3, dtype=x.dtype)
        sums = [F.conv2d(x[:, [c]], kernel, stride=2, padding=1) for c in range(3)]
        x = torch.cat(sums, 1) / F.conv2d(ones, kernel, stride=2, padding=1)
    return logits


def literal_content_logits(state, content, halvings):
    """Return C's logits (B, patches) of contents (B, 4·width, h, h).

    Args:
        state: weights of the project's ContentDiscriminator by name.
        content: see above.
        halvings: number of layers with kernels of 7 pixels.
    """
    h = content
    for i in range(halvings):
        h = _leaky(_conv(h, state, f"trunk.{2 * i}", 1, stride=2), 0.01)
    h = _leaky(_conv(h, state, f"trunk.{2 * halvings}", 0), 0.01)
    return _conv(h, state, "src", 0).flatten(1)


def literal_optimizers(networks):
    """Return Adam with the published numbers.

    The project's losses are means over directions, half as large, so its eps of 1e-8 is 2e-8 here.
    """
    return {
        letter: torch.optim.Adam(
            network.parameters(),
            lr=1e-4 / 2.5 if letter == "C" else 1e-4,
            betas=(0.5, 0.999),
            weight_decay=1e-4,
            eps=2e-8,
        )
        for letter, network in networks.items()
    }


def _cross_entropy(logits, target):
    probability = torch.sigmoid(logits)
    return F.binary_cross_entropy(probability, torch.full_like(probability, target))


class _Pair:
    """Two images, a of domain 0 and b of domain 1, and what the networks make of them.

    Each attribute `name` of an image of domain d is a list at position d.
    """

    def __init__(self, networks, batch, slots, draw):
        self.networks, self.batch, self.slots, self.draw = networks, batch, slots, draw
        self.x = [batch.x[i : i + 1] for i in slots]
        self.c = [self.content(d, self.x[d], slots[d], "content") for d in (0, 1)]

    def content(self, d, x, slot, purpose):
        encoder = self.networks["G"].encoder
        c = encoder.shared(encoder.of_domain[d](x))
        return c + self.draw(slot, c.shape[1:], purpose)

    def attribute(self, d, x, slot, purpose):
        """Return a sample, the mean and the log variance."""
        output = self.networks["E"].of_domain[d](x)
        mean, log_variance = output.chunk(2, 1)
        noise = self.draw(slot, mean.shape[1:], purpose)
        return mean + torch.exp(0.5 * log_variance) * noise, mean, log_variance

    def image(self, d, c, z):
        decoder = self.networks["G"].decoder
        return decoder.of_domain[d](decoder.shared(c), z)

    def logits(self, number, d, x):
        """Return D's logits at each resolution; number 0: D for encoded attributes."""
        return self.networks["D"][number](x, torch.tensor([d])).scales

    def translate(self):
        """Exchange attributes: `fake[d]` has the content of the other domain's image."""
        self.z = [self.attribute(d, self.x[d], self.slots[d], "attribute") for d in (0, 1)]
        self.fake = [self.image(d, self.c[1 - d], self.z[d][0]) for d in (0, 1)]

    def translate_randomly(self, latents):
        """Set `random[d]`, of the content of the other image, whose slot has the latent."""
        self.random = [
            [self.image(d, self.c[1 - d], z[self.slots[1 - d]][None]) for d in (0, 1)]
            for z in latents
        ]


def literal_iteration(networks, optimizers, batch, step, draw, *, mode_seeking=False):
    """Run one iteration: C; and in every third one D, then G and E, then G.

    Args:
        networks: of the project, of which the networks of each domain are used. They are in
            evaluation mode, so that a batch may be one image.
        optimizers: by letter, from `literal_optimizers`.
        batch: sources 2i and 2i + 1 are pair i, in either order.
        step: number of earlier iterations.
        draw: noise of a slot, of a shape and for a purpose: "content", "content of fake",
            "attribute" or "attribute of fake".
        mode_seeking: MSGAN.

    Returns:
        Every loss term, under the name that the project gives it: means over both directions.
    """
    terms = {}
    latents = (batch.z, batch.z2) if mode_seeking else (batch.z,)

    def pairs():
        for i in range(0, len(batch.x), 2):
            yield _Pair(networks, batch, (i, i + 1) if batch.y[i] == 0 else (i + 1, i), draw)

    def minimise(letters, named, weights):
        """Step networks by a sum of terms, each a mean over pairs of sums over directions."""
        loss = sum(weights.get(name.split("/")[-1], 1) * value for name, value in named.items())
        for network in networks.values():
            network.zero_grad()
        loss.backward()
        if letters == "C":
            torch.nn.utils.clip_grad_norm_(networks["C"].parameters(), MAX_NORM_C)
        for letter in letters:
            optimizers[letter].step()
        terms.update({name: value / 2 for name, value in named.items()})

    def mean_of(terms_of_pair, *args):
        return _mean_terms(terms_of_pair(pair, *args) for pair in pairs())

    is_full = (step + 1) % D_ITER == 0
    if is_full:
        minimise("D", mean_of(_terms_of_d, latents), {})
    minimise("C", mean_of(_terms_of_c), {})
    if is_full:
        weights = {"kl": WEIGHT_KL, "l2": WEIGHT_L2, "idt": WEIGHT_L1, "cyc": WEIGHT_L1}
        minimise("GE", mean_of(_terms_of_g_and_e), weights)
        minimise("G", mean_of(_terms_of_g, latents), {"sty": WEIGHT_L1})
    return terms


def _mean_terms(terms_of_pairs):
    """Average the terms of pairs by name."""
    first, *others = terms_of_pairs
    return {n: sum((t[n] for t in others), first[n]) / (1 + len(others)) for n in first}


def _terms_of_c(pair):
    C = pair.networks["C"]
    return {"C/dom": sum(_cross_entropy(C(pair.c[d].detach()), float(d)) for d in (0, 1))}


def _terms_of_d(pair, latents):
    pair.translate()
    pair.translate_randomly(latents)
    real, fake = 0, 0
    for d in (0, 1):
        for number, fakes in ((0, [pair.fake]), (1, pair.random)):
            real = real + sum(_cross_entropy(s, 1.0) for s in pair.logits(number, d, pair.x[d]))
            for of_latent in fakes:
                logits = pair.logits(number, d, of_latent[d].detach())
                fake = fake + sum(_cross_entropy(s, 0.0) for s in logits) / len(fakes)
    return {"D/reference+latent/real": real, "D/reference+latent/fake": fake}


def _terms_of_g_and_e(pair):
    pair.translate()
    terms = dict.fromkeys(("dom", "adv", "kl", "l2", "idt", "cyc"), 0)
    # The content of domain d's image is in the fake of the other domain, its attribute in fake[d].
    c = [pair.content(1 - d, pair.fake[1 - d], pair.slots[d], "content of fake") for d in (0, 1)]
    z = [pair.attribute(d, pair.fake[d], pair.slots[1 - d], "attribute of fake")[0] for d in (0, 1)]
    for d in (0, 1):
        sample, mean, log_variance = pair.z[d]
        terms["dom"] += _cross_entropy(pair.networks["C"](pair.c[d]), 0.5)
        terms["adv"] += sum(_cross_entropy(s, 1.0) for s in pair.logits(0, d, pair.fake[d]))
        terms["kl"] += -0.5 * (1 + log_variance - mean**2 - torch.exp(log_variance)).sum()
        terms["l2"] += (pair.c[d] ** 2).mean()
        terms["idt"] += (pair.image(d, pair.c[d], sample) - pair.x[d]).abs().mean()
        terms["cyc"] += (pair.image(d, c[d], z[d]) - pair.x[d]).abs().mean()
    return {f"G/reference/{name}": value for name, value in terms.items()}


def _terms_of_g(pair, latents):
    pair.translate_randomly(latents)
    terms = dict.fromkeys(("adv", "sty", *(["ms"] if len(latents) == 2 else [])), 0)
    for d in (0, 1):
        slot = pair.slots[1 - d]
        for fakes in pair.random:
            terms["adv"] += sum(_cross_entropy(s, 1.0) for s in pair.logits(1, d, fakes[d]))
        _, mean, _ = pair.attribute(d, pair.random[0][d], slot, "attribute of fake")
        terms["sty"] += (mean - latents[0][slot]).abs().mean()
        if len(latents) == 2:
            images = (pair.random[1][d] - pair.random[0][d]).abs().mean()
            styles = (latents[1][slot] - latents[0][slot]).abs().mean()
            terms["ms"] += 1 / (images / styles + 1e-5)
    return {f"G/latent/{name}": value for name, value in terms.items()}
