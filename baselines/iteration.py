"""The literal iteration of StarGAN v2: the paper's order, written as plainly as possible.

Nothing is shared between phases, nothing is frozen, nothing is saved. Each phase clears every
gradient, computes everything from its inputs, and steps its networks. The order and the terms are
those of arXiv 1912.01865 and of its public implementation, of which only these facts were taken.

Tests require the project's iteration to equal this one; benchmarks measure it against this one.
"""

import torch
import torch.nn.functional as F

LATENT_STEPS = ("G", "F", "E")


def no_masks(_x):
    return None


def literal_iteration(networks, optimizers, batch, weights, lambda_ds, masks=no_masks):
    """Run one iteration.

    Args:
        networks: G, F, E and D by letter.
        optimizers: by letter; None leaves out their steps.
        batch: a `Batch` with latents and references.
        weights: `LossConfig` with the weights of R1 (`reg`), `sty` and `cyc`.
        lambda_ds: weight of the diversity term in this iteration.
        masks: makes the masks of the source of each translation.

    Returns:
        Every loss term, under the name that the project gives it.
    """
    terms = {}
    for guide in ("latent", "reference"):
        terms |= _discriminator(networks, optimizers, batch, weights, guide, masks)
    for guide in ("latent", "reference"):
        terms |= _generator(networks, optimizers, batch, weights, lambda_ds, guide, masks)
    return terms


def _style(networks, batch, guide, second=False):
    if guide == "latent":
        return networks["F"](batch.z2 if second else batch.z, batch.y_trg)
    return networks["E"](batch.x_ref2 if second else batch.x_ref, batch.y_trg)


def _step(networks, optimizers, loss, letters):
    for network in networks.values():
        network.zero_grad()
    loss.backward()
    if optimizers is not None:
        for letter in letters:
            optimizers[letter].step()


def _discriminator(networks, optimizers, batch, weights, guide, masks):
    terms = _discriminator_terms(networks, batch, guide, masks)
    loss = terms["real"] + terms["fake"] + weights.reg * terms["reg"]
    _step(networks, optimizers, loss, ("D",))
    return {f"D/{guide}/{name}": term for name, term in terms.items()}


def _discriminator_terms(networks, batch, guide, masks):
    G, D = networks["G"], networks["D"]
    x_real = batch.x.clone().requires_grad_()
    logits = D(x_real, batch.y).src
    real = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    (gradient,) = torch.autograd.grad(logits.sum(), x_real, create_graph=True)
    reg = 0.5 * (gradient**2).reshape(len(gradient), -1).sum(1).mean(0)
    with torch.no_grad():
        x_fake = G(batch.x, _style(networks, batch, guide), masks(batch.x))
    logits = D(x_fake, batch.y_trg).src
    fake = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    return {"real": real, "fake": fake, "reg": reg}


def _generator(networks, optimizers, batch, weights, lambda_ds, guide, masks):
    terms = _generator_terms(networks, batch, guide, masks)
    loss = terms["adv"] + weights.sty * terms["sty"]
    loss = loss - lambda_ds * terms["ds"] + weights.cyc * terms["cyc"]
    _step(networks, optimizers, loss, LATENT_STEPS if guide == "latent" else ("G",))
    return {f"G/{guide}/{name}": term for name, term in terms.items()}


def _generator_terms(networks, batch, guide, masks):
    G, E, D = networks["G"], networks["E"], networks["D"]
    style = _style(networks, batch, guide)
    x_fake = G(batch.x, style, masks(batch.x))
    logits = D(x_fake, batch.y_trg).src
    adv = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    sty = torch.mean(torch.abs(E(x_fake, batch.y_trg) - style))
    style2 = _style(networks, batch, guide, second=True)
    x_fake2 = G(batch.x, style2, masks(batch.x)).detach()
    ds = torch.mean(torch.abs(x_fake - x_fake2))
    x_rec = G(x_fake, E(batch.x, batch.y), masks(x_fake.detach()))
    cyc = torch.mean(torch.abs(x_rec - batch.x))
    return {"adv": adv, "sty": sty, "ds": ds, "cyc": cyc}


def scheduled_iteration(networks, optimizers, batch, weights, lambda_ds, row, iteration):
    """Run one iteration of another schedule than the published one, as plainly.

    Args:
        row: a `Schedule`; only what it says is used: which networks step once for both guides;
            whether an iteration has one guide alone (the second one if its number has an odd number
            of binary ones); and the terms that are left out of most iterations, and weigh more in
            the others. They take turns: the n-th of them is due n iterations earlier, and of the
            second guide one iteration earlier.
        iteration: the number of earlier iterations.

    Returns:
        Every loss term that counts, under the name that the project gives it.
    """

    both = ("latent", "reference")
    guides = (both[bin(iteration).count("1") % 2],) if row.alternating else both

    def factor(name, guide=None):
        k = row.every.get(name, 1)
        iterations = iteration // 2 if row.alternating and guide else iteration
        position = both.index(guide) if guide else 0
        turn = iterations + 1 + position + (list(row.every).index(name) if k > 1 else 0)
        return k if turn % k == 0 else 0

    found = {}
    for joint in [guides] if row.joint_discriminator else [(guide,) for guide in guides]:
        each = [_discriminator_terms(networks, batch, guide, no_masks) for guide in joint]
        terms = {name: sum(t[name] for t in each) / len(each) for name in each[0]}
        reg = factor("reg") * weights.reg * terms["reg"]
        _step(networks, optimizers, terms["real"] + terms["fake"] + reg, ("D",))
        found |= {f"D/{'+'.join(joint)}/{name}": terms[name] for name in terms if factor(name)}
    for joint in [guides] if row.joint_generator else [(guide,) for guide in guides]:
        gradients = dict.fromkeys(LATENT_STEPS, ())
        for guide in joint:
            terms = _generator_terms(networks, batch, guide, no_masks)
            loss = terms["adv"] + weights.sty * terms["sty"]
            loss = loss - factor("ds", guide) * lambda_ds * terms["ds"]
            loss = loss + factor("cyc", guide) * weights.cyc * terms["cyc"]
            for letter in LATENT_STEPS if guide == "latent" else ("G",):
                parameters = [*networks[letter].parameters()]
                gradient = torch.autograd.grad(loss, parameters, retain_graph=True)
                before = gradients[letter] or [0] * len(parameters)
                gradients[letter] = [a + b for a, b in zip(before, gradient, strict=True)]
            found |= {f"G/{guide}/{name}": terms[name] for name in terms if factor(name, guide)}
        for letter, gradient in gradients.items():
            for parameter, g in zip(networks[letter].parameters(), gradient, strict=False):
                parameter.grad = g
            if gradient:
                optimizers[letter].step()
    return found
