"""The literal iteration of every recipe, written as plainly as possible.

Nothing is shared between phases and nothing is frozen. Each phase clears every gradient, computes
everything from its inputs, and steps its networks. Labels are domains, and one-hot where a network
takes a vector. Tests require the iteration of each recipe to equal this one.
"""

import torch
import torch.nn.functional as F

RECIPES = ("stargan", "a", "b", "c", "c_acgan", "d", "e", "f", "f_mode_seeking")
CRITIC_STEPS = {"stargan": 5, "a": 5, "b": 5}  # Wasserstein recipes: steps of D for each of G
STEPS = {"label": ("G",), "latent": ("G", "F", "E"), "reference": ("G",)}
DOMAINS = 3


def literal_iteration(name, networks, optimizers, batch, step, ds_iter):
    """Run one iteration of a recipe.

    Args:
        name: of the recipe.
        networks: by letter.
        optimizers: by letter.
        batch: a `Batch` with everything that any recipe needs.
        step: number of the iteration, from 0.
        ds_iter: step at which the weight of the diversity term reaches 0.

    Returns:
        Every loss term, under the name that the project gives it.
    """
    terms = {}
    guides = {"d": ["latent"], "e": ["latent", "reference"]}
    guides |= dict.fromkeys(("f", "f_mode_seeking"), guides["e"])
    for guide in guides.get(name, ["label"]):
        terms |= _discriminator(name, networks, optimizers, batch, guide)
    if (step + 1) % CRITIC_STEPS.get(name, 1) == 0:
        for guide in guides.get(name, ["label"]):
            terms |= _generator(name, networks, optimizers, batch, guide, step, ds_iter)
    return terms


def _style(name, networks, batch, guide, second=False):
    z, x_ref = (batch.z2, batch.x_ref2) if second else (batch.z, batch.x_ref)
    if name in ("stargan", "a", "b", "c", "c_acgan"):
        return None
    if name == "d":
        return z
    return networks["F"](z, batch.y_trg) if guide == "latent" else networks["E"](x_ref, batch.y_trg)


def _conditioning(name, style, y):
    one_hot = torch.eye(DOMAINS, dtype=torch.float64)[y]
    if style is None:
        return one_hot
    return torch.cat([one_hot, style], 1) if name == "d" else style


def _step(networks, optimizers, loss, letters):
    for network in networks.values():
        network.zero_grad()
    loss.backward()
    for letter in letters:
        if letter in networks:
            optimizers[letter].step()


def _discriminator(name, networks, optimizers, batch, guide):
    G, D, x = networks["G"], networks["D"], batch.x.clone().requires_grad_()
    with torch.no_grad():
        style = _style(name, networks, batch, guide)
        x_fake = G(x, _conditioning(name, style, batch.y_trg))
    real_score, real_cls, _ = D(x, batch.y)
    fake_score, *_ = D(x_fake, batch.y_trg)
    if name in CRITIC_STEPS:
        real, fake = -real_score.mean(), fake_score.mean()
        alpha = batch.mix.view(-1, 1, 1, 1)
        points = (alpha * batch.x + (1 - alpha) * x_fake).requires_grad_()
        score, *_ = D(points, batch.y_trg)
        (gradient,) = torch.autograd.grad(score, points, torch.ones_like(score), create_graph=True)
        norms = gradient.reshape(len(gradient), -1).square().sum(1).sqrt()
        reg, weight = ((norms - 1) ** 2).mean(), 10.0
    else:
        real = F.binary_cross_entropy_with_logits(real_score, torch.ones_like(real_score))
        fake = F.binary_cross_entropy_with_logits(fake_score, torch.zeros_like(fake_score))
        (gradient,) = torch.autograd.grad(real_score.sum(), x, create_graph=True)
        reg, weight = 0.5 * (gradient**2).reshape(len(gradient), -1).sum(1).mean(), 1.0
    terms = {"real": real, "fake": fake, "reg": reg}
    loss = real + fake + weight * reg
    if real_cls is not None:
        terms["cls"] = F.cross_entropy(real_cls, batch.y)
        loss = loss + terms["cls"]
    _step(networks, optimizers, loss, ("D",))
    return {f"D/{guide}/{term}": value for term, value in terms.items()}


def _generator(name, networks, optimizers, batch, guide, step, ds_iter):
    G, E = networks["G"], networks.get("E")
    style = _style(name, networks, batch, guide)
    x_fake = G(batch.x, _conditioning(name, style, batch.y_trg))
    score, cls, _ = networks["D"](x_fake, batch.y_trg)
    wasserstein = name in CRITIC_STEPS
    terms = {"adv": -score.mean() if wasserstein else F.softplus(-score).mean()}
    loss = terms["adv"]
    if cls is not None:
        terms["cls"] = F.cross_entropy(cls, batch.y_trg)
        loss = loss + terms["cls"]
    source_style = None
    if E is not None:
        source_style = E(batch.x, batch.y)
        terms["sty"] = torch.mean(torch.abs(E(x_fake, batch.y_trg) - style))
        loss = loss + terms["sty"]
    if name in ("f", "f_mode_seeking"):
        style2 = _style(name, networks, batch, guide, second=True).detach()
        x_fake2 = G(batch.x, style2).detach()
        distance = torch.mean(torch.abs(x_fake - x_fake2))
        if name == "f":
            terms["ds"] = distance
            loss = loss - (1 - step / ds_iter) * distance
        else:
            pairs = zip(x_fake, x_fake2, style.detach(), style2, strict=True)
            ratios = [
                1 / ((a - b).abs().mean() / (s - t).abs().mean() + 1e-5) for a, b, s, t in pairs
            ]
            terms["ms"] = sum(ratios) / len(ratios)
            loss = loss + terms["ms"]
    x_rec = G(x_fake, _conditioning(name, source_style, batch.y))
    terms["cyc"] = torch.mean(torch.abs(x_rec - batch.x))
    loss = loss + (10.0 if wasserstein else 1.0) * terms["cyc"]
    _step(networks, optimizers, loss, STEPS[guide])
    return {f"G/{guide}/{term}": value for term, value in terms.items()}
