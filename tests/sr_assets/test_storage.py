"""Output folders: what a kill leaves, what the data version covers, how an output appears."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from upath import UPath

from sr_assets.building_lock import LOCK
from sr_assets.output_folder import OutputFolder
from sr_assets.storage import MARKER, open_output, root_of, why_not_whole


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_an_output_appears_whole_and_only_on_commit(tmp_path):
    final = UPath(tmp_path / "asset" / "0123")
    folder = OutputFolder(final)
    folder.write_bytes("deep/er/a.bin", b"a")
    folder.write_json("b.json", {"z": 1, "a": "é"})
    (folder.work / "checkpoint").write_bytes(b"scratch")
    assert open_output(final) is None and not Path(str(final)).exists()
    output = folder.commit({"metadata": {"count": 2}})
    assert names(Path(str(final))) == {"deep/er/a.bin", "b.json", MARKER}
    assert output.metadata == {"count": 2}
    assert output.read_json("b.json") == {"a": "é", "z": 1}
    assert [p.name for p in Path(str(final)).parent.iterdir()] == ["0123"]
    assert open_output(final) == output


def test_a_root_may_start_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(root_of("demo", "~/srd")) == str(tmp_path / "srd")


def test_an_output_with_a_missing_or_shortened_file_is_none(tmp_path):
    for damage in (Path.unlink, lambda p: p.write_bytes(b"12")):
        folder = OutputFolder(UPath(tmp_path / "x"))
        folder.write_bytes("a", b"123")
        output = folder.commit({"metadata": {}})
        damage(Path(str(output.path)) / "a")
        assert open_output(output.path) is None
    folder = OutputFolder(UPath(tmp_path / "x"))  # a broken one is replaced
    folder.write_bytes("b", b"1")
    assert names(Path(str(folder.commit({"metadata": {}}).path))) == {"b", MARKER}


def test_the_data_version_is_of_content_alone(tmp_path):
    def version(provenance: bytes, content: bytes, order: int) -> str:
        folder = OutputFolder(UPath(tmp_path / f"{provenance}{content}{order}"))
        writes = [("p.json", provenance, False), ("a", content, True), ("b", b"b", True)]
        for name, data, is_content in writes[::order]:
            folder.write_bytes(name, data, content=is_content)
        return folder.commit({"metadata": {"seconds": order}}).data_version

    assert version(b"mon", b"a", 1) == version(b"tue", b"a", -1)
    assert version(b"mon", b"a", 1) != version(b"mon", b"A", 1)


def test_the_data_version_covers_names(tmp_path):
    versions = set()
    for name in ("a", "b"):
        folder = OutputFolder(UPath(tmp_path / name))
        folder.write_bytes(name, b"same")
        versions.add(folder.data_version())
    assert len(versions) == 2


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "a/../b", "", ".", "a//b", "./a", ".work/x", ".journal.jsonl"],
)
def test_a_name_that_is_no_file_inside_the_folder_is_refused(tmp_path, name):
    folder = OutputFolder(UPath(tmp_path / "out"))
    with pytest.raises(ValueError, match="folder"):
        folder.write_bytes(name, b"x")
    assert {Path(n).name for n in names(tmp_path)} == {LOCK, ".journal.jsonl"}


def test_a_link_that_leads_out_is_refused(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "out"))
    (tmp_path / "elsewhere").mkdir()
    (folder.path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leave"):
        folder.write_bytes("link/x", b"x")


def test_taking_a_file_twice_leaves_one_untouched_copy(tmp_path):
    source = tmp_path / "photo.png"
    source.write_bytes(b"pixels")
    folder = OutputFolder(UPath(tmp_path / "out"))
    first = folder.take(source, "files/photo.png")
    assert folder.take(UPath(source), "files/photo.png") == first
    assert {n for n in names(folder.path) if n.startswith("files")} == {"files/photo.png"}
    assert source.stat().st_nlink == 2  # a hard link costs no space
    output = folder.commit({"metadata": {}})
    assert output.read_bytes("files/photo.png") == b"pixels"
    assert output.marker["files"]["files/photo.png"]["sha256"] == first


def test_a_copied_file_stays_when_its_source_is_edited_in_place(tmp_path):
    source = tmp_path / "photo.png"
    source.write_bytes(b"pixels")
    folder = OutputFolder(UPath(tmp_path / "out"))
    digests = {folder.take(source, "copied", link=False), folder.take(source, "linked")}
    assert len(digests) == 1
    output = folder.commit({"metadata": {}})
    assert why_not_whole(output.path) is None
    source.write_bytes(b"others!")
    assert output.read_bytes("copied") == b"pixels" and output.read_bytes("linked") == b"others!"
    assert open_output(output.path) is None
    assert why_not_whole(output.path) == f"linked of its output {output.path.name} went or changed"
    (output.path / "copied").unlink()
    assert str(why_not_whole(output.path)).startswith("copied and 1 more of its output ")
    assert why_not_whole(output.path / "nothing") is None


@pytest.mark.parametrize("marker", [b"\0" * 40, b"[]", b'{"files": {"x"', b"{}", b"\xff\xfe"])
def test_a_damaged_marker_is_no_output_and_is_told(tmp_path, marker):
    folder = OutputFolder(UPath(tmp_path / "out"))
    folder.write_bytes("x/y", b"pixels")
    output = folder.commit({"metadata": {}})
    whole = (output.path / MARKER).read_bytes()
    (output.path / MARKER).write_bytes(marker)
    assert open_output(output.path) is None
    assert why_not_whole(output.path) == f"srd.json of its output {output.path.name} is damaged"
    (output.path / MARKER).write_bytes(whole)
    (output.path / "x" / "y").unlink()
    (output.path / "x").rmdir()
    (output.path / "x").write_bytes(b"a file where a folder was")
    assert open_output(output.path) is None
    assert str(why_not_whole(output.path)).startswith("x/y of its output")


def test_a_remote_file_is_taken_by_copy(tmp_path):
    source = UPath("memory://test-storage-take/photo.png")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(b"pixels")
    folder = OutputFolder(UPath(tmp_path / "out"))
    folder.take(source, "photo.png")
    assert (folder.path / "photo.png").read_bytes() == b"pixels"


def test_discarding_removes_the_file_for_good(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "out"))
    folder.write_bytes("a", b"a")
    folder.write_bytes("b", b"b")
    folder.discard("a")
    again = OutputFolder(folder.final)
    assert not again.finished("a") and again.finished("b")
    assert set(again.commit({"metadata": {}}).marker["files"]) == {"b"}


KILLED = """
import os, signal, sys
from upath import UPath
from sr_assets.output_folder import OutputFolder
where, moment = sys.argv[1:]
folder = OutputFolder(UPath(where))
folder.write_bytes("done", b"whole")
folder.write_bytes("twice", b"old!")
(folder.work / "checkpoint").write_bytes(b"step 7")
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "before-rename":
    folder._put = die
