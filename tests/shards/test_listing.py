import os
import shutil
from pathlib import Path

import pytest

from stargan_dist.data.index import read_index
from stargan_dist.errors import UserError
from stargan_dist.shards.build import build
from stargan_dist.shards.listing import Item, list_source, split_listing


def paths(listing):
    """Return the paths of a listing: split -> domain -> paths."""
    return {
        split: {domain: [item.path for item in items] for domain, items in domains.items()}
        for split, domains in listing.splits.items()
    }


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    touch(root, "dog/2.png", "dog/1 x.y.JPG", "cat/ü.png", "cat/sub/3.webp")
    return root


def test_folders_are_domains(folder):
    listing = list_source(str(folder))
    assert paths(listing) == {
        "": {"cat": ["cat/sub/3.webp", "cat/ü.png"], "dog": ["dog/1 x.y.JPG", "dog/2.png"]}
    }
    assert listing.domains == ["cat", "dog"]
    assert listing.faults == []


def test_split_folders_are_kept(folder, tmp_path):
    (tmp_path / "root").mkdir()
    folder.rename(tmp_path / "root" / "train")
    touch(tmp_path / "root", "val/cat/9.png")
    listing = list_source(str(tmp_path / "root"))
    assert paths(listing)["val"] == {"cat": ["val/cat/9.png"]}
    assert split_listing(listing, 0.5, seed=0) is listing


def test_links_to_images_are_images_and_links_to_folders_are_faults(folder):
    """A link that forms a loop is a link to a folder."""
    (folder / "cat" / "linked.png").symlink_to(folder / "dog" / "2.png")
    (folder / "cat" / "loop").symlink_to("..")
    (folder / "bird").symlink_to(folder / "dog")
    listing = list_source(str(folder))
    assert "cat/linked.png" in paths(listing)[""]["cat"]
    assert listing.domains == ["cat", "dog"]
    assert listing.faults == [
        "bird: a stray file or link beside the folders",
        "cat/loop: links to folders are not followed, name the folder itself",
    ]


def test_names_that_are_not_utf8_are_faults(folder):
    Path(os.fsdecode(os.fsencode(folder / "cat") + b"/\xff.png")).touch()
    listing = list_source(str(folder))
    assert listing.faults == ["'cat/\\udcff.png': the name is not UTF-8"]


