from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsh.commands.arguments import MAX_CONTENT_BYTES, parse_data, parse_line
from eventsh.errors import NotSerializable, UsageError
from eventsh.protocol.codec import encode_data


def unread(*_: str) -> bytes:
    raise AssertionError("nothing is to be read")


def parse(
    *arguments: str,
    text: bool = False,
    stdin: Callable[[], bytes] = unread,
    files: Callable[[str], bytes] = unread,
) -> Any:
    return parse_data(arguments, text=text, read_stdin=stdin, read_file=files)


def refusal(*arguments: str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable()
    # Newer versions of orjson say more here.
    return message.replace(", expected a JSON value", "")


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        ([], None),
        (["null"], None),
        (["true"], True),
        (["-5"], -5),
        (["1e3"], 1000.0),
        ([" [1, 2] "], [1, 2]),
        (['{"a": "x=1"}'], {"a": "x=1"}),
        ([' {"a": "x=1"}'], {"a": "x=1"}),
        (['"a=b"'], "a=b"),
        (['"hello"'], "hello"),
        (['<"k":1>'], {"k": 1}),
        (["<>"], {}),
        ([" < > "], {}),
        (['<"k":{"a":[1]},"m":"<b>">'], {"k": {"a": [1]}, "m": "<b>"}),
        (['<"k":"a=b">'], {"k": "a=b"}),
        (["name=1"], {"name": "1"}),
        (["x:=1"], {"x": 1}),
        (["n=null"], {"n": "null"}),
        (["n:=null"], {"n": None}),
        (["true=1"], {"true": "1"}),
        (["-5=1"], {"-5": "1"}),
        (["k="], {"k": ""}),
        (["k==v=w"], {"k": "=v=w"}),
        (["a.b=1"], {"a.b": "1"}),
        (["a:b=c:=d"], {"a:b": "c:=d"}),
        (["a b=c d"], {"a b": "c d"}),
        (["k=@file"], {"k": "@file"}),
        (["k=-"], {"k": "-"}),
        (['k:=<"a":1>'], {"k": {"a": 1}}),
        (['k:={"a":"="}', "m=x", "l:=[1]"], {"k": {"a": "="}, "m": "x", "l": [1]}),
    ],
)
def test_arguments_give_their_data(arguments, data):
    assert parse(*arguments) == data


@pytest.mark.parametrize("argument", ["hello", "null", '{"a":1}', "k=v", '<"k":1>', "", "a\nb"])
def test_with_text_the_argument_is_a_string(argument):
    assert parse(argument, text=True) == argument


@pytest.mark.parametrize("argument", ["-", "@-"])
def test_a_dash_is_all_of_standard_input(argument):
    assert parse(argument, stdin=lambda: b'{"a":\n1}\n') == {"a": 1}
    assert parse(argument, text=True, stdin=lambda: "é\n".encode()) == "é\n"


def test_an_at_sign_is_a_file():
    files = {"data.json": b"[1]\n"}
    assert parse("@data.json", files=files.__getitem__) == [1]
    assert parse("@data.json", text=True, files=files.__getitem__) == "[1]\n"


def test_a_file_that_can_not_be_read_is_named():
    def missing(path: str) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", path)

    assert refusal("@no/file", files=missing) == "can't read no/file: No such file or directory"
    assert refusal("@") == "@ needs the name of a file, as in @data.json"


@pytest.mark.parametrize("text", [False, True])
def test_content_that_is_not_utf8_is_refused(text):
    assert "byte 0xff at offset 1" in refusal("-", text=text, stdin=lambda: b"a\xff")
    assert refusal("@f", text=text, files=lambda _: b"a\xff").startswith("f")


