"""CycleGAN (arXiv 1703.10593) as plainly as possible: its networks and its iteration.

Pair by pair and direction by direction, with two generators, two discriminators and two lists of
earlier fakes for each pair. Nothing is shared between phases and nothing is frozen. Tests require
the project's networks and iteration to equal these.
"""

import torch
import torch.nn.functional as F


def _norm(h):
    mean = h.mean((2, 3), keepdim=True)
    variance = ((h - mean) ** 2).mean((2, 3), keepdim=True)
    return (h - mean) / torch.sqrt(variance + 1e-5)


def _reflected(h, state, name, pad):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return F.conv2d(F.pad(h, [pad] * 4, mode="reflect"), weight, bias)


def literal_resnet(state, x, blocks):
    """Compute a generator of one direction: c7s1-64, d128, d256, R256 …, u128, u64, c7s1-3.

    Args:
        state: weights of a `ResNet` by name.
        x: (B, 3, H, H).
        blocks: number of residual blocks.
    """
    h = torch.relu(_norm(_reflected(x, state, "0.0", 3)))
    for i in (3, 6):
        conv = F.conv2d(h, state[f"0.{i}.weight"], state[f"0.{i}.bias"], stride=2, padding=1)
        h = torch.relu(_norm(conv))
    for i in range(9, 9 + blocks):
        r = torch.relu(_norm(_reflected(h, state, f"0.{i}.main.0", 1)))
        h = h + _norm(_reflected(r, state, f"0.{i}.main.3", 1))
    for i in (9 + blocks, 12 + blocks):
        weight, bias = state[f"0.{i}.weight"], state[f"0.{i}.bias"]
        h = F.conv_transpose2d(h, weight, bias, stride=2, padding=1, output_padding=1)
        h = torch.relu(_norm(h))
    return torch.tanh(_reflected(h, state, "1", 3))


def literal_patches(state, x):
    """Compute a discriminator: C64 without a norm, C128, C256, C512 of stride 1, and the scores.

    Args:
        state: weights of a `PatchGAN` by name.
        x: (B, 3, H, H).
    """
    h = x
    for i, stride in ((0, 2), (2, 2), (5, 2), (8, 1)):
        weight, bias = state[f"trunk.{i}.weight"], state[f"trunk.{i}.bias"]
        h = F.conv2d(h, weight, bias, stride=stride, padding=1)
        h = h if i == 0 else _norm(h)
        h = torch.where(h > 0, h, 0.2 * h)
    return F.conv2d(h, state["src.weight"], state["src.bias"], padding=1).flatten(1)


def from_pool(pool, size, fake, draw):
    """Return a fake or an earlier one, and store the fake; draw: a number in [0, 1)."""
    if len(pool) < size:
        pool.append(fake)
        return fake
    if draw >= 0.5:
        return fake
    place = int(2 * draw * size)
    pool[place], fake = fake, pool[place]
    return fake


def literal_iteration(networks, optimizers, batch, pools, pool_size):
    """Run one iteration on pairs of images of two domains, a and b: both generators, then both D.

    Args:
        networks: G and D of the project, of which the networks of each domain are used.
        optimizers: by letter.
        batch: sources 2i and 2i + 1 are pair i, in either order.
        pools: a list of fakes for each pair and domain, by (i, "a").
        pool_size: number of fakes in a full pool.

    Returns:
        Every loss term, under the name that the project gives it: means over both directions.
    """
    to_a, to_b = networks["G"].to_domain
    d_a, d_b = networks["D"].of_domain
    adv = cyc = idt = real = fake = 0
    pairs = []
    for i in range(len(batch.x) // 2):
        a, b = (2 * i, 2 * i + 1) if batch.y[2 * i] == 0 else (2 * i + 1, 2 * i)
        x_a, x_b = batch.x[a : a + 1], batch.x[b : b + 1]
        fake_a, fake_b = to_a(x_b), to_b(x_a)
        adv = adv + ((d_a(fake_a) - 1) ** 2).mean() + ((d_b(fake_b) - 1) ** 2).mean()
        cyc = cyc + (to_a(fake_b) - x_a).abs().mean() + (to_b(fake_a) - x_b).abs().mean()
        idt = idt + (to_a(x_a) - x_a).abs().mean() + (to_b(x_b) - x_b).abs().mean()
        # The draw of a fake is that of its source.
        draws = batch.mix[b].item(), batch.mix[a].item()
        pairs.append((x_a, x_b, fake_a.detach(), fake_b.detach(), *draws))
    number = len(batch.x)
    adv, cyc, idt = adv / number, cyc / number, idt / number
    _step(networks, optimizers, adv + 10 * cyc + 0.5 * 10 * idt, "G")
    for i, (x_a, x_b, fake_a, fake_b, draw_a, draw_b) in enumerate(pairs):
        shown_a = from_pool(pools.setdefault((i, "a"), []), pool_size, fake_a, draw_a)
        shown_b = from_pool(pools.setdefault((i, "b"), []), pool_size, fake_b, draw_b)
        real = real + ((d_a(x_a) - 1) ** 2).mean() + ((d_b(x_b) - 1) ** 2).mean()
        fake = fake + (d_a(shown_a) ** 2).mean() + (d_b(shown_b) ** 2).mean()
    real, fake = real / number, fake / number
    _step(networks, optimizers, 0.5 * (real + fake), "D")
    terms = {"G": {"adv": adv, "cyc": cyc, "idt": idt}, "D": {"real": real, "fake": fake}}
    return {f"{n}/label/{name}": v for n, named in terms.items() for name, v in named.items()}


def _step(networks, optimizers, loss, letter):
    for network in networks.values():
        network.zero_grad()
    loss.backward()
    optimizers[letter].step()