def test_names_that_are_not_utf8_can_be_left_out(animals, tmp_path):
    """Of images, of other files, of domains and of folders in them."""
    source = shutil.copytree(animals, tmp_path / "images")
    for name in (b"cat/\xff.png", b"cat/\xfe.txt", b"\xff/1.png", b"\xfe.txt", b"dog/\xff/1.png"):
        path = Path(os.fsdecode(os.fsencode(source) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with pytest.raises(UserError, match=r"6 faults in") as caught:
        list_and_build(source, tmp_path / "set", skip_bad=False)
    assert [line.isprintable() for line in str(caught.value).split("\n")] == [True] * 7
    assert list_and_build(source, tmp_path / "set", skip_bad=True) == [
        "'\\udcff/1.png': the name is not UTF-8",
        "'cat/\\udcfe.txt': the name is not UTF-8",
        "'cat/\\udcff.png': the name is not UTF-8",
        "'dog/\\udcff/1.png': the name is not UTF-8",
        "\\udcfe.txt: a stray file or link beside the folders",
        "\\udcff: the domain has no images",
    ]


def list_and_build(source, dest, **options):
    build(str(source), str(dest), **options)
    return read_index(str(dest)).skipped


def test_a_source_whose_name_is_not_utf8_is_refused(folder, tmp_path):
    source = folder.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(UserError, match=r"udcff: the name is not UTF-8: rename it"):
        build(str(source), str(tmp_path / "set"))


def test_hidden_folders_are_left_out_and_a_line_says_so(folder, caplog):
    touch(
        folder, ".git/1.png", ".hidden", "cat/.cache/sub/1.png", "cat/.2.png", "dog/a/.b/c/.d/3.png"
    )
    listing = list_source(str(folder))
    assert (listing.domains, listing.faults) == (["cat", "dog"], [])
    assert paths(listing)[""]["cat"] == ["cat/sub/3.webp", "cat/ü.png"]
    assert paths(listing)[""]["dog"] == ["dog/1 x.y.JPG", "dog/2.png"]
    said = "hidden folders are left out: %s; rename those that hold images"
    assert caplog.messages == [
        f"{folder}: {said % '.git'}",
        f"{folder}/cat: {said % '.cache'}",
        f"{folder}/dog: {said % 'a/.b'}",
    ]


def test_hidden_files_are_left_out_in_silence(folder, caplog):
    touch(folder, ".DS_Store", "cat/.DS_Store")
    assert list_source(str(folder)).faults == caplog.messages == []


def test_a_manifest_may_name_hidden_domains_and_folders(tmp_path):
    (tmp_path / "m.csv").write_text("path,domain\n.a/1,.a\n.a/2,b\n")
    assert list_source(str(tmp_path / "m.csv")).domains == [".a", "b"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.png", "./a.png"), ("a.png", "b/../a.png"), ("b/a.png", "b//a.png"),
     ("a.png", "{root}/a.png"), ("{root}/a.png", "{root}/./a.png"),
     ("http://host/a.png", "http://host/a.png")],
)  # fmt: skip
def test_a_file_under_two_names_is_listed_twice(tmp_path, first, second):
    rows = [("path", "domain"), (first, "a"), ("other", "b"), (second, "b")]
    text = "\n".join(map(",".join, rows)).format(root=tmp_path)
    (tmp_path / "m.csv").write_text(text)
    message = r"m\.csv: line 4: .*a\.png is listed twice, first in line 2$"
    with pytest.raises(UserError, match=message):
        list_source(str(tmp_path / "m.csv"))


def test_different_files_with_similar_names_are_kept(tmp_path):
    names = ("a.png", "b/a.png", "http://host/a.png", "http://host/./a.png", "../a.png", "/a.png")
    rows = [f"{name},{domain}" for name, domain in zip(names, "ababab", strict=True)]
    (tmp_path / "m.csv").write_text("\n".join(["path,domain", *rows]))
    listing = list_source(str(tmp_path / "m.csv"))
    assert sorted(path for listed in paths(listing)[""].values() for path in listed) == sorted(
        names
    )


def test_numbers_of_a_csv_are_those_of_json(tmp_path):
    numbers = {" 5": 5, "-0.5e1": -5.0, "9" * 4000: int("9" * 4000)}
    cells = numbers | {x: x for x in ("05", "1e999", "true", "[1]", "[" * 10**5, "1_0", "٣", "")}
    rows = [f"{i},{'ab'[i % 2]},{cell}" for i, cell in enumerate(cells)]
    (tmp_path / "m.csv").write_text("\n".join(["path,domain,x", *rows]), encoding="utf-8")
    domains = list_source(str(tmp_path / "m.csv")).splits[""].values()
    found = {item.path: item.attributes["x"] for items in domains for item in items}
    assert [found[str(i)] for i in range(len(cells))] == list(cells.values())


def test_a_byte_order_mark_is_no_part_of_a_name(folder, tmp_path):
    text = "path,domain\ndog/2.png,a\ncat/ü.png,b\n"
    (folder / "m.csv").write_text(text, encoding="utf-8-sig")
    (tmp_path / "val.txt").write_text("dog/2.png\n", encoding="utf-8-sig")
    listing = list_source(str(folder / "m.csv"), str(tmp_path / "val.txt"))
    assert paths(listing) == {"val": {"a": ["dog/2.png"]}, "train": {"b": ["cat/ü.png"]}}


MANIFESTS = {
    "m.csv": "path,domain,smiling,age,note\ndog/2.png,dog,-1,3.5,007\ncat/ü.png,cat,1,4,NaN\n",
    "m.jsonl": '{"path": "dog/2.png", "domain": "dog", "smiling": -1, "age": 3.5, "note": "007"}\n'
    '\n{"path": "cat/ü.png", "domain": "cat", "smiling": 1, "age": 4, "note": "NaN"}\n',
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_keep_attributes(folder, name):
    (folder / name).write_text(MANIFESTS[name], encoding="utf-8")
    listing = list_source(str(folder / name))
    assert listing.splits == {
        "": {
            "dog": [Item("dog/2.png", {"smiling": -1, "age": 3.5, "note": "007"})],
            "cat": [Item("cat/ü.png", {"smiling": 1, "age": 4, "note": "NaN"})],
        }
    }
    assert listing.root == f"{folder}/"


def test_manifests_can_split(folder):
    rows = ["path,domain,split", "1,a,train", "2,b,train", "3,a,val", "4,b,test"]
    (folder / "m.csv").write_text("\n".join(rows))
    listing = list_source(str(folder / "m.csv"))
    assert paths(listing) == {
        "train": {"a": ["1"], "b": ["2"]}, "val": {"a": ["3"]}, "test": {"b": ["4"]},
    }  # fmt: skip
    assert listing.splits["train"]["a"] == [Item("1", None)]


def test_one_domain_is_enough_where_attributes_can_be_labels(tmp_path):
    (tmp_path / "m.csv").write_text("path,domain,male\n1,face,-1\n")
    listing = list_source(str(tmp_path / "m.csv"))
    assert listing.splits[""]["face"] == [Item("1", {"male": -1})]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "path,kind\n1,a\n", r"line 2: a row needs the fields path and domain"),
        ("m.csv", "path,domain\n1,a\n2\n", r"line 3: a row needs"),
        ("m.csv", "path,domain\n1,a,x\n", r"line 2: more cells than the header has names"),
        ("m.csv", "path,domain\n1,a\n1,b\n", r"line 3: 1 is listed twice, first in line 2"),
        (
            "m.csv",
            "path,domain,x\n1,a," + "9" * 5000,
            r"line 2: x: Exceeds the limit \(4300 digits",
        ),
        (
            "m.jsonl",
            '{"path": "1", "domain": "a", "x": ' + "9" * 5000,
            r"line 1: Exceeds the limit",
        ),
        ("m.jsonl", '\n{"x":' + "[" * 10**5, r"line 2: maximum recursion depth exceeded"),
        ("m.jsonl", f'{{"path": "1", "domain": {"[" * 99}{"]" * 99}}}', r"more than 32 deep"),
        ("m.jsonl", '{"path": "1", "domain": ["a"]}', r"line 1: domain is not a text"),
        ("m.jsonl", '{"path": "\\ud800", "domain": "a"}', r"line 1: lone surrogates .* not text$"),
        ("m.jsonl", '{"path": "1", "domain": "a", "\\udfff": 1}', r"line 1: lone surrogates"),
        (
            "m.jsonl",
            '{"path": "a\\u0000", "domain": "a"}',
            r"line 1: path is a\\x00, which no file",
        ),
        ("m.jsonl", '"path"', r"line 1: a JSON object is needed"),
        ("m.jsonl", '[["path", "1"], ["domain", "a"]]', r"line 1: a JSON object is needed"),
        ("m.csv", "path,domain\n1,a\0\n", r"line 2: (domain is a\\x00, which|line contains NUL)"),
        (
            "m.csv",
            "path,domain\n" + "x" * 5000 + ",a\n",
            r"line 2: path is not a text of up to 4096",
        ),
        ("m.csv", "path,domain\n" + "x" * 10**6 + ",a\n", r"line 2: field larger than field limit"),
        ("m.csv", 'path,domain\n"a\nb",a\n"a\nb",b\n', r"line 5: a\\nb is listed twice"),
        ("m.csv", "path,domain,split\n1,a,\x1b[31m\n", r"split \\x1b\[31m is not one of"),
        (
            "m.csv",
            "path,domain,split\n1,a,dev\n",
            r"line 2: split dev is not one of train, val, test",
        ),
        ("m.csv", "path,domain,split\n1,a,train\n2,b,\n", r"name it in all rows or in none"),
        ("m.jsonl", '{"path": "1", "domain": "a"}\n{"path"\n', r"line 2: Expecting"),
        ("m.jsonl", "[1]\n", r"line 1: "),
        ("m.csv", "path,domain\n1,a\n", r"at least two domains, or attributes: \['a'\] found"),
        ("m.csv", b"\xff\xfe\x00", r"cannot read the manifest"),
    ],
)
def test_bad_manifests_are_rejected_with_the_line(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        list_source(str(tmp_path / name))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_a_list_selects_the_validation_images(folder, tmp_path):
    (tmp_path / "val.txt").write_text("dog/2.png\r\ncat/ü.png\n", encoding="utf-8")
    listing = list_source(str(folder), str(tmp_path / "val.txt"))
    assert paths(listing) == {
        "train": {"cat": ["cat/sub/3.webp"], "dog": ["dog/1 x.y.JPG"]},
        "val": {"cat": ["cat/ü.png"], "dog": ["dog/2.png"]},
    }


def test_a_list_of_unknown_images_is_rejected(folder, tmp_path):
    (tmp_path / "val.txt").write_text("dog/2.png\ndog/4.png\n")
    with pytest.raises(UserError, match=r"names 1 images that .* such as dog/4.png"):
        list_source(str(folder), str(tmp_path / "val.txt"))


def test_a_fraction_is_a_seeded_draw_in_each_domain(tmp_path):
    touch(tmp_path, *(f"{domain}/{i:03d}.png" for domain in "ab" for i in range(100)))
    listing = list_source(str(tmp_path))
    splits = paths(split_listing(listing, 0.25, seed=0))
    for domain in "ab":
        assert len(splits["val"][domain]) == 25
        both = splits["train"][domain] + splits["val"][domain]
        assert sorted(both) == paths(listing)[""][domain]
        assert splits["val"][domain] == sorted(splits["val"][domain])
    assert paths(split_listing(listing, 0.25, seed=0)) == splits
    assert paths(split_listing(listing, 0.25, seed=1)) != splits


def test_a_missing_source_is_rejected(tmp_path):
    with pytest.raises(UserError, match="is not a folder, nor a manifest"):
        list_source(str(tmp_path / "nothing"))
