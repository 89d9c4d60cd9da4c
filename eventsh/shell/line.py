"""What a typed line is: words, code after a colon, a pipe. Pure.

A word ends at a blank. `'...'` and `"..."` hold blanks, and so does JSON, which needs no quotes: `{...}`, `[...]`,
`<"k":1>` at the start of a word or behind a `=`. Of a verb that takes code, what follows the first word that ends in a
colon is code. A `|` that stands by itself begins a command of the system's shell.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["Line", "Word", "parse_line"]

_CLOSES = {"{": "}", "[": "]", "<": ">"}
_BLANKS = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Word:
    """One word, from `start` to `end` of the line. `text` has no quotes any more; `data` keeps double ones, which mean a
    string in JSON. `is_open`: a quote or bracket of it is not closed."""

    start: int
    end: int
    text: str
    data: str
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line (which may have several rows). `code` begins at `code_start` of it."""

    words: tuple[Word, ...]
    code: str | None = None
    code_start: int = 0
    pipe: str | None = None

    @property
    def verb(self) -> str:
        return self.words[0].text if self.words else ""

    @property
    def is_open(self) -> bool:
        """Whether a quote or bracket is not closed: the line goes on in the next row."""
        return any(word.is_open for word in self.words)


def parse_line(text: str, code_verbs: Collection[str] = ()) -> Line:
    """Take a line apart. Never raises: what is not closed is marked."""
    words: list[Word] = []
    position = 0
    while True:
        while position < len(text) and text[position] in _BLANKS:
            position += 1
        if position >= len(text):
            return Line(tuple(words))
        if text[position] == "|" and words and text[position + 1 : position + 2] in ("", " ", "\t"):
            return Line(tuple(words), pipe=text[position + 1 :].strip())
        takes_code = bool(words) and words[0].text in code_verbs
        word = _Scanner(text, position).word(ends_at_colon=takes_code or _first(text, position) in code_verbs)
        position = word.end
        if text[position : position + 1] == ":":
            if word.end > word.start:
                words.append(word)
            return Line(tuple(words), text[position + 1 :], position + 1)
        words.append(word)


def _first(text: str, position: int) -> str:
    """The verb of `register: print(data)`, whose colon stands right behind it."""
    return text[position:].split(":", 1)[0]


class _Scanner:
    """Reads one word."""

    def __init__(self, text: str, start: int) -> None:
        self._text = text
        self._start = start
        self._at = start
        # Two spellings of the same word; see Word.
        self._plain: list[str] = []
        self._data: list[str] = []

    def word(self, *, ends_at_colon: bool) -> Word:
        text = self._text
        while self._at < len(text) and text[self._at] not in _BLANKS:
            character = text[self._at]
            if character == ":" and ends_at_colon and text[self._at + 1 : self._at + 2] in ("", *_BLANKS):
                break
            if character == "'":
                is_closed = self._quoted()
            elif character == '"':
                is_closed = self._string()
            elif character in _CLOSES and (self._at == self._start or text[self._at - 1] == "="):
                is_closed = self._json()
            else:
                self._put(character, character)
                is_closed = True
                self._at += 1
            if not is_closed:
                return self._end(is_open=True)
        return self._end(is_open=False)

    def _end(self, *, is_open: bool) -> Word:
        return Word(self._start, self._at, "".join(self._plain), "".join(self._data), is_open)

    def _put(self, plain: str, data: str) -> None:
        self._plain.append(plain)
        self._data.append(data)

    def _quoted(self) -> bool:
        end = self._text.find("'", self._at + 1)
        content = self._text[self._at + 1 : end if end >= 0 else None]
        self._put(content, content)
        self._at = end + 1 if end >= 0 else len(self._text)
        return end >= 0

    def _string(self) -> bool:
        begin = self._at
        self._at = _string_end(self._text, begin)
        is_closed = self._at <= len(self._text)
        self._at = min(self._at, len(self._text))
        raw = self._text[begin : self._at]
        plain = raw[1:-1] if is_closed else raw[1:]
        # In the midst of a word, as in key="a b", the quotes only hold it together.
        is_json = begin == self._start or self._text[begin - 2 : begin] == ":="
        self._put(plain, raw if is_json else plain)
        return is_closed

    def _json(self) -> bool:
        """From a bracket to the one that closes it."""
        text, begin = self._text, self._at
        stack: list[str] = []
        while self._at < len(text):
            character = text[self._at]
            if character == '"':
                self._at = _string_end(text, self._at)
                continue
            # Of the angle brackets only the outermost mean anything.
            if character in "{[" or (character == "<" and not stack):
                stack.append(_CLOSES[character])
            elif character == stack[-1]:
                stack.pop()
            self._at += 1
            if not stack:
                break
        self._at = min(self._at, len(text))
        raw = text[begin : self._at]
        self._put(raw, raw)
        return not stack


def _string_end(text: str, begin: int) -> int:
    """Behind the double quote that ends the string that begins here; beyond the text's end when there is none."""
    position = begin + 1
    while position < len(text):
        if text[position] == '"':
            return position + 1
        position += 2 if text[position] == "\\" else 1
    return len(text) + 1
