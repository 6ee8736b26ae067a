"""The iteration of StarGAN v2, written plainly: nothing shared, nothing frozen, nothing saved.

The order and the terms are those of arXiv 1912.01865 and its public implementation, in facts.
It is what our iteration must equal. Each phase clears every gradient, computes everything from
the inputs, and steps the networks of that phase.
"""

import torch
import torch.nn.functional as F

LATENT_STEPS = ("G", "F", "E")


def literal_iteration(nets, optimizers, batch, weights, lambda_ds):
    """One iteration. `optimizers` maps letters to optimizers; None leaves the steps out.

    Returns every loss term, named as ours are.
    """
    terms = {}
    for guide in ("latent", "reference"):
        terms |= _discriminator(nets, optimizers, batch, weights, guide)
    for guide in ("latent", "reference"):
        terms |= _generator(nets, optimizers, batch, weights, lambda_ds, guide)
    return terms


def _style(nets, batch, guide, second=False):
    if guide == "latent":
        return nets.F(batch.z2 if second else batch.z, batch.y_trg)
    return nets.E(batch.x_ref2 if second else batch.x_ref, batch.y_trg)


def _step(nets, optimizers, loss, names):
    for net in nets:
        net.zero_grad()
    loss.backward()
    if optimizers is not None:
        for name in names:
            optimizers[name].step()


def _discriminator(nets, optimizers, batch, weights, guide):
    x_real = batch.x.clone().requires_grad_()
    out = nets.D(x_real, batch.y)
    real = F.binary_cross_entropy_with_logits(out, torch.ones_like(out))
    (grad,) = torch.autograd.grad(out.sum(), x_real, create_graph=True)
    reg = 0.5 * (grad**2).reshape(len(grad), -1).sum(1).mean(0)
    with torch.no_grad():
        x_fake = nets.G(batch.x, _style(nets, batch, guide))
    out = nets.D(x_fake, batch.y_trg)
    fake = F.binary_cross_entropy_with_logits(out, torch.zeros_like(out))
    _step(nets, optimizers, real + fake + weights.reg * reg, ("D",))
    return {f"D/{guide}/real": real, f"D/{guide}/fake": fake, f"D/{guide}/reg": reg}


def _generator(nets, optimizers, batch, weights, lambda_ds, guide):
    style = _style(nets, batch, guide)
    x_fake = nets.G(batch.x, style)
    out = nets.D(x_fake, batch.y_trg)
    adv = F.binary_cross_entropy_with_logits(out, torch.ones_like(out))
    sty = torch.mean(torch.abs(nets.E(x_fake, batch.y_trg) - style))
    x_fake2 = nets.G(batch.x, _style(nets, batch, guide, second=True)).detach()
    ds = torch.mean(torch.abs(x_fake - x_fake2))
    x_rec = nets.G(x_fake, nets.E(batch.x, batch.y))
    cyc = torch.mean(torch.abs(x_rec - batch.x))
    loss = adv + weights.sty * sty - lambda_ds * ds + weights.cyc * cyc
    _step(nets, optimizers, loss, LATENT_STEPS if guide == "latent" else ("G",))
    terms = {"adv": adv, "sty": sty, "ds": ds, "cyc": cyc}
    return {f"G/{guide}/{name}": term for name, term in terms.items()}
