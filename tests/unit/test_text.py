"""Text of the host made fit to be shown."""

import pytest

from csumfix.text import LISTED, listing, printable, printable_data, shortened


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("flannel.1", "flannel.1"),
        ("vxé", "vxé"),
        ("[red]vx", "[red]vx"),
        (b"vx\xff0", "vx\\xff0"),
        (b"vx\xff0".decode(errors="surrogateescape"), "vx\\xff0"),
        ("vx\x1b[31m", "vx\\x1b[31m"),
        ("vx\r\n\t", "vx\\x0d\\x0a\\x09"),
        ("vx\x9b31m", "vx\\x9b31m"),  # CSI in one character
        ("a\u202eb", "a\\u202eb"),  # turns the direction of writing
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\ue0001"),
    ],
)
def test_nothing_that_is_shown_can_steer_a_terminal(name: str | bytes, shown: str) -> None:
    assert printable(name) == shown
    assert printable(printable(name)) == shown
    assert shown.isprintable()
    assert shown.encode()


def test_data_is_made_printable_in_every_corner() -> None:
    data = {"\x1b": ["\x1b", {"a": ("\x1b", 1, None, True)}]}
    assert printable_data(data) == {"\\x1b": ["\\x1b", {"a": ["\\x1b", 1, None, True]}]}


def test_a_list_of_names_does_not_grow_with_the_host() -> None:
    assert listing([]) == ""
    assert listing(["a", "b"]) == "a, b"
    assert listing(range(LISTED)).endswith(f", {LISTED - 1}")
    assert listing(["x"] * 600, limit=2) == "x, x, and 598 more"
    assert listing(range(600), " ", limit=2) == "0 1 and 598 more"


def test_a_long_text_is_cut_and_says_so() -> None:
    assert shortened("x" * 20, 20) == "x" * 20
    assert shortened("x" * 21, 20) == "x" * 6 + " ... (cut off)"
