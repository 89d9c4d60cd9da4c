from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsh.address import Address, default_address, parse_address
from eventsh.errors import ConfigureError

EXAMPLES = "an address looks like unix:/run/app/events.sock"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a.sock", Address("unix", "/run/a.sock")),
        ("unix:relative.sock", Address("unix", "relative.sock")),
        ("unix:/a dir/100%/é#@:1.sock", Address("unix", "/a dir/100%/é#@:1.sock")),
        ("tcp://127.0.0.1:7878", Address("tcp", host="127.0.0.1", port=7878)),
        ("tcp://[::1]:7878", Address("tcp", host="::1", port=7878)),
        ("tcp://[fe80::1%eth0]:0", Address("tcp", host="fe80::1%eth0", port=0)),
        ("tcp://[::1]", Address("tcp", host="::1")),
        ("tcp://localhost", Address("tcp", host="localhost")),
        ("inproc:name", Address("inproc", "name")),
        ("shm:/p", Address("shm", "/p")),
        ("chaos+unix:/path?cut=0.01&delay=5ms", Address("chaos+unix", "/path", query={"delay": "5ms", "cut": "0.01"})),
        ("nats://example.org:4222/a/b?tls=", Address("nats", "/a/b", "example.org", 4222, {"tls": ""})),
        ("x:y?url=a=b?c", Address("x", "y", query={"url": "a=b?c"})),
    ],
)
def test_an_address_is_read_into_its_parts_and_written_back(text, address):
    assert parse_address(text) == address
    assert str(address) == text
    assert hash(parse_address(text)) == hash(address)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("UNIX:/Run/A.sock", "unix:/Run/A.sock"),
        ("unix:///run/a.sock", "unix:/run/a.sock"),
        ("unix:////run/a.sock", "unix:/run/a.sock"),
        ("tcp://LocalHost:07878/", "tcp://localhost:7878"),
        ("tcp://[FE80::1]:1", "tcp://[fe80::1]:1"),
        ("x:y?", "x:y"),
        ("x:y?b=1&a=2", "x:y?a=2&b=1"),
    ],
)
def test_different_spellings_of_one_address_are_equal_and_give_one_text(text, canonical):
    assert str(parse_address(text)) == canonical
    assert parse_address(text) == parse_address(canonical)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "there is none"),
        ("", "it is empty"),
        (7878, "it must be a string, not int"),
        (b"unix:/a", "it must be a string, not bytes"),
        ("events", "'events' does not begin with a scheme"),
        ("127.0.0.1:7878", "'127.0.0.1:7878' does not begin with a scheme"),
        ("example.org:80", "'example.org:80' does not begin with a scheme"),
        (":", "':' does not begin with a scheme"),
        (" unix:a", "' unix:a' does not begin with a scheme"),
        ("+unix:a", "'+unix:a' does not begin with a scheme"),
        ("unix:", "nothing follows 'unix:'"),
        ("unix:?a=1", "nothing follows 'unix:'"),
        ("unix:/a\n", "it holds a control character"),
        ("unix:/a\x1b[31m", "it holds a control character"),
        ("unix:/a\0b", "it holds a control character"),
        ("unix:/a?b=\x9b", "it holds a control character"),
        ("tcp://", "'' can't be a host"),
        ("tcp://:7878", "'' can't be a host"),
        ("tcp://a b:1", "'a b' can't be a host"),
        ("tcp://[]:1", "'[]' can't be a host"),
        ("tcp://[h]:1", "'[h]' can't be a host; an IPv6 address, and nothing else, stands in brackets"),
        ("tcp://::1:7878", "'::1' can't be a host; an IPv6 address, and nothing else, stands in brackets"),
        ("tcp://[xyz::1]:1", "'xyz::1' can't be a host"),
        ("tcp://h:", "'' can't be a port"),
        ("tcp://h:http", "'http' can't be a port"),
        ("tcp://h:-1", "'-1' can't be a port"),
        ("tcp://h:\u0665", "'\u0665' can't be a port"),
        ("tcp://h:65536", "port 65536 is not from 0 to 65535"),
        ("tcp://[::1]x:1", "'[::1]x' can't be a host"),
        ("x:y?a", "its query is not of the form ?key=value&key=value"),
        ("x:y?=1", "its query is not of the form ?key=value&key=value"),
        ("x:y?a=1&", "its query is not of the form ?key=value&key=value"),
        ("x:y?a=1&a=2", "its query has 'a' twice"),
    ],
)
def test_what_is_no_address_gives_an_error_that_says_why_and_what_one_looks_like(text, why):
    with pytest.raises(ConfigureError) as caught:
        parse_address(text)
    assert caught.value.option == "address"
    assert str(caught.value).startswith(f"the address is wrong: {why}")
    assert str(caught.value).endswith(EXAMPLES)


