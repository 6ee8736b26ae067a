import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageColor

from stargan_dist import storage
from stargan_dist.data.index import read_index, read_sample_table, write_index
from stargan_dist.data.order import Location
from stargan_dist.data.reader import ShardReader
from stargan_dist.errors import UserError
from stargan_dist.shards.build import build
from stargan_dist.shards.preview import (
    CROSS,
    MARGIN,
    MAT,
    PAPER,
    Layout,
    draw_sheet,
    preview,
    spread,
    write_png,
)
from stargan_dist.storage import reading

SIZE = 40  # size of the drawn animals: cells show their pixels unscaled


def cell(sheet, layout, domain, number):
    left, top = layout.cell_corner(domain, number)
    return np.asarray(sheet)[top : top + layout.size, left : left + layout.size]


def test_samples_are_spread_over_all_shards():
    assert spread([4, 4, 1], 3) == [(0, 1), (1, 0), (1, 3)]
    assert spread([100] * 8, 8) == [(shard, 50) for shard in range(8)]
    assert spread([2, 0, 1], 8) == [(0, 0), (0, 1), (2, 0)]
    assert spread([], 8) == spread([0], 8) == []


@pytest.mark.parametrize(
    ("domains", "per_domain", "size"), product((1, 2, 3, 40, 300), (1, 8, 20), (16, 40))
)
def test_cells_do_not_overlap(domains, per_domain, size):
    layout = Layout(domains, per_domain, size)
    width, height = layout.sheet_size
    covered = np.zeros((height, width), np.uint8)
    for domain, number in product(range(domains), range(per_domain)):
        left, top = layout.cell_corner(domain, number)
        covered[top : top + size, left : left + size] += 1
        assert top >= layout.block_corner(domain)[1] + layout.text_height
    assert covered.max() == 1
    assert covered.sum() == domains * per_domain * size**2
    assert not covered[:, :MARGIN].any()
    assert not covered[:, -MARGIN:].any()
    assert not covered[-MARGIN:].any()


def test_many_images_of_a_domain_fill_several_rows():
    layout = Layout(1, 20, 64)
    assert layout.block_size == (8 * 68 - 4, layout.heading_height + 3 * 68 - 4)


def test_the_sheet_of_many_domains_has_a_moderate_aspect_ratio():
    for domains in (12, 40, 150):
        width, height = Layout(domains, 8, 128).sheet_size
        assert 0.8 < width / height < 2.4


def test_the_sheet_shows_the_pixels_of_the_chosen_images(shards):
    sheet, faults = preview(shards, per_domain=3, size=SIZE)
    layout = Layout(3, 3, SIZE)
    assert sheet.size == layout.sheet_size
    assert faults == []
    reader = ShardReader(shards, read_index(shards), "train")
    for domain, counts in enumerate(reader.index.counts("train")):
        for number, location in enumerate(spread(counts, 3)):
            image, _ = reader.read_image(Location(domain, *location))
            np.testing.assert_array_equal(cell(sheet, layout, domain, number), np.asarray(image))


def test_images_keep_their_aspect_ratio():
    layout = Layout(1, 2, 32)
    wide, tall = Image.new("RGB", (32, 8), "red"), Image.new("RGB", (1, 32), "blue")
    sheet = draw_sheet(layout, ("set", "train"), ["a"], [2], [[wide, tall]])
    mat, red, blue = (np.array(ImageColor.getrgb(c)) for c in (MAT, "red", "blue"))
    first, second = (cell(sheet, layout, 0, number) for number in (0, 1))
    assert (first[12:20] == red).all()
    assert (first[:12] == mat).all()
    assert (first[20:] == mat).all()
    assert (second[:, 15] == blue).all()
    assert (second[:, :15] == mat).all()


def test_extreme_images_are_shown(tmp_path):
    for domain in ("a", "b"):
        (tmp_path / "images" / domain).mkdir(parents=True)
        Image.new("RGB", (1000, 1), "red").save(tmp_path / "images" / domain / "x.png")
    build(str(tmp_path / "images"), str(tmp_path / "set"), val_fraction=0)
    sheet, _ = preview(str(tmp_path / "set"), size=SIZE)
    pixels = cell(sheet, Layout(2, 1, SIZE), 0, 0)
    assert (pixels == [255, 0, 0]).all(2).sum() == SIZE


