"""Numbers read the same everywhere in a card, and texts are never markup."""

import math

import pytest

from rts_hf.reports.text import clean, code_block, counted, escaped, measured_share, number, share, text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234567, "1,234,567"), (0.123456, "0.1235"), (True, "yes"), (None, "–"), ("x", "–"), (math.nan, "not finite")],
)
def test_numbers(value: object, shown: str) -> None:
    assert number(value) == shown


def test_shares_have_four_decimals_unless_they_blew_up() -> None:
    assert (share(0.5), share(1234.56), share(None)) == ("0.5000", "1235", "–")
    assert measured_share(None) == "not finite"


def test_nouns() -> None:
    assert (counted(1, "class", "classes"), counted(2, "class", "classes")) == ("1 class", "2 classes")
    assert counted(1000, "image") == "1,000 images"


def test_nothing_is_markup() -> None:
    assert text("<b>*a*</b>\n| `x`") == "&#60;b&#62;&#42;a&#42;&#60;/b&#62; &#124; &#96;x&#96;"
    assert text("snake_case _x_") == "snake_case &#95;x&#95;"
    assert len(text("a" * 500)) == 200
    assert escaped({"a|b": ["<", 3]}) == {"a&#124;b": ["&#60;", 3]}
    assert clean("a\u202eb\x00c") == "a b c"


def test_code_cannot_close_its_block() -> None:
    assert code_block("a ``` b", "bash") == "````bash\na ``` b\n````"
