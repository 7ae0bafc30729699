"""Bronze, run as a stage: what is taken, what is refused, and that nothing depends on chance."""

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from upath import UPath

from sr_assets.assets import bronze, intake
from sr_assets.assets.bronze import load_images, read_image
from sr_assets.lineage.stage import Ref, StageContext, StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.report import dataset_page
from sr_assets.sources import files
from sr_assets.sources.finding import fingerprint
from sr_assets.storage import Output
from sr_assets.stores.manifest import ManifestRow, from_parquet, to_parquet


def recipe(source: dict[str, Any], **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "t", "datasets": {"photos": {"source": source}}, **sections}
    )


def folder(path: Path, *include: str, **sections: Any) -> Recipe:
    source: dict[str, Any] = {"kind": "folder", "path": str(path)}
    return recipe(source | ({"include": include} if include else {}), **sections)


class Run:
    """One run of the stage on a dataset, with what it logged."""

    def __init__(self, made: Recipe, at: Path, partition: str = "photos") -> None:
        self.logged: list[str] = []
        self.advanced = 0
        self.folder = OutputFolder(UPath(at))

        @contextmanager
        def bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
            def advance(count: int) -> None:
                self.advanced += count

            yield advance

        def observe(values: Mapping[str, float]) -> None:
            raise AssertionError("bronze draws no curves")

        (self.stage,) = bronze.stages(made)
        context = StageContext(
            made, Ref(self.stage.key, partition), self.folder, {}, self.logged.append, observe, bar
        )
        self.metadata = self.stage.run(context)

    def commit(self) -> Output:
        return self.folder.commit({"metadata": self.metadata})


def manifest(output: Output) -> list[ManifestRow]:
    return from_parquet(output.read_bytes("manifest.parquet"))


