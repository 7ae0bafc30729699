"""Which LR belongs to which HR, by their names; no file is opened.

Whether their sizes agree is judged where they are read (`sr_assets/assets/bronze.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

#: What data sets add to the names of HR and LR: 0801x4, img_001_SRF_4_LR, baby_x4, 0001x4m, b_gt.
_ROLE = re.compile(r"[-_. ]?(?:lr|hr|gt)$")
_SCALE = re.compile(r"[-_. ]?(?:lr(?:bi)?[-_]?)?x[2348][a-z]?$")


@dataclass
class Matched:
    """HR and LR of one data set, put together."""

    pairs: dict[str, str] = field(default_factory=dict)
    """HR -> its LR."""
    hr_problems: dict[str, str] = field(default_factory=dict)
    """HR without partner -> why."""
    lr_problems: dict[str, str] = field(default_factory=dict)
    """LR without partner -> why."""


def match(hr: Iterable[str], lr: Iterable[str]) -> Matched:
    """Pairs of equal names, without ending, case and what marks HR, LR and scale.

    Folders count where they agree: `a/1.png` goes with `a/1x4.png`. An HR that has no LR by its
    whole path is matched by its file name alone, so that `HR/1.png` goes with `LR/1x4.png`.

    Args:
        hr: relative posix paths of the HR images.
        lr: those of the LR images, in their own folder.

    >>> match(["0801.png"], ["X4/0801x4.png"]).pairs
    {'0801.png': 'X4/0801x4.png'}
    """
    found = Matched()
    left_hr, left_lr = set(hr), set(lr)
    for whole, marked in ((True, True), (True, False), (False, True), (False, False)):
        by_name = _groups(left_lr, whole, marked)
        for name, owners in _groups(left_hr, whole, marked).items():
            partners = by_name.get(name, [])
            if not partners:
                continue
            if len(owners) == len(partners) == 1:
                found.pairs[owners[0]] = partners[0]
            else:
                clash = (
                    f"HR {', '.join(owners)} and LR {', '.join(partners)} have one name: rename "
                    "them so that each HR has one LR"
                )
                found.hr_problems.update(dict.fromkeys(owners, clash))
                found.lr_problems.update(dict.fromkeys(partners, clash))
            left_hr -= set(owners)
            left_lr -= set(partners)
    found.hr_problems.update({path: f"no LR is named like {path}" for path in left_hr})
    found.lr_problems.update({path: f"no HR is named like {path}" for path in left_lr})
    return found


def _groups(paths: Iterable[str], whole: bool, marked: bool) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in sorted(paths):
        groups.setdefault(_name(path, whole, marked), []).append(path)
    return groups


def _name(path: str, whole: bool, marked: bool) -> str:
    """What has to be equal: with the folder or without, with the marks of HR, LR and scale or not.

    Names that only seem to end in a mark (`max2`) are equal with it.
    """
    pure = PurePosixPath(unicodedata.normalize("NFC", path))
    stem = pure.stem.casefold()
    if not marked:
        stem = _SCALE.sub("", _ROLE.sub("", stem)) or stem
    return (pure.parent / stem).as_posix() if whole else stem
