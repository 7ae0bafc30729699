"""The patterns by which a dataset card says which files are meant, matched in linear time.

Cards are written by strangers: regular expressions made of them can be made to run for ever.
Patterns of a recipe are those of a folder (`files.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

MOST = 1000  # with wildcards, of one configuration
LONGEST = 1024  # characters of one of them
_WORD = re.compile(r"(?:\*\*+/)+|\*\*+|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_WILD = frozenset("*?[")

Test = Callable[[str], bool]


class Patterns:
    """Tells which paths at least one of some patterns means.

    `*` stays within a folder, `**` does not, and a folder means all below it.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises ValueError where there are too many wildcards to be meant in earnest."""
        plain = {pattern.removeprefix("./").strip("/") for pattern in patterns}
        wild = sorted(pattern for pattern in plain if _WILD & set(pattern))
        if len(wild) > MOST or any(len(pattern) > LONGEST for pattern in wild):
            raise ValueError(f"more than {MOST} patterns, or one of more than {LONGEST} characters")
        self._names = plain - set(wild)
        self._wild = [_Automaton(pattern) for pattern in wild]

    def match(self, path: str) -> bool:
        """Whether a relative posix path is meant."""
        folders = (path[: slash.start()] for slash in re.finditer("/", path))
        return (
            path in self._names
            or any(folder in self._names for folder in folders)
            or any(automaton.match(path) for automaton in self._wild)
        )


class _Automaton:
    """One pattern as a nondeterministic automaton; the bits of an integer are its states.

    State i is before word i, and the last one is behind all words. Each character of a path costs
    a few operations on integers, whatever the pattern is.
    """

    def __init__(self, pattern: str) -> None:
        self._step: list[Test] = []
        """Of each state: which characters lead to the next one."""
        self._stay: list[Test] = []
        """Which characters leave it as it is."""
        self._skips: list[tuple[int, int]] = []
        """(state, how many states further one is without a character)."""
        for word in _WORD.findall(pattern):
            if word.startswith("**/"):
                # Nothing, or whole folders: a state in front of them, and one inside them.
                self._add(_never, _never, 2, 1)
                self._add(_slash, _always)
            elif word.startswith("*"):
                self._add(_never, _always if len(word) > 1 else _no_slash, 1)
            else:
                self._add(_one(word), _never)
        self._end = 1 << len(self._step)
        self._masks: dict[str, tuple[int, int]] = {}
        self._start = self._closed(1)

    def match(self, path: str) -> bool:
        states = self._start
        for character in path:
            if states & self._end and character == "/":
                return True  # what was meant is a folder of it
            step, stay = self._masks.get(character) or self._learn(character)
            states = self._closed((states & step) << 1 | states & stay)
            if not states:
                return False
        return bool(states & self._end)

    def _add(self, step: Test, stay: Test, *skips: int) -> None:
        self._skips += [(len(self._step), skip) for skip in skips]
        self._step.append(step)
        self._stay.append(stay)

    def _closed(self, states: int) -> int:
        """The states, and those that are reached from them without a character."""
        for state, skip in self._skips:
            if states >> state & 1:
                states |= 1 << state + skip
        return states

    def _learn(self, character: str) -> tuple[int, int]:
        masks = (
            sum(1 << state for state, test in enumerate(tests) if test(character))
            for tests in (self._step, self._stay)
        )
        step, stay = self._masks[character] = tuple(masks)  # type: ignore[assignment]
        return step, stay


def _one(word: str) -> Test:
    """What a word that stands for one character takes."""
    if word == "?":
        return _no_slash
    if word.startswith("[") and len(word) > 1:
        inside = word[1:-1].replace("\\", "\\\\").replace("[", "\\[")
        inverted = inside.startswith("!")
        try:
            taken = re.compile(f"[^{inside[1:]}]" if inverted else f"[{inside}]", re.DOTALL)
        except re.error:  # a range such as [z-a]
            return _never
        return lambda character: taken.fullmatch(character) is not None
    return word.__eq__


def _always(character: str) -> bool:
    return True


def _never(character: str) -> bool:
    return False


def _slash(character: str) -> bool:
    return character == "/"


def _no_slash(character: str) -> bool:
    return character != "/"
