"""One source file into a bronze output: decoded, judged, put in place and remembered.

Which files there are, and what is done about equal ones, is `bronze.py`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sr_assets.likeness import luma_of, perceptual_hash
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.pictures import BadImage, ImageFacts, inspect
from sr_assets.sources.files import SourceFile, stamp
from sr_assets.storage import hash_file
from sr_assets.stores.manifest import ManifestRow

#: Folder of a bronze output with the images.
FILES = "files"


def name_of(path: str, folder: str = FILES) -> str:
    """Where an image lies inside a bronze output; LR that came with it is in the folder `lr`."""
    return f"{folder}/{path}"


def keep_only(output: OutputFolder, folder: str, paths: Iterable[str]) -> None:
    """Removes all other images of a folder: of rows that are not ok, and what a killed run took."""
    wanted = {name_of(path, folder) for path in paths}
    for name in [name for name in output.files if name.startswith(f"{folder}/")]:
        if name not in wanted:
            output.discard(name)


@dataclass
class Intake:
    """Takes files into one output, from several threads; what a killed run took is not redone."""

    output: OutputFolder
    max_megapixels: float
    folder: str = FILES
    """Of the output."""
    link: bool = True
    """Hard links where the file system allows it, else copies."""
    _known: dict[str, tuple[str, ManifestRow]] = field(init=False)
    """Shown name -> which file it was, and its row."""
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._known = self._recover()

    def take(self, file: SourceFile) -> ManifestRow:
        """The row of one file, which is in the output when the row is ok.

        Raises:
            StageError: the file went away, or the memory does not suffice for it.
        """
        name = name_of(file.shown, self.folder)
        refused = ManifestRow(file.shown, "", None, None, None, 0, "quarantined", file.problem)
        if file.problem:
            return refused
        identity = _identity(file.path)  # before it is read: a change while it is read shows later
        known = self._known.get(file.shown)
        if known and known[0] == identity and self.output.finished(name):
            return known[1]
        try:
            facts = inspect(file.path, self.max_megapixels)
        except BadImage as error:
            digest, size = _digest(file.path)
            return replace(refused, sha256=digest, bytes=size, reason=error.reason)
        except MemoryError:
            raise StageError(
                f"{file.path}: out of memory while it was decoded; lower compute.workers or "
                "bronze.max_megapixels, or leave the file out"
            ) from None
        try:
            sha256 = self.output.take(file.path, name, link=self.link)
        except FileNotFoundError:
            raise StageError(f"{file.path} went away while it was read; build again") from None
        row = _row(file.shown, sha256, facts, self.output.files[name]["size"])
        self._remember(identity, row)
        return row

    @property
    def _journal(self) -> Path:
        return self.output.work / f"{self.folder}.jsonl"

    def _remember(self, identity: str, row: ManifestRow) -> None:
        values = {**asdict(row), "luma": row.luma.hex() if row.luma else None, "of": identity}
        with self._lock, self._journal.open("a") as journal:
            # The line before may have been torn by a kill: this one starts afresh in any case.
            journal.write("\n" + json.dumps(values))

    def _recover(self) -> dict[str, tuple[str, ManifestRow]]:
        rows = {}
        journal = self._journal
        for line in journal.read_text().splitlines() if journal.exists() else ():
            try:
                values: dict[str, Any] = json.loads(line)
                values["luma"] = bytes.fromhex(values["luma"])
                identity: str = values.pop("of")
            except (ValueError, KeyError):
                continue
            rows[values["path"]] = (identity, ManifestRow(**values))
        return rows


def intake_of(context: StageContext, folder: str = FILES) -> Intake:
    """What takes the images of one image set into bronze.

    Those of a benchmark are copied: what was measured on stays, whoever edits its source.
    """
    recipe = context.recipe
    link = context.partition in recipe.datasets
    return Intake(context.output, recipe.bronze.max_megapixels, folder, link)


def _identity(path: Path) -> str:
    """Tells one source file from another that has taken its name.

    The place is part of it: files of the hub's cache lie under their digest, and two of them can
    have one size and one time of change.
    """
    try:
        return json.dumps([str(path.resolve()), stamp(path)])
    except (OSError, RuntimeError):  # a link that goes round in a circle
        return ""


def _row(path: str, sha256: str, facts: ImageFacts, size: int) -> ManifestRow:
    assert facts.pixels is not None
    luma = luma_of(facts.pixels)
    return ManifestRow(
        path=path,
        sha256=sha256,
        width=facts.width,
        height=facts.height,
        mode=facts.mode,
        bytes=size,
        status="ok",
        reason="",
        phash=f"{perceptual_hash(luma):016x}",
        luma=luma.tobytes(),
    )


def _digest(path: Path) -> tuple[str, int]:
    """sha256 and size of a refused file, as far as they can be had."""
    try:
        return hash_file(path), path.stat().st_size
    except OSError:
        return "", 0
