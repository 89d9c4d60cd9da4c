"""A line of bash up to the cursor: its words, and how a word must be written to stand there."""

from __future__ import annotations

__all__ = ["Line"]

_SPACE = " \t\n"
# What an unquoted word can hold as it is; all else gets a backslash.
_PLAIN = frozenset("%+,-./:=@_^")
# What a backslash takes its meaning from inside of double quotes.
_SPECIAL_IN_QUOTES = '"$`\\'


class Line:
    """`words` are those before the one at the cursor, and `word` is that one, all without their quotes.

    Bash replaces only what follows the last of its `breaks` (such as the colon of unix:/run) or the opening quote.
    """

    def __init__(self, text: str, breaks: str) -> None:
        self.words: list[str] = []
        self.word = ""
        self._quote = ""
        # How much of `word` stands before what bash replaces; None where it can't be said.
        self._kept: int | None = 0
        self._breaks = frozenset(breaks) - frozenset(_SPACE + "\"'")
        self._read(text)

    def _read(self, text: str) -> None:
        is_word = False
        at = 0
        while at < len(text):
            char = text[at]
            at += 1
            if self._quote:
                if char == self._quote:
                    self._quote = ""
                    # Behind a closed quote bash takes the whole word, quotes and all.
                    self._kept = None
                elif char == "\\" and self._quote == '"' and text[at : at + 1] in tuple(_SPECIAL_IN_QUOTES):
                    self.word += text[at]
                    at += 1
                else:
                    self.word += char
            elif char in _SPACE:
                if is_word:
                    self.words.append(self.word)
                self.word, self._kept, is_word = "", 0, False
            elif char in "\"'":
                # Inside of a word that began without a quote, it is anybody's guess.
                self._kept = len(self.word) if self._kept == len(self.word) else None
                self._quote, is_word = char, True
            else:
                if char == "\\":
                    char, at = text[at : at + 1], at + 1
                    self.word += char
                else:
                    self.word += char
                    if char in self._breaks and self._kept is not None:
                        self._kept = len(self.word)
                is_word = True

    def reply(self, value: str) -> str | None:
        """How bash is told to put `value` in place of the word at the cursor; None where that can't be done."""
        if self._kept is None:
            return None
        rest = value[self._kept :]
        if self._quote == "'":
            return None if "'" in rest else rest
        if self._quote == '"':
            return "".join(f"\\{char}" if char in _SPECIAL_IN_QUOTES else char for char in rest)
        # A tilde at the beginning stands for a directory, as it was typed.
        tilde = "~" if self._kept == 0 and self.word.startswith("~") and rest.startswith("~") else ""
        return tilde + "".join(
            char if char.isalnum() or char in _PLAIN else f"\\{char}" for char in rest.removeprefix(tilde)
        )