elif moment == "before-journal":
    folder._enter = die
elif moment == "in-journal":
    def torn(line):
        with (folder.path / ".journal.jsonl").open("a") as file:
            file.write('{"name": "twi')
        die()
    folder._append = torn
elif moment == "in-commit":
    from pathlib import Path
    import sr_assets.storage
    folder.write_bytes("twice", b"new!")
    replace = Path.replace
    Path.replace = lambda a, b: die() if a == folder.path else replace(a, b)
    folder.commit({"metadata": {}})
folder.write_bytes("twice", b"new!")
"""


@pytest.mark.parametrize("moment", ["before-rename", "before-journal", "in-journal", "in-commit"])
def test_a_killed_build_goes_on_from_what_was_whole(tmp_path, moment):
    where = tmp_path / "asset" / "0123"
    run = subprocess.run([sys.executable, "-c", KILLED, str(where), moment], check=False)
    assert run.returncode == -signal.SIGKILL
    assert open_output(UPath(where)) is None
    folder = OutputFolder(UPath(where))
    assert folder.finished("done")
    assert (folder.work / "checkpoint").read_bytes() == b"step 7"
    assert not any(name.endswith(".tmp") for name in names(folder.path))
    if folder.finished("twice"):  # then the journal's digest is that of the bytes
        data = (folder.path / "twice").read_bytes()
        plain = OutputFolder(UPath(tmp_path / "plain"))
        assert folder.files["twice"]["sha256"] == plain.write_bytes("x", data)
    folder.write_bytes("twice", b"new!")
    again = OutputFolder(UPath(where))  # killed once more, right here
    assert again.finished("twice") and again.finished("done")
    undisturbed = OutputFolder(UPath(tmp_path / "undisturbed"))
    undisturbed.write_bytes("done", b"whole")
    undisturbed.write_bytes("twice", b"new!")
    assert again.commit({}).marker == undisturbed.commit({}).marker


def test_a_file_that_shrank_after_the_journal_entry_is_not_finished(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "out"))
    folder.write_bytes("a", b"1234")
    (folder.path / "a").write_bytes(b"")  # what a power cut may leave
    again = OutputFolder(folder.final)
    assert not again.finished("a") and not (again.path / "a").exists()


def test_threads_write_into_one_folder(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "out"))
    threads = [
        threading.Thread(target=folder.write_bytes, args=(f"{i % 10}/{i}", bytes([i])))
        for i in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(OutputFolder(folder.final).files) == 40


def test_a_remote_output_is_built_here_and_its_marker_comes_last(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    final = UPath("memory://test-storage/asset/0123")
    final.mkdir(parents=True, exist_ok=True)
    (final / MARKER).write_bytes(b'{"files": {"a": {"size": 9}}}')  # of a broken earlier upload
    folder = OutputFolder(final)
    assert folder.path.is_relative_to(tmp_path)
    folder.write_bytes("deep/a", b"a")
    folder.write_bytes("b", b"bb")
    assert not (final / "deep/a").exists()
    order = []
    store = type(final.fs)

    def watch(sending: str, at: int) -> None:
        write = getattr(store, sending)

        def watched(fs, *args, **kwargs):
            order.append((args[at].rpartition("/")[2], (final / MARKER).exists()))
            return write(fs, *args, **kwargs)

        monkeypatch.setattr(store, sending, watched)

    watch("put_file", 1)
    watch("pipe_file", 0)
    output = folder.commit({"metadata": {}})
    assert sorted(order[:2]) == [("a", False), ("b", False)]  # together
    assert order[2:] == [(MARKER, False)]
    assert output.read_bytes("deep/a") == b"a"
    assert open_output(final) == output
    assert not folder.path.exists()


def test_a_remote_build_is_found_again_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    final = UPath("memory://test-storage/asset/4567")
    OutputFolder(final).write_bytes("a", b"a")
    assert OutputFolder(final).finished("a")
    assert not OutputFolder(UPath("memory://test-storage/asset/89ab")).finished("a")


def test_the_journal_is_json_lines(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "out"))
    folder.write_bytes("a", b"a")
    lines = (folder.path / ".journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["a"]