def test_bad_json_in_a_file_names_file_and_place():
    told = refusal("@f.json", files=lambda _: b'{"a":1,\n"b":}')
    assert told == 'f.json: not JSON: unexpected character (line 2 column 5: "b":})'
    assert refusal("-", stdin=lambda: b"") == "standard input: nothing there, where JSON was expected"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["hello"],
            (
                """hello is not JSON; for a plain string use --text, or quote it: '"hello"'; """
                "not JSON: unexpected character (line 1 column 1: hello)"
            ),
        ),
        (
            [""],
            """'' is not JSON; for a plain string use --text, or quote it: '""'; nothing there, where JSON was expected""",
        ),
        (["True"], None),
        (["1 2"], None),
        (
            ['{"a":1,}'],
            (
                'not JSON: trailing comma is not allowed (line 1 column 7: {"a":1,}); '
                "put JSON in single quotes, so that the shell leaves it as it is"
            ),
        ),
        (["{a:1}"], None),
        (['<"k":1'], '<"k":1 begins with < and does not end with >'),
        (["<"], "< begins with < and does not end with >"),
        (["<1>"], None),
        (['<"a":1},{"b":2>'], None),
        (['<"a":<"b":1>>'], None),
        (["<k=v>"], None),
        (
            ["k=v", "word"],
            "word is neither KEY=STRING nor KEY:=JSON, and data of another kind is one argument: put JSON in single quotes",
        ),
        (["{a:", "1}"], None),
        (["k=v", "-"], None),
        (["@a", "@b"], None),
        (['"a"=1', "b=2"], None),
        (["k=1", "k:=2"], "the key k is given twice"),
        (["=v"], "=v has no key before the ="),
        ([":=1"], ":=1 has no key before the :="),
        (
            ["k:=word"],
            (
                "the value of k: word is not JSON; for a string use k=word; "
                "not JSON: unexpected character (line 1 column 1: word)"
            ),
        ),
        (["k:="], None),
        (["\udcff"], r"the argument \udcff is not UTF-8"),
        (["k=\udcff"], None),
        (["\x1b[31m" * 100], None),
        (["k\x1b:=\x1b"], None),
        (["k\n", "k=v"], None),
        (
            ["x" * 1000],
            (
                f"{'x' * 40}... is not JSON; for a plain string use --text; "
                f"not JSON: unexpected character (line 1 column 1: {'x' * 20}...)"
            ),
        ),
        (["k:=" + "x" * 1000], None),
    ],
)
def test_an_error_says_in_one_line_what_to_do(arguments, message):
    told = refusal(*arguments)
    assert len(told) < 300
    if message is not None:
        assert told == message


def test_text_is_one_argument():
    assert refusal("a", "b", text=True) == "--text takes one argument, not 2: put the whole text in quotes"
    assert refusal(text=True) == "--text needs an argument: the text, @FILE, or - for standard input"


@pytest.mark.parametrize("argument", ["NaN", "[18446744073709551616]", "k:=1e400", r'"\ud800"', "[" * 300])
def test_what_could_not_be_posted_is_refused_as_such(argument):
    with pytest.raises(NotSerializable):
        parse(argument)


def test_a_line_is_one_value_and_its_error_names_it():
    assert parse_line(b'{"a":1}\r\n', 1) == {"a": 1}
    with pytest.raises(UsageError, match=r"^line 7: not JSON: .* \(line 1 column 2: \[x\]\)$"):
        parse_line(b"[x]\n", 7)
    with pytest.raises(UsageError, match=r"^line 8: nothing there"):
        parse_line(b"\n", 8)
    with pytest.raises(NotSerializable, match=r"^line 9: NaN is no JSON value"):
        parse_line(b"NaN", 9)


@given(st.lists(st.text(max_size=20), max_size=3), st.booleans())
def test_any_arguments_give_data_that_can_be_posted_or_a_printable_error(arguments, text):
    try:
        data = parse(*arguments, text=text, stdin=lambda: b"1", files=lambda _: b"1")
    except UsageError as error:
        assert str(error).isprintable()
    else:
        encode_data(data)


def test_no_more_is_read_than_shows_that_it_is_too_long():
    content = b'"' + b"x" * MAX_CONTENT_BYTES
    for text in (False, True):
        assert refusal("-", text=text, stdin=lambda: content) == (
            "standard input is over 128 MiB long, and an event has 16 MiB at most (max_payload_len)"
        )
        assert refusal("@/dev/zero", text=text, files=lambda path: content).startswith("/dev/zero is over 128 MiB long")
    assert parse("-", stdin=lambda: b" " * (MAX_CONTENT_BYTES - 1) + b"1") == 1
