"""Regular expressions as patterns: the syntax that guides have anyway, as far as it is regular.

The text matches in full; `^` at its start and `$` at its end are allowed and say no more. \\d, \\w,
\\s, their opposites and negated classes that hold one are limited to ASCII, in which all readings
of them agree. Not here, and refused by name: flags, look-around, back references, word boundaries,
Unicode properties, set operations inside of classes.
"""

from __future__ import annotations

import re

from anyorder.core.errors import GuideError
from anyorder.sampling.automata.pattern import (
    EMPTY,
    LAST,
    Chain,
    Either,
    Letters,
    Pattern,
    Range,
    Repeat,
    chain,
    letters,
    none_of,
)

_ASCII: Range = (0, 127)
_SPECIAL = r"\.+*?()|[]{}^$#&-~/ '!%,:;<=>@_`" + '"'
"""What may stand behind a backslash and means itself."""
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a"}
_CLASSES: dict[str, tuple[Range, ...]] = {
    "d": ((48, 57),),
    "w": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "s": ((9, 13), (32, 32)),
}
_COUNT = re.compile(r"\{(\d{1,5})(,(\d{1,5})?)?\}")
_NAME = re.compile(r"\?(P?<[A-Za-z_]\w*>|:)")
_HEX = re.compile(r"x\{([0-9A-Fa-f]{1,6})\}|x([0-9A-Fa-f]{2})|u\{([0-9A-Fa-f]{1,6})\}"
                  r"|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})")  # fmt: skip


def regex_pattern(text: str) -> Pattern:
    """The pattern of a regex; GuideError, naming the place, where it has none."""
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> Pattern:
        if self._text.startswith("^"):
            self._at = 1
        pattern = self._alternatives(outside=True)
        if self._at < len(self._text):
            raise self._refuse("a ) without its (")
        if isinstance(pattern, Either) and (self._text.startswith("^") or self._text.endswith("$")):
            raise self._refuse("an anchor that belongs to one of several alternatives")
        return pattern

    def _refuse(self, what: str) -> GuideError:
        return GuideError(
            f"the regex has {what}, near character {self._at + 1}; a canvas cannot be guided by "
            "it. Use plain letters, classes, groups, alternatives and counts."
        )

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _alternatives(self, *, outside: bool = False) -> Pattern:
        options = [self._sequence(outside)]
        while self._take("|"):
            options.append(self._sequence(outside))
        return options[0] if len(options) == 1 else Either(options=tuple(options))

    def _sequence(self, outside: bool) -> Pattern:
        parts: list[Pattern] = []
        while self._peek() not in ("", "|", ")"):
            if outside and self._text[self._at :] == "$":
                self._at += 1
                break
            parts.append(self._counted(self._atom()))
        return parts[0] if len(parts) == 1 else Chain(parts=tuple(parts))

    def _counted(self, part: Pattern) -> Pattern:
        while (letter := self._peek()) in ("*", "+", "?", "{") and letter:
            least, most = 0, None
            if letter == "{":
                count = _COUNT.match(self._text, self._at)
                if count is None:
                    raise self._refuse("a { that is no count")
                self._at = count.end()
                least = int(count[1])
                most = least if count[2] is None else int(count[3]) if count[3] else None
                if most is not None and most < least:
                    raise self._refuse("a count whose end is below its start")
            else:
                self._at += 1
                least, most = int(letter == "+"), 1 if letter == "?" else None
            self._take("?")  # fewest first: the same texts
            part = Repeat(part=part, least=least, most=most)
        return part

    def _atom(self) -> Pattern:
        letter = self._text[self._at]
        self._at += 1
        if letter == "(":
            return self._group()
        if letter == "[":
            return self._class()
        if letter == ".":
            return none_of([(10, 10)])
        if letter == "\\":
            ranges, _ = self._escape()
            return letters(ranges)
        if letter in "^$":
            raise self._refuse(f"a {letter} inside of it")
        if letter in "*+?{":
            raise self._refuse(f"a {letter} with nothing before it")
        return letters([(ord(letter), ord(letter))])

    def _group(self) -> Pattern:
        if self._peek() == "?":
            name = _NAME.match(self._text, self._at)
            if name is None:
                raise self._refuse("a group with flags or look-around")
            self._at = name.end()
        inner = self._alternatives()
        if not self._take(")"):
            raise self._refuse("a ( without its )")
        return chain(inner) if inner != EMPTY else inner

    def _escape(self) -> tuple[list[Range], bool]:
        """Of what stands behind a backslash: its letters, and is it a class?"""
        number = _HEX.match(self._text, self._at)
        if number is not None:
            self._at = number.end()
            value = int(next(found for found in number.groups() if found), 16)
            if value > LAST or 0xD800 <= value <= 0xDFFF:
                raise self._refuse("a number that is no code point")
            return [(value, value)], False
        letter = self._peek()
        self._at += 1
        if letter and letter.lower() in _CLASSES:
            found = list(_CLASSES[letter.lower()])
            return (found if letter.islower() else _ascii(none_of(found))), True
        letter = _CONTROLS.get(letter, letter if letter and letter in _SPECIAL else "")
        if not letter:
            self._at -= 1
            raise self._refuse(f"\\{self._peek()}")
        return [(ord(letter), ord(letter))], False

    def _class(self) -> Letters:
        negated = self._take("^")
        ranges: list[Range] = []
        has_class, first = False, True
        while first or self._peek() != "]":
            found, is_class = self._class_item()
            has_class |= is_class
            if (
                not is_class
                and self._peek() == "-"
                and self._text[self._at + 1 : self._at + 2] != ("]")
            ):
                self._at += 1
                upper, is_class = self._class_item()
                if is_class or upper[0][0] < found[0][0]:
                    raise self._refuse("a range that ends before it starts")
                found = [(found[0][0], upper[0][0])]
            ranges += found
            first = False
        self._at += 1
        if not negated:
            return letters(ranges)
        return letters(_ascii(none_of(ranges))) if has_class else none_of(ranges)

    def _class_item(self) -> tuple[list[Range], bool]:
        letter = self._peek()
        if not letter:
            raise self._refuse("a [ without its ]")
        if letter == "[" or self._text[self._at : self._at + 2] in ("&&", "--", "~~"):
            raise self._refuse("a class inside of a class")
        self._at += 1
        if letter == "\\":
            return self._escape()
        return [(ord(letter), ord(letter))], False


def _ascii(found: Letters) -> list[Range]:
    """What of it is ASCII."""
    return [(low, min(high, _ASCII[1])) for low, high in found.ranges if low <= _ASCII[1]]
