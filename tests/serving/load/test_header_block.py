"""Header blocks against the examples of RFC 7541, appendix C."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.serving.load.header_block import decode, encode

NAMES = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz-"), min_size=1, max_size=20)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=400)


@given(st.dictionaries(NAMES, VALUES))
def test_what_is_written_is_read(headers: dict[str, str]) -> None:
    assert decode(encode(headers.items())) == headers


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", {"custom-key": "custom-header"}),  # C.2.1
        ("100870617373776f726406736563726574", {"password": "secret"}),  # C.2.3
        ("8286", {}),  # whole entries of the static table, of which nothing is read
        ("88", {":status": "200"}),
        ("48826402", {":status": "302"}),  # C.6.1: the value compressed
        ("408825a849e95ba97d7f8925a849e95bb8e8b4bf", {"custom-key": "custom-value"}),  # C.4.3: both compressed
        ("2088" + "000b677270632d7374617475730130", {":status": "200", "grpc-status": "0"}),  # behind a table of 0 bytes
    ],
)
def test_the_examples_are_read(block: str, headers: dict[str, str]) -> None:
    assert decode(bytes.fromhex(block)) == headers


def test_long_compressed_texts_are_read() -> None:
    # C.6.1: a date and an address, each compressed, their names in the static table; then a literal name to hold the value.
    date = bytes.fromhex("d07abe941054d444a8200595040b8166e082a62d1bff")
    block = b"\x00\x04when" + bytes([0x80 | len(date)]) + date
    assert decode(block) == {"when": "Mon, 21 Oct 2013 20:13:21 GMT"}
    address = bytes.fromhex("9d29ad171863c78f0b97c8e9ae82ae43d3")
    assert decode(b"\x00\x05where" + bytes([0x80 | len(address)]) + address) == {"where": "https://www.example.com"}


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("be", "static table, found 62"),  # the dynamic table's first entry
        ("7e0161", "static table, found 62"),
        ("3f9001", "dynamic table of 0 bytes"),
        ("000361", "cut short"),
        ("00", "cut short"),
        ("ffffffffffff", "too large"),
        ("000161823f", "cut short"),
        ("00016181ff", "ends within a character"),
        ("0001618100", "ends within a character"),
    ],
)
def test_damaged_blocks_are_refused(block: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode(bytes.fromhex(block))
