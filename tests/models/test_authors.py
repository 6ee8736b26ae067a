"""The authors' checkpoints: read strictly, with the outputs of their networks, and written back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stargan_dist.errors import UserError
from stargan_dist.inference.targets import target_label
from stargan_dist.models import authors
from stargan_dist.models.authors import Options
from stargan_dist.nets.blocks import HighPass
from stargan_dist.nets.fan import FAN
from stargan_dist.runs.checkpoint import tensors_of_network
from tests.helpers.fan import heat_maps, plain_masks
from tests.helpers.models import tiny_landmarks, tiny_model
from tests.models import networks_of_authors as theirs

CASES = {  # image size, domains, w_hpf
    "64px": (64, 2, 0.0),
    "64px-hpf": (64, 3, 1.5),
    "128px": (128, 3, 0.0),
    "256px-hpf": (256, 2, 1.0),
}
QUICK = "64px-hpf"
PARAMETERS = [
    pytest.param(case, id=name, marks=[pytest.mark.slow] * (name != QUICK))
    for name, case in CASES.items()
]
NAMES = ["a", "b", "c", "d", "e"]
CELEBA = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")


def save(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return str(path)


def random_fan():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FAN()
        torch.nn.init.normal_(network.l0.weight)
        return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def networks_of(model):
    """Build the networks of a saved model, in float64."""
    sizes = model.spec.config.model
    with torch.device("meta"):  # weights need no initial values
        networks = model.spec.recipe.build_networks(model.labels, sizes)
    for letter, network in networks.items():
        network.eval().load_state_dict(tensors_of_network(letter, model.tensors), assign=True)
    if sizes.w_hpf:
        networks["G"].high_pass = HighPass(sizes.w_hpf)
    return networks


def assert_equal(ours, expected):
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.fixture(scope="module", params=PARAMETERS)
def imported(request, tmp_path_factory):
    """Return the case, the state dicts of a file, and the model read from it."""
    size, count, w_hpf = request.param
    content = theirs.random_state_dicts(size, count, w_hpf, with_d=True)
    if w_hpf:
        content["fan"] = random_fan()
    path = tmp_path_factory.mktemp("authors") / "100000_nets.ckpt"
    return request.param, content, authors.read(save(path, content), Options(NAMES[:count]))


@torch.no_grad()
def test_outputs_equal_those_of_the_documented_networks(imported):
    (size, count, w_hpf), content, model = imported
    assert (model.config.model.image_size, model.config.model.w_hpf) == (size, w_hpf)
    networks = networks_of(model)
    random = torch.Generator().manual_seed(0)
    x, z, s, masks = (
        torch.randn(shape, generator=random, dtype=torch.float64)
        for shape in ((2, 3, size, size), (2, 16), (2, 64), (2, 2, 256, 256))
    )
    y = torch.tensor([0, count - 1])
    masks = masks[:1] if w_hpf else None
    output = networks["G"](x[:1], s[:1], masks)
    assert_equal(output, theirs.generator(content["generator"], x[:1], s[:1], masks))
    assert (model.landmarks is not None) == (w_hpf > 0)
    if w_hpf:
        fan = {name: tensor.double() for name, tensor in content["fan"].items()}
        masks = model.landmarks.masks(dtype=torch.float64)(x[:1])
        assert_equal(masks, plain_masks(heat_maps(fan, x[:1])))
    assert_equal(networks["F"](z, y), theirs.mapping_network(content["mapping_network"], z, y))
    assert_equal(networks["E"](x, y), theirs.style_encoder(content["style_encoder"], x, y))
    assert_equal(networks["D"](x, y).src, theirs.discriminator(content["discriminator"], x, y))


@pytest.mark.parametrize("label_dim", [5, 8])
@torch.no_grad()
def test_outputs_of_stargan_equal_those_of_the_documented_networks(tmp_path, label_dim):
    g, d = theirs.random_stargan(label_dim)
    names = [f"attribute{i}" for i in range(label_dim)]
    options = Options(names, attributes=True, discriminator=save(tmp_path / "1-D.ckpt", d))
    model = authors.read(save(tmp_path / "1-G.ckpt", g), options)
    assert model.config.model.image_size == 64
    networks = networks_of(model)
    random = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, 64, 64), generator=random, dtype=torch.float64)
    c = torch.randint(2, (2, label_dim), generator=random).double()
    assert_equal(networks["G"](x, c), theirs.stargan_generator(g, x, c))
    for ours, expected in zip(
        networks["D"](x)[:2], theirs.stargan_discriminator(d, x), strict=True
    ):
        assert_equal(ours, expected)


@torch.no_grad()
def test_stargan_of_celeba_and_rafd_equals_the_documented_networks(tmp_path):
    g, d = theirs.random_stargan(5 + 3 + 2)
    d["conv2.weight"] = d["conv2.weight"][:8]  # the mask is no class
    options = Options(
        CELEBA, discriminator=save(tmp_path / "1-D.ckpt", d), rafd_labels=("angry", "happy", "sad")
    )
    model = authors.read(save(tmp_path / "1-G.ckpt", g), options)
    networks, random = networks_of(model), torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, 64, 64), generator=random, dtype=torch.float64)
    targets = [
        target_label(model.labels, attributes={"Male": 1}),
        target_label(model.labels, domain="happy"),
    ]
    c = torch.tensor([[0, 0, 0, 1, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0, 1]])
    assert torch.equal(torch.stack(targets), c.float())
    assert_equal(networks["G"](x, c.double()), theirs.stargan_generator(g, x, c.double()))
    for ours, expected in zip(
        networks["D"](x)[:2], theirs.stargan_discriminator(d, x), strict=True
    ):
        assert_equal(ours, expected)
    assert authors.to_state_dicts(model)["D"].keys() == d.keys()


def test_a_stargan_with_other_labels_than_named_says_how_many_it_has(tmp_path):
    url = save(tmp_path / "1-G.ckpt", theirs.random_stargan(10)[0])
    with pytest.raises(UserError, match=r"has 10 labels.*not 5.*CelebA and RaFD needs --rafd"):
        authors.read(url, Options(CELEBA, image_size=64))
    with pytest.raises(UserError, match=r"beside RaFD's, has 4 labels.*not 5"):
        authors.read(url, Options(CELEBA, image_size=64, rafd_labels=("a", "b", "c", "d")))


def test_a_round_trip_of_their_file_is_the_identity(tmp_path, imported):
    _, content, model = imported
    [written] = authors.write(str(tmp_path / "b_nets.ckpt"), model)
    again = torch.load(written, weights_only=True)
    assert again.keys() == content.keys()
    for network, tensors in content.items():
        assert again[network].keys() == tensors.keys()
        assert all(torch.equal(again[network][name], tensor) for name, tensor in tensors.items())
    assert Path(written).read_bytes()[:2] != b"PK"  # the format that torch 1.4 reads


def test_a_round_trip_of_stargan_keeps_all_weights(tmp_path):
    g, d = theirs.random_stargan(5)
    options = Options(NAMES, attributes=True, discriminator=save(tmp_path / "1-D.ckpt", d))
    model = authors.read(save(tmp_path / "1-G.ckpt", g), options)
    files = authors.write(str(tmp_path / "2-G.ckpt"), model)
    assert files == [str(tmp_path / "2-G.ckpt"), str(tmp_path / "2-D.ckpt")]
    again_g, again_d = (torch.load(file, weights_only=True) for file in files)
    assert again_d.keys() == d.keys() and again_g.keys() == g.keys()
    weights = [name for name in g if not authors.STATISTICS.fullmatch(name)]
    assert all(torch.equal(again_g[name], g[name]) for name in weights)
    assert all(torch.equal(again_d[name], d[name]) for name in d)


@pytest.fixture(scope="module")
def content():
    return theirs.random_state_dicts(64, 2, 1.5, zeros=True)


def read(tmp_path, content, **options):
    return authors.read(
        save(tmp_path / "x.ckpt", content), Options(**{"domains": NAMES[:2]} | options)
    )


def test_prefixes_and_the_landmark_network_are_accepted(tmp_path, content):
    content["generator"]["to_rgb.0.bias"] = torch.arange(256.0)
    with_fan = content | {"fan": random_fan()}
    prefixed = {n: {f"module.{k}": v for k, v in t.items()} for n, t in with_fan.items()}
    model, plain = read(tmp_path, prefixed), read(tmp_path, content)
    assert torch.equal(model.landmarks.tensors["bn1.bias"], with_fan["fan"]["bn1.bias"])
    assert plain.landmarks is None
    with pytest.raises(UserError, match="fan is not a landmark network"):
        read(tmp_path, content | {"fan": {"l0.weight": torch.zeros(1)}})
    assert model.tensors.keys() == plain.tensors.keys()
    assert all(torch.equal(t, plain.tensors[name]) for name, t in model.tensors.items())


def test_files_without_the_filter_ask_for_its_weight(tmp_path, content):
    generator = {k: v for k, v in content["generator"].items() if k != "hpf.filter"}
    old = content | {"generator": generator}
    with pytest.raises(UserError, match="--w-hpf; 1 for the published CelebA-HQ file"):
        read(tmp_path, old)
    assert read(tmp_path, old, w_hpf=1.0).config.model.w_hpf == 1


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c["generator"].pop("encode.1.conv2.bias"), "generator lacks encode.1.conv2.bias"),
    (lambda c: c["generator"].update(extra=torch.zeros(1)), "generator.extra, which the authors"),
    (lambda c: c["style_encoder"].update({"shared.0.weight": torch.zeros(3, 3)}), "has shape"),
    (lambda c: c.pop("mapping_network"), "lacks 'mapping_network'"),
    (lambda c: c.update(generator={"from_rgb.weight": torch.zeros(0, 3, 3, 3)}), "it lacks"),
    (lambda c: c.update(other=torch.zeros(1)), "networks other"),
])  # fmt: skip
def test_what_does_not_match_is_refused(tmp_path, content, change, message):
    changed = {name: dict(tensors) for name, tensors in content.items()}
    change(changed)
    with pytest.raises(UserError, match=message):
        read(tmp_path, changed)


def test_the_number_of_names_must_fit(tmp_path, content):
    with pytest.raises(UserError, match=r"has 2 labels: name them \(--domains .*female male"):
        read(tmp_path, content, domains=())
    with pytest.raises(UserError, match="name them, not 3"):
        read(tmp_path, content, domains=NAMES[:3])


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(("content", "message"), [
    ({"generator": Evil()}, "objects other than tensors"),
    ([torch.zeros(1)], "holds no networks by name"),
    ({"generator": {"state": {}, "param_groups": []}}, "a file of optimizers"),
    ({"a": torch.zeros(1)}, "not a checkpoint of the authors"),
    (theirs.random_stargan(5)[1], "is D of StarGAN"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, capsys, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)
    assert "executed" not in capsys.readouterr().out


def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "x.ckpt"
    save(path, content)
    for data in (b"", b"text", path.read_bytes()[:1000]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"x\.ckpt"):
            authors.read(str(path))


def test_stargan_asks_for_the_image_size_without_d(tmp_path):
    g, _ = theirs.random_stargan(5)
    file = save(tmp_path / "1-G.ckpt", g)
    with pytest.raises(UserError, match=r"--image-size 128"):
        authors.read(file, Options(NAMES))
    assert authors.read(file, Options(NAMES, image_size=128)).config.model.image_size == 128


def test_models_that_their_programs_cannot_represent_are_refused(tmp_path, content):
    model = read(tmp_path, content)
    for sizes, message in (
        ({"mapping_dim": 64}, "mapping_dim 64"),
        ({"base_width": 8}, "base_width 8"),
    ):
        config = replace(model.config, model=replace(model.config.model, **sizes))
        with pytest.raises(UserError, match=message):
            authors.to_state_dicts(replace(model, config=config))
    with pytest.raises(UserError, match="the published landmark network alone"):
        authors.to_state_dicts(replace(model, landmarks=tiny_landmarks()))
    with pytest.raises(UserError, match="StarGAN v2 alone, not those of recipe cyclegan: export"):
        authors.to_state_dicts(tiny_model("cyclegan", ["a", "b"]))