def test_unreadable_images_are_crossed_out(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "set")
    index = read_index(shards)
    shard, sample = spread(index.counts("train")[1], 2)[0]
    shard = index.splits["train"]["dog"][shard]
    data = bytearray((folder / shard.name).read_bytes())
    data[int(read_sample_table(shards, shard).offsets[sample]) + 700] ^= 0xFF
    (folder / shard.name).write_bytes(data)
    (sheet, faults), (intact, _) = (
        preview(str(f), per_domain=2, size=SIZE) for f in (folder, shards)
    )
    assert len(faults) == 1
    assert shard.name in faults[0]
    layout = Layout(3, 2, SIZE)
    crossed = (cell(sheet, layout, 1, 0) == ImageColor.getrgb(CROSS)).all(2)
    assert crossed[[0, -1]].all()  # the frame
    assert crossed[SIZE // 2 - 2 : SIZE // 2 + 2, SIZE // 2 - 2 : SIZE // 2 + 2].any()
    for domain, number in {*product(range(3), range(2))} - {(1, 0)}:
        pair = (cell(s, layout, domain, number) for s in (sheet, intact))
        np.testing.assert_array_equal(*pair)


def test_long_non_ascii_and_empty_names_are_drawn():
    layout = Layout(3, 1, 64)
    names = ["x" * 500, "Füchse 狐", ""]
    sheet = np.asarray(draw_sheet(layout, ("s" * 500, "train"), names, [1, 1, 1], [[], [], []]))
    paper = ImageColor.getrgb(PAPER)
    assert (sheet[:, -MARGIN:] == paper).all()
    for domain in range(3):
        left, top = layout.block_corner(domain)
        heading = sheet[top : top + layout.heading_height, left : left + layout.block_size[0]]
        assert not (heading == paper).all()


def test_names_with_line_breaks_are_drawn_on_one_line(shards, tmp_path):
    """The name of the folder, which is the title, and of a domain."""
    folder = tmp_path / "a\nb"
    shutil.copytree(shards, folder)
    index = read_index(shards)
    domains = ["c\nd\x1b", *index.domains[1:]]
    splits = {s: dict(zip(domains, d.values(), strict=True)) for s, d in index.splits.items()}
    write_index(str(folder), replace(index, domains=domains, splits=splits))
    sheet, faults = preview(str(folder), per_domain=1, size=64)
    assert faults == []
    escaped = draw_sheet(
        Layout(3, 1, 64),
        (r"a\nb", "train: 27 images of 3 domains"),
        [r"c\nd\x1b", *domains[1:]],
        [9] * 3,
        [[]] * 3,
    )
    top = Layout(3, 1, 64).cell_corner(0, 0)[1]
    np.testing.assert_array_equal(np.asarray(sheet)[:top], np.asarray(escaped)[:top])


def test_a_name_of_any_length_is_shortened():
    layout = Layout(1, 1, 64)
    sheets = [draw_sheet(layout, ("s", ""), ["x" * length], [1], [[]]) for length in (10**3, 10**6)]
    np.testing.assert_array_equal(*map(np.asarray, sheets))


def test_domains_without_images_are_drawn(shards):
    index = read_index(shards)
    sheet = draw_sheet(Layout(2, 1, 64), ("a", "b"), index.domains[:2], [0, 0], [[], []])
    assert sheet.size == Layout(2, 1, 64).sheet_size


def test_the_sheet_can_be_written_to_a_url(shards):
    sheet, _ = preview(shards, split="val", size=16)
    write_png("memory://sheets/a.png", sheet)
    assert storage.read_bytes("memory://sheets/a.png").startswith(b"\x89PNG")


def test_no_shard_is_read_completely(shards, monkeypatch):
    urls, read_blocks = [], storage.read_blocks
    for module in (storage, reading):
        monkeypatch.setattr(
            module, "read_blocks", lambda url, *read: urls.append(url) or read_blocks(url, *read)
        )
    preview(shards, per_domain=2, size=16)
    assert urls
    assert not [url for url in urls if url.endswith(".tar")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "has no split test: name one of train, val"),
        ({"size": 10**5}, "by --size or --per-domain"),
    ],
)
def test_impossible_options_are_rejected(shards, options, message):
    with pytest.raises(UserError, match=message):
        preview(shards, **options)


def test_a_sheet_that_cannot_be_written_is_rejected(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_png(str(tmp_path / "x.png"), Image.new("RGB", (1, 1)))
