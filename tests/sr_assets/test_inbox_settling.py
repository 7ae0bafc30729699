"""When a folder counts as settled, and that a huge one is looked through piece by piece."""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_assets.automation import inbox, settling
from sr_assets.automation.settling import Progress, look_on
from sr_assets.recipe.models import Recipe

_LONG = 1e6  # seconds


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_a_folder_settles_with_its_second_equal_pass(tmp_path: Path) -> None:
    _touch(
        tmp_path, "a.png", "sub/b.JPG", "sub/.hidden.png", "notes.txt", "out/srd.json", "out/c.png"
    )
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "round").symlink_to(tmp_path)
    first, settled = look_on(tmp_path, Progress(), _LONG)
    assert (first.images, first.is_whole, settled) == (2, True, False)
    assert look_on(tmp_path, first, _LONG)[1]
    _touch(tmp_path, "sub/c.png")
    second, settled = look_on(tmp_path, first, _LONG)
    assert second.images == 3 and not settled
    os.utime(tmp_path / "a.png", (1, 1))
    assert not look_on(tmp_path, second, _LONG)[1]


def test_a_folder_without_images_never_settles(tmp_path: Path) -> None:
    _touch(tmp_path, "notes.txt")
    progress = Progress()
    for _ in range(3):
        progress, settled = look_on(tmp_path, progress, _LONG)
        assert not settled and progress.images == 0


_NAMES = st.lists(
    st.text("ab.é", min_size=1, max_size=3).filter(lambda part: not part.startswith(".")),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(st.sets(_NAMES.map(tuple), max_size=25), st.integers(1, 4))
def test_pieces_see_what_one_pass_sees(paths: set[tuple[str, ...]], piece: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        # A folder and an image cannot have one name: images end in .png, folders do not.
        _touch(folder, *("/".join(path) + ".png" for path in paths))
        whole, _ = look_on(folder, Progress(), _LONG)
        assert whole.images == len(paths)
        patch.setattr(settling, "_PIECE", piece + 1)  # a folder is shown again where a piece ends
        progress, settled, looks = Progress(), False, 0
        while not settled and looks < 200:
            progress, settled = look_on(folder, progress, -1.0)
            progress = _through_json(progress)
            looks += 1
            if progress.is_whole and progress.last is not None:
                assert progress.digest == whole.digest
                if not paths:
                    return
        assert settled


def _through_json(progress: Progress) -> Progress:
    cursor = json.dumps({"x": asdict(progress)})
    return inbox._read(cursor)["x"]


def test_a_huge_folder_settles_over_many_looks_and_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_PIECE", 10)
    source = {"kind": "builtin", "images": ["astronaut.png"]}
    recipe = Recipe.model_validate({"name": "x", "datasets": {"d": {"source": source}}})
    _touch(tmp_path, *(f"huge/{i // 20}/{i}.png" for i in range(95)), "small/1.png")
    before: dict[str, Progress] = {}
    settled: list[set[str]] = []
    said: list[str] = []
    for _ in range(30):
        found = inbox.look(tmp_path, recipe, before, seconds=0.0)
        settled.append(set(found.settled))
        said += found.said
        before = {name: done for name, done in found.progress.items() if name not in found.settled}
        if "huge" in found.settled:
            break
    assert settled[1] == {"small"}, "at its second look, whatever the huge one takes"
    assert "huge" in settled[-1] and 15 < len(settled) < 30
    assert any(line.endswith("images looked at so far") for line in said)
    assert "huge holds 95 images; it is taken when it changes no more" in said


def test_a_tick_says_no_more_than_can_be_read(tmp_path: Path) -> None:
    _touch(tmp_path, *(f"inbox/{i}.png" for i in range(50)))
    source = {"kind": "builtin", "images": ["astronaut.png"]}
    data = {"name": "x", "root": str(tmp_path / "out"), "datasets": {"d": {"source": source}}}
    recipe = Recipe.model_validate(data)
    sensor = inbox.inbox_sensor(
        lambda: recipe, str(tmp_path / "x.yaml"), dg.DefaultSensorStatus.STOPPED
    )
    with (
        dg.DagsterInstance.ephemeral(str(tmp_path)) as instance,
        dg.build_sensor_context(instance, cursor=json.dumps({"old": "digest"})) as context,
    ):
        result = sensor(context)
    said = str(result.skip_reason.skip_message)
    assert said.startswith("0.png is no folder: put it into one; ")
    assert said.endswith("; and 30 more") and said.count(";") == 20
