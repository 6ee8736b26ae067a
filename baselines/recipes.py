"""One iteration of any row of the table, written plainly: nothing shared, nothing frozen.

Each phase clears every gradient, computes all it needs from the inputs, and steps the networks of
that phase. Labels are domains, and one-hot where a network takes a vector.
"""

import torch
import torch.nn.functional as F

ROWS = ("stargan", "a", "b", "c", "c_acgan", "d", "e", "f", "f_mode_seeking")
CLASSIFIES = ("stargan", "a", "c_acgan")
CRITIC_STEPS = {"stargan": 5, "a": 5, "b": 5}
STEPS = {"label": ("G",), "latent": ("G", "F", "E"), "reference": ("G",)}
DOMAINS = 3


def literal_iteration(name, nets, optimizers, batch, step, ds_iter):
    """Every loss term of an iteration, named as ours are. `nets` and `optimizers` by letter."""
    terms = {}
    guides = {"d": ["latent"], "e": ["latent", "reference"]}
    guides |= dict.fromkeys(("f", "f_mode_seeking"), guides["e"])
    for guide in guides.get(name, ["label"]):
        terms |= _critic(name, nets, optimizers, batch, guide)
    if (step + 1) % CRITIC_STEPS.get(name, 1) == 0:
        for guide in guides.get(name, ["label"]):
            terms |= _generator(name, nets, optimizers, batch, guide, step, ds_iter)
    return terms


def _style(name, nets, batch, guide, second=False):
    z, x_ref = (batch.z2, batch.x_ref2) if second else (batch.z, batch.x_ref)
    if name in ("stargan", "a", "b", "c", "c_acgan"):
        return None
    if name == "d":
        return z
    return nets["F"](z, batch.y_trg) if guide == "latent" else nets["E"](x_ref, batch.y_trg)


def _code(name, style, y):
    one_hot = torch.eye(DOMAINS, dtype=torch.float64)[y]
    if style is None:
        return one_hot
    return torch.cat([one_hot, style], 1) if name == "d" else style


def _judge(name, D, x, y):
    return D(x) if name in CLASSIFIES else (D(x, y), None)


def _step(nets, optimizers, loss, letters):
    for net in nets.values():
        net.zero_grad()
    loss.backward()
    for letter in letters:
        if letter in nets:
            optimizers[letter].step()


def _critic(name, nets, optimizers, batch, guide):
    D, x = nets["D"], batch.x.clone().requires_grad_()
    with torch.no_grad():
        fake_images = nets["G"](x, _code(name, _style(name, nets, batch, guide), batch.y_trg))
    real_out, real_cls = _judge(name, D, x, batch.y)
    fake_out, _ = _judge(name, D, fake_images, batch.y_trg)
    if name in CRITIC_STEPS:
        real, fake = -real_out.mean(), fake_out.mean()
        alpha = batch.mix.view(-1, 1, 1, 1)
        points = (alpha * batch.x + (1 - alpha) * fake_images).requires_grad_()
        out, _ = _judge(name, D, points, batch.y_trg)
        (grad,) = torch.autograd.grad(out, points, torch.ones_like(out), create_graph=True)
        norms = grad.reshape(len(grad), -1).square().sum(1).sqrt()
        reg, weight = ((norms - 1) ** 2).mean(), 10.0
    else:
        real = F.binary_cross_entropy_with_logits(real_out, torch.ones_like(real_out))
        fake = F.binary_cross_entropy_with_logits(fake_out, torch.zeros_like(fake_out))
        (grad,) = torch.autograd.grad(real_out.sum(), x, create_graph=True)
        reg, weight = 0.5 * (grad**2).reshape(len(grad), -1).sum(1).mean(), 1.0
    terms = {"real": real, "fake": fake, "reg": reg}
    loss = real + fake + weight * reg
    if real_cls is not None:
        terms["cls"] = F.cross_entropy(real_cls, batch.y)
        loss = loss + terms["cls"]
    _step(nets, optimizers, loss, ("D",))
    return {f"D/{guide}/{term}": value for term, value in terms.items()}


def _generator(name, nets, optimizers, batch, guide, step, ds_iter):
    G, E = nets["G"], nets.get("E")
    style = _style(name, nets, batch, guide)
    fake = G(batch.x, _code(name, style, batch.y_trg))
    out, cls = _judge(name, nets["D"], fake, batch.y_trg)
    wasserstein = name in CRITIC_STEPS
    terms = {"adv": -out.mean() if wasserstein else F.softplus(-out).mean()}
    loss = terms["adv"]
    if cls is not None:
        terms["cls"] = F.cross_entropy(cls, batch.y_trg)
        loss = loss + terms["cls"]
    own_style = None
    if E is not None:
        own_style = E(batch.x, batch.y)
        terms["sty"] = torch.mean(torch.abs(E(fake, batch.y_trg) - style))
        loss = loss + terms["sty"]
    if name in ("f", "f_mode_seeking"):
        style2 = _style(name, nets, batch, guide, second=True).detach()
        fake2 = G(batch.x, style2).detach()
        apart = torch.mean(torch.abs(fake - fake2))
        if name == "f":
            terms["ds"] = apart
            loss = loss - (1 - step / ds_iter) * apart
        else:
            pairs = zip(fake, fake2, style.detach(), style2, strict=True)
            rows = [
                1 / ((a - b).abs().mean() / (s - t).abs().mean() + 1e-5) for a, b, s, t in pairs
            ]
            terms["ms"] = sum(rows) / len(rows)
            loss = loss + terms["ms"]
    terms["cyc"] = torch.mean(torch.abs(G(fake, _code(name, own_style, batch.y)) - batch.x))
    loss = loss + (10.0 if wasserstein else 1.0) * terms["cyc"]
    _step(nets, optimizers, loss, STEPS[guide])
    return {f"G/{guide}/{term}": value for term, value in terms.items()}
