"""What the patch store is worth against PNG files in LMDB, as training scripts commonly keep them.

How fast batches come out of the training loader is `loader_wait.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import cv2
import lmdb
import numpy as np
from steps import Stopwatch, note, open_parser, paired, positive, turns
from upath import UPath

from sr_assets.output_folder import OutputFolder
from sr_assets.pictures import decode_rgb
from sr_assets.stores.patches import GROUP, PatchPositions, PatchReader, PatchWriter

SIDE = 256
SEED = 42
PEER, OURS = "LMDB with PNG", "patch store"
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")

HELP = """
Writes the same 256x256 patches of a folder of photos into a patch store and into LMDB, as PNG of
compression level 1 by OpenCV, and compares:

  bytes  of all files                                                    (goal: at most 0.85)
  write  CPU seconds for all patches, ours with checksums and fsync      (goal: at least 5)
  warm   CPU seconds of single patches in random order, checksums verified, out of the page
         cache, into memory that is used again                           (goal: at least 7)
  cold   the same after the kernel was told to drop the files' pages     (goal: at least 6.5)

Then it opens a store of a million patches of 85,000 images, without a peer: milliseconds, and the
memory it takes                                                          (goal: 50 ms)

A ratio is peer over ours in CPU seconds (bytes: ours over peer), the median over repeats. Standard
output ends with one line of JSON for each.
"""
EXAMPLE = """
example:
  python benchmarks/patch_store.py PHOTOS --patches 512 --repeats 5
"""


def main() -> int:
    """Measures what the command line asks for; 1 where the photos are too few."""
    parser = open_parser(HELP, EXAMPLE)
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--patches", type=positive, default=512)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one if left out")
    options = parser.parse_args()
    try:
        patches = photo_patches(options.photos, options.patches)
    except ValueError as error:
        print(f"patch_store: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        lines = measure(patches, Path(folder), options.repeats)
    print("\n".join(json.dumps(line) for line in lines))
    return 0


def photo_patches(folder: Path, count: int) -> np.ndarray:
    """uint8 [count, 256, 256, 3], at random places, as many of each photo.

    Raises:
        ValueError: the folder holds no photo of that size.
    """
    draw, found = np.random.default_rng(SEED), []
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _ENDINGS)
    photos = [decode_rgb(file.read_bytes(), 100) for file in files]
    photos = [photo for photo in photos if min(photo.shape[:2]) >= SIDE]
    if not photos:
        raise ValueError(f"{folder} holds no photo of {SIDE} px a side: name another folder")
    for number in range(count):
        photo = photos[number % len(photos)]
        y, x = (draw.integers(0, side - SIDE + 1) for side in photo.shape[:2])
        found.append(photo[y : y + SIDE, x : x + SIDE])
    return np.stack(found)


def measure(patches: np.ndarray, folder: Path, repeats: int) -> list[dict[str, object]]:
    """All four comparisons, as the lines that end the output."""
    output = write_ours(patches, folder / "first")
    write_lmdb(patches, folder / "lmdb")
    ours = folder / "first" / GROUP / "hr"
    sizes = {PEER: _bytes(folder / "lmdb"), OURS: _bytes(ours)}
    lines: list[dict[str, object]] = [
        _line("patch_store_bytes", sizes[OURS] / sizes[PEER], "bytes, ours over peer", 1)
    ]
    print(f"{len(patches)} patches of {SIDE}x{SIDE}: {sizes}\n")

    def write(name: str, repeat: int) -> None:
        where = folder / f"{name}-{repeat}"
        (write_lmdb if name == PEER else write_ours)(patches, where)
        shutil.rmtree(where)

    lines.append(_compare("patch_store_write", repeats, write))
    reader, buffer = PatchReader(output), np.empty((1, SIDE, SIDE, 3), np.uint8)
    database = lmdb.open(str(folder / "lmdb"), readonly=True, lock=False, readahead=False)
    one = {
        PEER: lambda index: _read_lmdb(database, index),
        OURS: lambda index: reader.hr_batch([index], out=buffer)[0],
    }
    for index in (0, len(patches) - 1):
        if not all(np.array_equal(read(index), patches[index]) for read in one.values()):
            raise AssertionError(f"patch {index} was not read as it was written")
    files = {PEER: folder / "lmdb", OURS: ours}
    order = np.random.default_rng(SEED).permutation(len(patches))

    def read(name: str, repeat: int) -> None:
        for index in np.roll(order, repeat):
            one[name](int(index))

    def read_cold(name: str, repeat: int) -> None:
        for index in np.roll(order, repeat)[:256]:
            one[name](int(index))

    lines.append(_compare("patch_store_warm", repeats, read))
    lines.append(_compare("patch_store_cold", repeats, read_cold, lambda name: _drop(files[name])))
    lines.append(_opened(folder / "million", repeats))
    return lines


def _opened(folder: Path, repeats: int) -> dict[str, object]:
    """Opens a store that has its columns and none of its pixels, which opening does not read."""
    count, images = 1_000_000, 85_000
    output, zeros = OutputFolder(UPath(folder)), np.zeros(count, np.int32)
    image = (np.arange(count) * images // count).astype(np.int32)
    positions = PatchPositions(image, zeros, zeros, np.zeros(count, np.uint8))
    PatchWriter(output, positions, SIDE, [f"{number:07d}.png" for number in range(images)], {})
    made, times, before = output.commit({"metadata": {}}), [], _resident()
    for _ in range(repeats):
        watch = Stopwatch()
        with watch.part("open"):
            reader = PatchReader(made)
        times.append(watch.wall["open"] * 1000)
    grown = (_resident() - before) / 1000
    print(f"open: {len(reader)} patches in {median(times):.1f} ms, {grown:.0f} MB", flush=True)
    return {"name": "patch_store_open", "milliseconds": round(median(times), 1), "limit": 50,
            "megabytes": round(grown), "repeats": repeats}  # fmt: skip


def _resident() -> int:
    """Memory of this process in kB."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])


