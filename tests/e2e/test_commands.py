"""The commands that look at what is there: path, verify, and the help of all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_project import SRD, Project

from sr_assets.cli import main


@pytest.mark.parametrize("command", list(main.commands))
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = subprocess.run([*SRD, command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage:") and "Example" in done.stdout


@pytest.mark.parametrize("words", [["nonsense"], ["build", "--nonsense"], ["add-dataset", "x"]])
def test_wrong_words_end_with_code_2(words: list[str]) -> None:
    done = subprocess.run([*SRD, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Error:" in done.stderr and done.stdout == ""


def test_path_prints_the_folder_of_the_current_output(built: Project) -> None:
    folder = Path(built.srd("path", "expert/edsr/cache", "other").stdout.removesuffix("\n"))
    assert folder.parent == built.root / "expert" / "edsr" / "cache" / "other"
    marker = json.loads((folder / "srd.json").read_text())
    assert marker["asset"] == "expert/edsr/cache" and marker["partition"] == "other"
    found = built.srd_json("path", "evaluation/leaderboard")
    leaderboard = Path(found["path"])
    assert (leaderboard / "leaderboard.json").is_file()
    assert (
        found["data_version"] == json.loads((leaderboard / "srd.json").read_text())["data_version"]
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("expert/edsr/cache",), "needs one of its partitions: photos, other"),
        (("expert/nobody/cache",), "no asset 'expert/nobody/cache'; there are: bronze/images"),
        (("gold/pairs", "other"), "gold/pairs[other] has not been made: run `srd build"),
    ],
)
def test_path_of_nothing_is_one_line(empty: Project, words: tuple[str, ...], said: str) -> None:
    message = empty.srd("path", *words, code=1).stderr
    assert message.startswith("srd: ") and said in message and message.count("\n") == 1


def test_verify_finds_nothing_in_a_fresh_project(built: Project) -> None:
    found = built.srd_json("verify", "--sample", "2")
    assert set(found) == set(built.status())
    assert set(map(tuple, found.values())) == {()}


def test_verify_names_a_damaged_shard(project: Project) -> None:
    cache = Path(project.srd("path", "expert/edsr/cache", "other").stdout.strip())
    shard = cache / "cache.zarr" / "sr" / "c" / "1" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 0x10
    shard.write_bytes(data)
    name = "expert/edsr/cache[other]"
    found = project.srd_json("verify", name, "--sample", "0", code=1)
    assert {n for n, lines in found.items() if lines} == {name}
    relative = str(shard.relative_to(cache))
    assert all(relative in line for line in found[name])
    told = project.srd("verify", name, "--sample", "0", code=1)
    assert relative in told.stdout and told.stdout.splitlines()[-1].endswith(
        "as they were written."
    )


def test_listing_commands_do_not_load_torch(built: Project) -> None:
    """Torch takes seconds to import; none of these runs a network."""
    script = (
        "import sys\nfrom sr_assets.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    command = (sys.executable, "-W", "ignore", "-c", script)
    watched = Project(built.folder, command)
    for words in ("status", "build --dry-run", "path evaluation/leaderboard", "releases"):
        assert watched.srd(*words.split()).stderr.splitlines()[-1] == "False", words
