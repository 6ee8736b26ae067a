import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stargan_dist import config as configs
from stargan_dist import monitor
from stargan_dist.data.stream import LoadedSplit
from stargan_dist.nets.v2 import build_networks
from stargan_dist.translate import Translator

DOMAINS = ["cat", "dog", "rabbit"]


@pytest.fixture(scope="module")
def translator():
    sizes = {"image_size": "32", "base_width": "4", "max_width": "8", "mapping_dim": "8"}
    options = [f"--model.{name}={value}" for name, value in sizes.items()]
    config = configs.parse(["--run", "r", "--data.shards", "s", *options])
    torch.manual_seed(0)
    networks = build_networks(3, **configs.to_dict(config)["model"])._asdict()
    return Translator(networks, config, DOMAINS, step=0)


def images(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    return LoadedSplit(pixels, labels, [str(i) for i in range(count)], DOMAINS)


def test_progress_line():
    names = [f"D/{g}/{t}" for g in ("latent", "reference") for t in ("real", "fake", "reg")]
    names += [f"G/{g}/{t}" for g in ("latent", "reference") for t in ("adv", "sty", "ds", "cyc")]
    losses = {name: float(i) for i, name in enumerate(names)}
    line = monitor.progress_line(50, 200, 12.345, 3725, losses)
    assert line == (
        "step 50/200 (25.0%)  12.3 img/s  eta 1:02:05  D real 1.500 fake 2.500 reg 3.500  "
        "G adv 8.000 sty 9.000 ds 10.000 cyc 11.000"
    )


def test_grids_show_every_source_and_guide(translator):
    sources, references = images(4), images(3, seed=1)
    cell, header = 64 + 2, monitor.HEADER_PIXELS
    latent = monitor.latent_grid(translator, sources, latents=2, seed=0)
    assert latent.size == (7 * cell + 2, 4 * cell + 2 + header)
    reference = monitor.reference_grid(translator, sources, references)
    assert reference.size == (4 * cell + 2, 5 * cell + 2 + header)
    corner = latent.getpixel((2, header + 2))
    assert corner == tuple(sources.images[0, :, 0, 0].tolist())


def test_outputs_in_one_call_equal_outputs_one_by_one(translator):
    sources = images(2)
    x = sources.images.float() / 127.5 - 1
    z = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    together = translator.from_latents(x, y, z)
    for i in range(6):
        alone = translator.from_latents(x[i // 3][None], y[i][None], z[i][None])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-5)


def test_a_run_leaves_what_the_readme_says(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    expected = {"config.yaml", "environment.json", "status.json", "checkpoints", "samples"}
    assert expected | {"tensorboard"} <= names
    samples = sorted(path.name for path in (finished_run / "samples").iterdir())
    assert samples == [f"{g}_0000000{s}.png" for g in ("latent", "reference") for s in (0, 3, 6)]


def test_tensorboard_has_every_term_and_schedule(finished_run):
    board = EventAccumulator(str(finished_run / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    for guide in ("latent", "reference"):
        assert {f"D/{guide}/{t}" for t in ("real", "fake", "reg", "grad_norm_D")} <= tags
        assert {f"G/{guide}/{t}" for t in ("adv", "sty", "ds", "cyc", "grad_norm_G")} <= tags
    assert {"G/latent/grad_norm_F", "G/latent/grad_norm_E"} <= tags
    assert "G/reference/grad_norm_E" not in tags
    speed = {"images_per_second", "data_wait_share", "memory_gib"}
    assert {f"speed/{name}" for name in speed} <= tags
    falling = [event.value for event in board.Scalars("schedule/lambda_ds")]
    assert falling == pytest.approx([1 - step / 6 for step in range(6)])
    assert set(board.Tags()["images"]) == {"samples/latent", "samples/reference"}
    assert "config/text_summary" in board.Tags()["tensors"]


def test_losses_are_read_only_when_they_are_logged(train, tmp_path):
    """The steps between two log lines leave no trace, and change nothing."""
    train(tmp_path / "run", "--monitor.log_every", "4")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("D/latent/real")] == [4, 6]
