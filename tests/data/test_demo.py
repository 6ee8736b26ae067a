"""The demo dataset: seeded, complete, and consistent with the factors written beside it."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stargan_dist.data.demo import (
    EXPRESSIONS,
    INK,
    LANDMARKS,
    PINK,
    SPECIES,
    Factors,
    Pen,
    _mix,
    draw,
    landmarks,
    main,
    sample_expression,
    sample_factors,
    write_dataset,
)
from stargan_dist.errors import UserError

COUNT = 4
SIZE = 32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset with seed 0."""
    dest = tmp_path_factory.mktemp("demo") / "animals"
    write_dataset(dest, COUNT, SIZE, seed=0)
    return dest


def read_rows(dataset: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (dataset / "factors.jsonl").read_text().splitlines()]


def contents(dataset: Path) -> dict[str, bytes]:
    files = (path for path in dataset.rglob("*") if path.is_file())
    return {str(path.relative_to(dataset)): path.read_bytes() for path in files}


def test_the_dataset_has_count_images_of_each_species(dataset: Path) -> None:
    expected = {f"images/{species}/{i:06d}.png" for species in SPECIES for i in range(COUNT)}
    assert contents(dataset).keys() == expected | {"factors.jsonl", "landmarks.jsonl"}
    with Image.open(dataset / "images/cat/000000.png") as image:
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")


