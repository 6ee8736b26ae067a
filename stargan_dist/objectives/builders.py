"""Networks and styles of the recipes, built for a number of labels and the sizes of a model."""

from torch import nn

from stargan_dist.config import ModelConfig
from stargan_dist.nets import cyclegan, drit, munit, v1, v2
from stargan_dist.objectives.conditioning import GaussianStyle, LatentStyle, NoStyle, StyleCode
from stargan_dist.objectives.recipe import DiscriminatorForm

# Generators, given the length of their conditioning vector.


def _sizes(model: ModelConfig) -> dict[str, int]:
    return {
        "image_size": model.image_size,
        "base_width": model.base_width,
        "max_width": model.max_width,
    }


def adain_generator(dim: int, model: ModelConfig) -> nn.Module:
    return v2.Generator(style_dim=dim, w_hpf=model.w_hpf, **_sizes(model))


def concat_generator(dim: int, model: ModelConfig) -> nn.Module:
    return v2.ConcatGenerator(dim, **_sizes(model))


def stargan_generator(dim: int, model: ModelConfig) -> nn.Module:
    return v1.Generator(dim, model.base_width)


def cyclegan_generator(num_domains: int, model: ModelConfig) -> nn.Module:
    return cyclegan.Generator(num_domains, model.image_size, model.base_width)


def munit_generator(dim: int, model: ModelConfig) -> nn.Module:
    return munit.Generator(dim - model.latent_dim, model.latent_dim, model.base_width)


def drit_generator(dim: int, model: ModelConfig) -> nn.Module:
    return drit.Generator(dim - model.latent_dim, model.latent_dim, model.base_width)


# Networks that produce or predict a style, given the number of labels.


def mapping_network(num_domains: int, model: ModelConfig) -> nn.Module:
    return v2.MappingNetwork(
        num_domains, model.latent_dim, model.style_dim, model.mapping_dim, model.mapping
    )


def style_encoder(num_domains: int, model: ModelConfig) -> nn.Module:
    return v2.StyleEncoder(num_domains, style_dim=model.style_dim, **_sizes(model))


def latent_encoder(_num_domains: int, model: ModelConfig) -> nn.Module:
    return v2.LatentEncoder(style_dim=model.latent_dim, **_sizes(model))


def munit_style_encoder(num_domains: int, model: ModelConfig) -> nn.Module:
    return munit.StyleEncoder(num_domains, model.latent_dim, model.base_width)


def attribute_encoder(num_domains: int, model: ModelConfig) -> nn.Module:
    return drit.AttributeEncoder(num_domains, model.latent_dim, model.base_width)


NO_STYLE = NoStyle()
LATENT_STYLE = LatentStyle({"E": latent_encoder})
MUNIT_STYLE = LatentStyle({"E": munit_style_encoder})
STYLE_CODE = StyleCode({"F": mapping_network, "E": style_encoder})
ATTRIBUTE = GaussianStyle({"E": attribute_encoder})

# Discriminators, given the number of labels.


def multi_task_discriminator(num_labels: int, model: ModelConfig) -> nn.Module:
    return v2.Discriminator(num_labels, **_sizes(model))


def classifying_discriminator(num_labels: int, model: ModelConfig) -> nn.Module:
    return v2.ClassifyingDiscriminator(num_labels, **_sizes(model))


def stargan_discriminator(num_labels: int, model: ModelConfig) -> nn.Module:
    return v1.Discriminator(num_labels, **_sizes(model))


def cyclegan_discriminator(num_domains: int, model: ModelConfig) -> nn.Module:
    return cyclegan.Discriminator(num_domains, model.base_width, model.max_width)


def munit_discriminator(num_domains: int, model: ModelConfig) -> nn.Module:
    return munit.Discriminator(num_domains, **_sizes(model))


def drit_discriminator(num_domains: int, model: ModelConfig) -> nn.Module:
    return drit.Discriminator(num_domains, drit.GUIDES, **_sizes(model))


def content_discriminator(_num_domains: int, model: ModelConfig) -> nn.Module:
    return drit.ContentDiscriminator(model.image_size, model.base_width)


MULTI_TASK = DiscriminatorForm(multi_task_discriminator, by_domain=True)
ACGAN = DiscriminatorForm(classifying_discriminator, by_domain=False)
STARGAN = DiscriminatorForm(stargan_discriminator, by_domain=False)
CYCLEGAN_PATCHES = DiscriminatorForm(cyclegan_discriminator, by_domain=True)
MUNIT_SCALES = DiscriminatorForm(munit_discriminator, by_domain=True)
DRIT_PATCHES = DiscriminatorForm(drit_discriminator, by_domain=True, by_guide=True)