def write_ours(patches: np.ndarray, folder: Path) -> object:
    """The patches as a committed output."""
    output, count = OutputFolder(UPath(folder)), len(patches)
    zeros = np.zeros(count, np.int32)
    positions = PatchPositions(zeros, zeros, zeros, np.zeros(count, np.uint8))
    writer = PatchWriter(output, positions, SIDE, ["photo"], {})
    for number, shard in enumerate(writer.shards):
        writer.write(number, patches[shard.start : shard.stop])
    return output.commit({"metadata": {}})


def write_lmdb(patches: np.ndarray, folder: Path) -> None:
    """The patches as PNG in one transaction for each 256."""
    with lmdb.open(str(folder), map_size=1 << 33) as database:
        for start in range(0, len(patches), 256):
            with database.begin(write=True) as transaction:
                for index in range(start, min(start + 256, len(patches))):
                    level = [cv2.IMWRITE_PNG_COMPRESSION, 1]
                    _, data = cv2.imencode(".png", patches[index][..., ::-1], level)
                    transaction.put(str(index).encode(), data.tobytes())


def _read_lmdb(database: lmdb.Environment, index: int) -> np.ndarray:
    with database.begin(write=False) as transaction:
        data = np.frombuffer(transaction.get(str(index).encode()), np.uint8)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _compare(
    name: str,
    repeats: int,
    work: Callable[[str, int], None],
    before: Callable[[str], None] | None = None,
) -> dict[str, object]:
    times: dict[str, list[Stopwatch]] = {PEER: [], OURS: []}
    for repeat, which in turns((PEER, OURS), repeats):
        if before:
            before(which)
        watch = Stopwatch()
        with watch.part(name):
            work(which, repeat)
        times[which].append(watch)
    ratios = paired(times, "cpu")
    print(f"{name}: {_seconds(times[PEER])} s by {PEER}, {_seconds(times[OURS])} s by ours (CPU)")
    note(f"{name}: {[round(ratio, 2) for ratio in ratios]}")
    return _line(name, median(ratios), "CPU seconds", repeats)


def _seconds(watches: Sequence[Stopwatch]) -> float:
    return round(median(sum(watch.cpu.values()) for watch in watches), 3)


def _line(name: str, ratio: float, unit: str, repeats: int) -> dict[str, object]:
    return {"name": name, "ratio": round(ratio, 3), "peer": PEER, "unit": unit, "repeats": repeats}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def _drop(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


if __name__ == "__main__":
    sys.exit(main())