def picture(seed: int, side: int = 8) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three good photos, one deep down, one twice, and every kind of trouble."""
    root = tmp_path / "photos"
    (root / "b" / "c" / "d").mkdir(parents=True)
    picture(1).save(root / "z.png")
    picture(2).save(root / "b" / "Y.PNG")
    picture(3).save(root / "b" / "c" / "d" / "x.tiff")
    (root / "b" / "same.png").write_bytes((root / "z.png").read_bytes())
    (root / "broken.png").write_bytes((root / "z.png").read_bytes()[:90])
    (root / "empty.jpg").touch()
    picture(5, 600).save(root / "huge.bmp")
    (root / "notes.txt").write_text("no image")
    (root / "README").write_text("no image")
    (root / ".hidden.png").write_bytes((root / "z.png").read_bytes())
    (root / ".cache").mkdir()
    picture(6).save(root / ".cache" / "thumb.png")
    return root


def test_what_is_taken_and_what_is_not(photos: Path, tmp_path: Path) -> None:
    run = Run(folder(photos, bronze={"max_megapixels": 0.1}), tmp_path / "out")
    output = run.commit()
    rows = manifest(output)
    assert [(row.path, row.status) for row in rows] == [
        ("b/Y.PNG", "ok"),
        ("b/c/d/x.tiff", "ok"),
        ("b/same.png", "ok"),
        ("broken.png", "quarantined"),
        ("empty.jpg", "quarantined"),
        ("huge.bmp", "quarantined"),
        ("z.png", "quarantined"),
    ]
    reasons = {row.path: row.reason for row in rows}
    assert reasons["z.png"] == "duplicate of b/same.png"
    assert reasons["empty.jpg"] == "empty file"
    assert reasons["broken.png"].startswith("broken: ")
    assert reasons["huge.bmp"] == "601x600 is 0.4 megapixels, more than 0.1"
    assert load_images(output) == [row for row in rows if row.status == "ok"]
    for row in rows:
        source = (photos / row.path).read_bytes()
        assert row.sha256 == hashlib.sha256(source).hexdigest()
        assert row.bytes == len(source)
        taken = Path(str(output.path)) / "files" / row.path
        assert taken.exists() == row.ok
        if row.ok:
            assert taken.read_bytes() == source
            assert (row.width, row.height, row.mode) == (9, 8, "RGB")
            np.testing.assert_array_equal(
                read_image(output, row, 0.1), Image.open(photos / row.path)
            )
    assert run.metadata["images"] == 3
    assert run.metadata["quarantined"] == 4
    assert run.metadata["bytes"] == sum(row.bytes for row in rows if row.ok)
    assert run.metadata["ignored_files"] == 2
    assert "| z&#46;png | duplicate of b&#47;same&#46;png |" in run.metadata["quarantine"]["md"]
    assert run.advanced == 7
    assert any("no extension 1" in line and ".txt 1" in line for line in run.logged)
    assert "quarantined empty.jpg: empty file" in run.logged


def test_content_alone_makes_the_data_version(photos: Path, tmp_path: Path) -> None:
    made = [
        Run(folder(photos, compute={"workers": workers}), tmp_path / f"out{workers}").commit()
        for workers in (1, 7)
    ]
    copy = tmp_path / "elsewhere"
    for file in sorted(photos.rglob("*"), reverse=True):
        if file.is_file():
            target = copy / file.relative_to(photos)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
            os.utime(target, (1, 1))
    made.append(Run(folder(copy), tmp_path / "moved").commit())
    assert len({output.data_version for output in made}) == 1
    (copy / "b" / "same.png").rename(copy / "b" / "other.png")
    assert Run(folder(copy), tmp_path / "renamed").commit().data_version != made[0].data_version


def test_a_killed_build_is_taken_up(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(folder(photos), tmp_path / "whole").commit()
    take, seen = OutputFolder.take, 0

    def killed(self: OutputFolder, *args: Any, **kwargs: Any) -> str:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise KeyboardInterrupt
        return take(self, *args, **kwargs)

    monkeypatch.setattr(OutputFolder, "take", killed)
    made = folder(photos, compute={"workers": 1})
    with pytest.raises(KeyboardInterrupt):
        Run(made, tmp_path / "out")
    again: list[str] = []

    def counted(self: OutputFolder, source: Path, name: str, **kwargs: Any) -> str:
        again.append(name)
        return take(self, source, name, **kwargs)

    monkeypatch.setattr(OutputFolder, "take", counted)
    output = Run(made, tmp_path / "out").commit()
    assert output.data_version == whole.data_version
    assert manifest(output) == manifest(whole)
    assert "files/b/Y.PNG" not in again
    assert "files/z.png" in again


def test_a_torn_line_of_the_journal_costs_one_image(photos: Path, tmp_path: Path) -> None:
    first = Run(folder(photos), tmp_path / "out")
    (journal,) = first.folder.work.glob("*.jsonl")
    journal.write_text(journal.read_text()[:-40])
    output = Run(folder(photos), tmp_path / "out").commit()
    assert manifest(output) == manifest(Run(folder(photos), tmp_path / "fresh").commit())


def test_the_page_counts_sizes_and_shows_a_sample(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for seed in range(30):
        picture(seed, 300 if seed < 4 else 20).save(root / f"{seed:02}.png")
    run = Run(folder(root), tmp_path / "out")
    html = run.commit().read_bytes("page.html").decode()
    assert html.count("<figure>") == 24 and "24 of 30 images" in html
    sizes = run.metadata["sizes"]["md"]
    assert "| below 256 | 26 |" in sizes and "| 256 to 512 | 4 |" in sizes
    assert run.metadata["thumbnails"]["md"].startswith("![thumbnails](data:image/jpeg;base64,")
    assert "http" not in html.replace("http-equiv", "")
    assert run.metadata["page"] == {"path": str(run.folder.final / "page.html")}
    assert "quarantine" not in run.metadata


def test_what_a_killed_build_took_and_the_folder_lost_is_left_out(
    photos: Path, tmp_path: Path
) -> None:
    Run(folder(photos), tmp_path / "out")
    (photos / "b" / "Y.PNG").unlink()
    output = Run(folder(photos), tmp_path / "out").commit()
    assert "files/b/Y.PNG" not in output.marker["files"]
    fresh = Run(folder(photos), tmp_path / "fresh").commit()
    assert output.data_version == fresh.data_version


def test_include_matches_the_relative_path(photos: Path, tmp_path: Path) -> None:
    run = Run(folder(photos, "b/*.PNG", "b/c/*"), tmp_path / "out")
    assert [row.path for row in manifest(run.commit())] == ["b/Y.PNG", "b/c/d/x.tiff"]


def test_links(photos: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    picture(9).save(outside / "far.png")
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    (photos / "b" / "self").symlink_to("self")
    (photos / "b" / "self.png").symlink_to("self.png")
    (photos / "far.png").symlink_to(outside / "far.png")
    (photos / "away").symlink_to(outside, target_is_directory=True)
    (photos / "dangling.png").symlink_to("nothing.png")
    (photos / "a.png").symlink_to("b/Y.PNG")
    run = Run(folder(photos), tmp_path / "out")
    output = run.commit()
    assert run.metadata["links_not_followed"] == 5
    rows = {row.path: row for row in manifest(output)}
    assert rows["b/Y.PNG"].reason == "duplicate of a.png"
    assert not {"far.png", "away/far.png", "dangling.png", "loop/z.png"} & set(rows)
    link = tmp_path / "entry"
    link.symlink_to(photos, target_is_directory=True)
    again = Run(folder(link), tmp_path / "again").commit()
    assert again.data_version == output.data_version, "the folder itself may be a link"


def test_outputs_below_the_source_are_no_photos(photos: Path, tmp_path: Path) -> None:
    before = fingerprint(folder(photos).datasets["photos"].source)
    Run(folder(photos), photos / "data" / "out").commit()
    assert fingerprint(folder(photos).datasets["photos"].source) == before


def test_names_that_cannot_be_kept(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    picture(1).save(root / "größe 1.png")
    raw = os.fsencode(root) + b"/\xff.png"
    try:
        Path(os.fsdecode(raw)).write_bytes((root / "größe 1.png").read_bytes())
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (root / ("n" * 250 + ".png")).write_bytes((root / "größe 1.png").read_bytes())
    rows = manifest(Run(folder(root), tmp_path / "out").commit())
    assert {row.path[:9]: row.ok for row in rows} == {
        "größe 1.p": True,
        "n" * 9: False,
        "\\xff.png": False,
    }
    assert any("UTF-8" in row.reason for row in rows)


def test_a_pipe_is_not_waited_for(photos: Path, tmp_path: Path) -> None:
    os.mkfifo(photos / "pipe.png")
    run = Run(folder(photos), tmp_path / "out")
    assert run.metadata["ignored_files"] == 3


def test_a_folder_that_cannot_be_listed_is_told(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if isinstance(path, str | Path) and Path(path).name == "c":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(files.os, "scandir", denied)
    rows = {row.path: row for row in manifest(Run(folder(photos), tmp_path / "out").commit())}
    assert rows["b/c"].reason == "folder cannot be listed: permission denied"
    assert rows["b/Y.PNG"].ok


def test_missing_empty_and_useless_sources_say_so(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"datasets\.photos\.source\.path: folder .* not exist"):
        Run(folder(tmp_path / "gone"), tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match="is a file"):
        Run(folder(tmp_path / "file"), tmp_path / "out")
    root = tmp_path / "photos"
    root.mkdir()
    (root / "notes.txt").touch()
    with pytest.raises(StageError, match=r"no image in .*\(1 other files\)"):
        Run(folder(root), tmp_path / "out")
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(b"nonsense")
    with pytest.raises(StageError, match=r"none of 2 images.*a\.png: not a PNG.*b\.png: not a"):
        Run(folder(root), tmp_path / "out")


def test_running_out_of_memory_names_the_file(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(intake, "inspect", exhausted)
    with pytest.raises(StageError, match=r"Y\.PNG: out of memory.*compute\.workers"):
        Run(folder(photos, compute={"workers": 1}), tmp_path / "out")


# ---------------------------------------------------------------- what decides freshness


def test_the_fingerprint_follows_the_files(photos: Path, tmp_path: Path) -> None:
    (stage,) = bronze.stages(folder(photos))
    before = stage.outside("photos")
    stat = (photos / "z.png").stat()
    assert before["z.png"] == f"{stat.st_size}-{stat.st_mtime_ns}"
    assert set(before) >= {"b/c/d/x.tiff", "broken.png"}
    assert not {"notes.txt", ".hidden.png"} & set(before)
    assert stage.outside("photos") == before
    picture(8).save(photos / "new.png")
    assert set(stage.outside("photos")) - set(before) == {"new.png"}
    os.utime(photos / "z.png", ns=(1, 1))
    assert stage.outside("photos")["z.png"] != before["z.png"]
    (missing,) = bronze.stages(folder(tmp_path / "gone"))
    assert missing.outside("photos") == {str(tmp_path / "gone"): "missing"}
    assert missing.outside(None) == {}


def test_the_recipe_slice_is_that_of_the_partition(tmp_path: Path) -> None:
    builtin = {"kind": "builtin", "images": ["coffee.png"]}
    made = folder(tmp_path, benchmarks={"Test": {"source": builtin}})
    (stage,) = bronze.stages(made)
    assert stage.partition_settings("photos") == {
        "datasets.photos.source": {"kind": "folder", "path": str(tmp_path), "include": ["*"]}
    }
    assert stage.partition_settings("Test") == {
        "benchmarks.Test.source": {"kind": "builtin", "images": ["coffee.png"]}
    }
    assert stage.settings == {
        "bronze.max_megapixels": 120.0,
        "page template": dataset_page.template_digest(),
    }
    with pytest.raises(StageError, match="no dataset or benchmark 'else'; there are: photos, Test"):
        stage.partition_settings("else")


# ---------------------------------------------------------------- builtin


def test_builtin_photos(tmp_path: Path) -> None:
    made = recipe({"kind": "builtin", "images": ["rocket.jpg", "coffee.png", "rocket.jpg"]})
    output = Run(made, tmp_path / "out").commit()
    rows = load_images(output)
    assert [(row.path, row.width, row.height) for row in rows] == [
        ("coffee.png", 600, 400),
        ("rocket.jpg", 640, 427),
    ]
    assert read_image(output, rows[0], 120).shape == (400, 600, 3)
    (stage,) = bronze.stages(made)
    assert stage.outside("photos") == {row.path: str(row.bytes) for row in rows}


def test_builtin_names_are_checked(tmp_path: Path) -> None:
    unknown = recipe({"kind": "builtin", "images": ["mona_lisa.png"]})
    with pytest.raises(StageError, match=r"no image 'mona_lisa\.png'; there are: astronaut\.png, "):
        Run(unknown, tmp_path / "out")
    (stage,) = bronze.stages(unknown)
    assert stage.outside("photos") == {"mona_lisa.png": "missing"}
    for name in ("../README.txt", "data/coffee.png", "..\\coffee.png"):
        with pytest.raises(StageError, match="is a path"):
            Run(recipe({"kind": "builtin", "images": [name]}), tmp_path / "out")


def test_builtin_photos_are_found_without_importing_their_package() -> None:
    code = (
        "import sys; from sr_assets.sources.finding import fingerprint\n"
        "from sr_assets.recipe.sources import BuiltinSource as B\n"
        "assert fingerprint(B(kind='builtin', images=('coffee.png',)))['coffee.png'].isdigit()\n"
        "assert not {'skimage', 'torch', 'pyarrow'} & set(sys.modules)\n"
        "import sr_assets.assets.bronze\n"
        "assert not {'skimage', 'torch', 'pyarrow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- reading back


def test_a_changed_file_is_an_error_and_not_a_picture(photos: Path, tmp_path: Path) -> None:
    output = Run(folder(photos), tmp_path / "out").commit()
    rows = {row.path: row for row in load_images(output)}
    target = Path(str(output.path)) / "files" / "b" / "Y.PNG"
    buffer = io.BytesIO()
    picture(77).save(buffer, "PNG")
    target.write_bytes(buffer.getvalue())
    message = r"b/Y\.PNG changed since bronze was made; run `srd build bronze/images`"
    with pytest.raises(StageError, match=message):
        read_image(output, rows["b/Y.PNG"], 120)
    target.unlink()
    with pytest.raises(StageError, match=message):
        read_image(output, rows["b/Y.PNG"], 120)
    with pytest.raises(StageError, match="more than 1e-05; run"):
        read_image(output, rows["b/c/d/x.tiff"], 0.00001)
    (Path(str(output.path)) / "manifest.parquet").write_bytes(b"nonsense")
    with pytest.raises(StageError, match="no Parquet file"):
        load_images(output)


ROWS = st.lists(
    st.builds(
        ManifestRow,
        path=st.text(st.characters(codec="utf-8"), max_size=20),
        sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
        width=st.none() | st.integers(1, 2**31 - 1),
        height=st.none() | st.integers(1, 2**31 - 1),
        mode=st.none() | st.sampled_from(["RGB", "I;16"]),
        bytes=st.integers(0, 2**62),
        status=st.sampled_from(["ok", "quarantined"]),
        reason=st.text(st.characters(codec="utf-8"), max_size=20),
        phash=st.none() | st.text("0123456789abcdef", min_size=16, max_size=16),
        luma=st.none() | st.binary(min_size=4, max_size=4),
    ),
    max_size=5,
    unique_by=lambda row: row.path,
)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_the_manifest_comes_back_as_it_was(rows: list[ManifestRow]) -> None:
    data = to_parquet(rows)
    assert from_parquet(data) == rows
    assert to_parquet(rows) == data


def test_a_wrong_manifest_is_an_error() -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    row = ManifestRow("a", "", None, None, None, 0, "quarantined", "empty file")
    with pytest.raises(ValueError, match="two manifest rows for 'a'"):
        to_parquet([row, row])
    sink = io.BytesIO()
    parquet.write_table(pa.table({"path": ["a"]}), sink)
    with pytest.raises(ValueError, match=r"has columns \['path'\]"):
        from_parquet(sink.getvalue())


@pytest.mark.shared
def test_real_photos(shared_data: Path, tmp_path: Path) -> None:
    run = Run(folder(shared_data / "photos", "*_00?.jpg"), tmp_path / "out")
    rows = load_images(run.commit())
    assert len(rows) >= 10
    assert run.metadata["quarantined"] == 0
    assert all(max(row.width or 0, row.height or 0) in range(1120, 1281) for row in rows)


def test_a_benchmark_is_copied_and_a_dataset_linked(photos: Path, tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(photos)}
    both = recipe(source, benchmarks={"bench": {"source": source}})
    outputs = {
        name: Run(both, tmp_path / f"o_{name}", name).commit() for name in ("photos", "bench")
    }
    row = next(row for row in manifest(outputs["bench"]) if row.ok)
    edited = photos / row.path
    before = edited.read_bytes()
    with edited.open("r+b") as file:  # in place, and of the same size
        file.write(bytes(reversed(before)))
    assert read_image(outputs["bench"], row, 100.0).shape == (row.height, row.width, 3)
    with pytest.raises(StageError, match="changed since bronze was made"):
        read_image(outputs["photos"], row, 100.0)
