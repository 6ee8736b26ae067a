from stargan_dist.console.tables import format_table

ROWS = [
    ("guide", "task", "images", "demo_fid", "pixels"),
    ("latent", "cat → dog", "40", "12.35", "16–18 × 16"),
    ("latent", "dog → wild cat", "1000", "113.20", "16×16"),
    ("real", "dog", "", "–", ""),
]


def test_columns_are_as_wide_as_their_widest_cell():
    assert format_table(ROWS, left=(0, 1, 4)).split("\n") == [
        "guide   task            images  demo_fid  pixels",
        "latent  cat → dog           40     12.35  16–18 × 16",
        "latent  dog → wild cat    1000    113.20  16×16",
        "real    dog                            –",
    ]


def test_columns_are_aligned_to_the_right_unless_named():
    assert format_table(ROWS, left=()).split("\n") == [
        " guide            task  images  demo_fid      pixels",
        "latent       cat → dog      40     12.35  16–18 × 16",
        "latent  dog → wild cat    1000    113.20       16×16",
        "  real             dog                 –",
    ]


def test_numbers_are_printed_as_written():
    rows = [("name", "value"), ("a", "0.4500"), ("b", "1e3"), ("007", "-0"), ("1,000", "inf")]
    assert format_table(rows, left=[0]).split("\n") == [
        "name    value",
        "a      0.4500",
        "b         1e3",
        "007        -0",
        "1,000     inf",
    ]


def test_cells_of_the_header_may_be_empty():
    rows = [("", "run", "step"), ("*", "runs/a", "100"), ("", "runs/b", "–")]
    assert format_table(rows, left=(0, 1)).split("\n") == [
        "   run     step",
        "*  runs/a   100",
        "   runs/b     –",
    ]


def test_rows_may_be_an_iterator():
    assert format_table(zip(("a", "b"), ("c", "d"), strict=True), left=(0,)) == "a  c\nb  d"


def test_no_rows_are_an_empty_table():
    assert format_table([], left=(0,)) == ""