def test_no_temporary_files_remain(dataset: Path) -> None:
    assert list(dataset.parent.iterdir()) == [dataset]


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(dataset: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_dataset(tmp_path / str(seed), COUNT, SIZE, seed)
    assert contents(tmp_path / "0") == contents(dataset)
    assert contents(tmp_path / "1") != contents(dataset)


def test_each_image_can_be_redrawn_from_its_factors(dataset: Path) -> None:
    for row in read_rows(dataset):
        file = Path(str(row.pop("file")))
        factors = sample_factors(0, file.parent.name, int(file.stem))
        assert row == json.loads(json.dumps(asdict(factors)))
        with Image.open(dataset / "images" / file) as image:
            assert image.tobytes() == draw(factors, SIZE).tobytes()


def test_landmarks_are_written_for_each_image(dataset: Path) -> None:
    lines = (dataset / "landmarks.jsonl").read_text().splitlines()
    rows = {row["file"]: row["points"] for row in map(json.loads, lines)}
    assert rows.keys() == {row["file"] for row in read_rows(dataset)}
    for file, points in rows.items():
        factors = sample_factors(0, file.split("/")[0], int(Path(file).stem))
        np.testing.assert_allclose(points, landmarks(factors, SIZE), atol=6e-4)
        assert len(points) == len(LANDMARKS)


@pytest.mark.parametrize("species", SPECIES)
def test_landmarks_lie_on_what_is_drawn(species: str) -> None:
    for i in range(20):
        factors = sample_factors(0, species, i)
        image = draw(factors, 256)
        places = ((int(x), int(y)) for x, y in landmarks(factors, 256))
        pixels = dict(zip(LANDMARKS, map(image.getpixel, places), strict=True))
        outline = Pen(factors, 1).outline
        ear = _mix(factors.fur, INK, 0.3) if species == "dog" else PINK
        assert pixels["left eye"] == pixels["right eye"] == INK
        assert pixels["nose"] == (PINK if species == "rabbit" else INK)
        assert pixels["left ear"] == pixels["right ear"] == ear
        assert pixels["left jaw"] == pixels["right jaw"] == outline
        if species != "dog":  # whose chin is behind its tongue
            assert pixels["chin"] == outline


@pytest.mark.parametrize("sampled", [
    *[(sample_factors, species) for species in SPECIES],
    *[(sample_expression, expression) for expression in EXPRESSIONS],
])  # fmt: skip
def test_landmarks_lie_inside_the_image(sampled) -> None:
    sample, name = sampled
    points = np.stack([landmarks(sample(0, name, i), 64) for i in range(400)])
    assert points.min() > 2 and points.max() < 62


def test_the_pixels_of_the_species_do_not_change() -> None:
    """The published figures of this project were measured on these pixels."""
    digest = hashlib.sha256()
    for species in SPECIES:
        for i in range(4):
            digest.update(draw(sample_factors(0, species, i), 64).tobytes())
    assert digest.hexdigest() == "ffd54fc18c509a290c358587cb0b4e9db1d0a8b90661b6b4f6b0b5af44381b86"


def test_each_expression_folder_has_images_of_all_species(tmp_path: Path) -> None:
    main([str(tmp_path / "set"), "--count", "12", "--size", "16", "--expressions"])
    rows = read_rows(tmp_path / "set")
    assert {path.name for path in (tmp_path / "set" / "images").iterdir()} == set(EXPRESSIONS)
    assert all(row["expression"] == Path(str(row["file"])).parent.name for row in rows)
    pairs = {(row["expression"], row["species"]) for row in rows}
    assert len(pairs) == len(EXPRESSIONS) * len(SPECIES)


@pytest.mark.parametrize("species", SPECIES)
def test_expressions_differ_only_at_the_eyes(species: str) -> None:
    upright = Factors(species, 0.5, 0.6, 0.24, 0.0, (200, 90, 90), (240, 240, 240))
    awake, *others = (
        np.asarray(draw(replace(upright, expression=expression), 32), dtype=np.int64)
        for expression in ("awake", "asleep", "surprised")
    )
    for other in others:
        rows, columns = np.nonzero(np.abs(other - awake).max(axis=2))
        assert len(rows) >= 20
        assert rows.min() >= 13 and rows.max() <= 20  # the head spans rows 12 to 26
        assert columns.min() >= 9 and columns.max() <= 22  # and columns 8 to 23


def test_no_image_is_in_both_datasets() -> None:
    drawn = {sample_factors(0, species, i).x for species in SPECIES for i in range(50)}
    assert not drawn & {sample_expression(0, e, i).x for e in EXPRESSIONS for i in range(50)}


@pytest.mark.parametrize("species", SPECIES)
def test_the_centre_of_the_head_has_the_fur_colour_and_a_corner_the_background_colour(
    species: str,
) -> None:
    for i in range(20):
        factors = sample_factors(0, species, i)
        pixels = np.asarray(draw(factors, 128), dtype=np.float64)
        column, row = round(factors.x * 128), round(factors.y * 128)
        centre = pixels[row - 1 : row + 1, column - 1 : column + 1].mean(axis=(0, 1))
        np.testing.assert_allclose(centre, factors.fur, atol=8)
        np.testing.assert_allclose(pixels[1, 1], factors.background, atol=1)


def test_colours_are_independent_of_the_species() -> None:
    """Check that mean colours of species differ by no more than the sampling error."""
    for colour in ("fur", "background"):
        means = [
            np.mean([getattr(sample_factors(0, species, i), colour) for i in range(500)], axis=0)
            for species in SPECIES
        ]
        assert np.ptp(means, axis=0).max() < 15


def test_tilt_is_clockwise() -> None:
    upright = Factors("rabbit", 0.5, 0.6, 0.2, 0.0, (200, 90, 90), (240, 240, 240))
    tilted = np.asarray(draw(replace(upright, tilt=0.3), 64).convert("L"), dtype=np.float64)
    ears = tilted[5:20]
    assert (ears[:, 32:] < 200).sum() > 2 * (ears[:, :32] < 200).sum()


def test_a_folder_that_is_not_empty_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(UserError, match=r"exists already .*: name another one"):
        write_dataset(tmp_path, COUNT, SIZE, seed=0)
    assert (tmp_path / "kept").read_text() == "mine"


def test_a_count_of_zero_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "animals"), "--count", "0"])
    assert "argument --count: 0 must be at least 1" in capsys.readouterr().err


def test_an_empty_folder_and_leftovers_of_an_interrupted_run_are_reused(tmp_path: Path) -> None:
    dest = tmp_path / "animals"
    dest.mkdir()
    (tmp_path / "animals.partial" / "images" / "cat").mkdir(parents=True)
    main([str(dest), "--count", "1", "--size", "16"])
    assert len(read_rows(dest)) == len(SPECIES)
    assert list(tmp_path.iterdir()) == [dest]