@pytest.mark.parametrize("path", ["/run/x.sock", "./x.sock", "x.sock", "../x:1.sock"])
def test_a_bare_path_gives_an_error_that_suggests_the_address_meant(path):
    with pytest.raises(ConfigureError, match=re.escape(f"did you mean 'unix:{path}'?")):
        parse_address(path)


def test_a_long_text_is_not_repeated_whole():
    with pytest.raises(ConfigureError) as caught:
        parse_address("/x" * 10_000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "tcp://user:s3cret@localhost:1",
        "tcp://s3cret@localhost",
        "tcp://u:s3/cret@h:1",
        "tcp://u:s3?cret@h:1",
        "nats://u:s3@[::1]:1/x",
        "user@s3cret",
    ],
)
def test_a_user_or_token_is_refused_without_repeating_it(text):
    with pytest.raises(ConfigureError) as caught:
        parse_address(text)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    "parts",
    [
        {"scheme": "UNIX", "path": "/a"},
        {"scheme": "", "path": "/a"},
        {"scheme": "unix"},
        {"scheme": "unix", "path": "/a?b"},
        {"scheme": "unix", "path": "/a", "port": 1},
        {"scheme": "unix", "path": "/a\n"},
        {"scheme": "tcp", "host": ""},
        {"scheme": "tcp", "host": "h/x"},
        {"scheme": "tcp", "host": "u@h"},
        {"scheme": "tcp", "host": "h", "path": "/u@h"},
        {"scheme": "tcp", "host": "h", "path": "x"},
        {"scheme": "tcp", "host": "h", "port": 65536},
        {"scheme": "x", "path": "y", "query": {"a": "b&c"}},
        {"scheme": "x", "path": "y", "query": {"a=b": "c"}},
        {"scheme": "x", "path": "y", "query": {"": "c"}},
    ],
)
def test_parts_that_no_text_could_give_are_refused(parts):
    with pytest.raises(ConfigureError) as caught:
        Address(**parts)
    assert caught.value.option == "address"


def test_an_address_can_not_be_changed():
    query = {"a": "1"}
    address = Address("x", "y", query=query)
    query["a"] = "2"
    assert address.query["a"] == "1"
    with pytest.raises(TypeError):
        address.query["a"] = "2"  # type: ignore[index]  # this is what is tested
    with pytest.raises(dataclasses.FrozenInstanceError):
        address.path = "z"  # type: ignore[misc]  # this is what is tested


def test_a_wrapping_scheme_can_be_replaced_by_the_one_it_wraps():
    address = parse_address("chaos+unix:/path?delay=5ms")
    assert dataclasses.replace(address, scheme="unix", query={}) == parse_address("unix:/path")


@given(
    st.one_of(
        st.text(),
        st.text().map("unix:{}".format),
        st.text("ab:/[]?=&@.1").map("tcp://{}".format),
        st.text("ab:/[]?=&@.1").map("x:{}".format),
    )
)
def test_any_text_gives_a_configure_error_or_an_address_whose_text_gives_it_again(text):
    try:
        address = parse_address(text)
    except ConfigureError as error:
        assert error.option == "address"
    else:
        assert parse_address(str(address)) == address
        assert str(parse_address(str(address))) == str(address)


# The default


def test_the_environment_s_address_comes_first():
    environ = {"EVENTSH_ADDRESS": "tcp://127.0.0.1:1", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert default_address(environ, 7, "/tmp") == parse_address("tcp://127.0.0.1:1")


def test_an_error_in_the_environment_s_address_names_the_variable():
    with pytest.raises(ConfigureError, match=r"^\$EVENTSH_ADDRESS: the address is wrong: 'x' does not") as caught:
        default_address({"EVENTSH_ADDRESS": "x"}, 7, "/tmp")
    assert caught.value.option == "address"


@pytest.mark.parametrize("runtime_dir", ["/run/user/7", "/run/user/7/"])
def test_the_runtime_directory_comes_next(runtime_dir):
    environ = {"EVENTSH_ADDRESS": "", "XDG_RUNTIME_DIR": runtime_dir}
    assert str(default_address(environ, 7, "/tmp")) == "unix:/run/user/7/eventsh/events.sock"


@pytest.mark.parametrize("environ", [{}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "run/user"}])
def test_a_directory_of_the_user_s_own_under_the_temporary_one_comes_last(environ):
    assert str(default_address(environ, 7, "/var/tmp/")) == "unix:/var/tmp/eventsh-7/events.sock"
