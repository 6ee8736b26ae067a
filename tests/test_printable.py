from stargan_dist.errors import is_utf8, printable


def test_text_stays_as_it_is():
    text = "Füchse 狐\u3000 – a.b\\c"
    assert printable(text) == text


def test_what_would_change_the_line_is_escaped():
    assert printable("a\nb\r\t\0\x1b[2J\u2028\u202e\udcff") == (
        r"a\nb\r\t\x00\x1b[2J\u2028\u202e\udcff"
    )


def test_long_text_is_cut():
    assert printable("ab\ncd", 3) == r"ab\n…"


def test_names_of_other_encodings_are_told_apart():
    assert is_utf8("ü\n") and not is_utf8("a\udcff")
