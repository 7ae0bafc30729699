"""Code versions: what counts as a change of a module and which modules a stage uses."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from sr_assets.lineage import code_version as cv
from sr_assets.lineage.stage import Stage
from sr_models.registry import modules_of


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A throw-away package that counts as ours."""
    folder = tmp_path / "ourpackage"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Nothing but a docstring."""\n')
    (folder / "entry.py").write_text(
        "from ourpackage import near\n\ndef run():\n    from ourpackage.far import value\n"
        "    return value\n"
    )
    (folder / "near.py").write_text("x = 1\n")
    (folder / "far.py").write_text("value = 2\n")
    (folder / "other.py").write_text("y = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cv, "_OURS", ("ourpackage",))
    for name in [n for n in sys.modules if n.split(".")[0] == "ourpackage"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    cv._source_path.cache_clear()
    return folder


def digests() -> dict[str, str]:
    cv._read.cache_clear()
    return cv.module_digests(["ourpackage.entry"])


def test_imports_are_followed_wherever_they_stand(package: Path) -> None:
    assert set(digests()) == {"ourpackage.entry", "ourpackage.near", "ourpackage.far"}


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = digests()
    (package / "far.py").write_text('"""Far."""\n\n# a reason\nvalue  =  (\n    2\n)\n')
    assert digests() == before


def test_a_changed_constant_counts_in_its_module_only(package: Path) -> None:
    before = digests()
    (package / "far.py").write_text("value = 3\n")
    after = digests()
    assert {name for name in after if after[name] != before[name]} == {"ourpackage.far"}


def test_a_module_that_is_not_imported_does_not_count(package: Path) -> None:
    before = digests()
    (package / "other.py").write_text("y = 4\n")
    assert digests() == before


def test_type_checking_imports_do_not_count(package: Path) -> None:
    (package / "near.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ourpackage import other\nx = 1\n"
    )
    assert "ourpackage.other" not in digests()


def test_missing_entry_is_an_error(package: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no such module of ours"):
        cv.module_digests(["ourpackage.nowhere"])


def test_settings_and_modules_both_enter_the_version(package: Path) -> None:
    def stage(settings: dict[str, object], module: str) -> Stage:
        return Stage("a/b", "", "g", lambda context: {}, (module,), settings=settings)

    versions = {
        cv.code_version(stage({"x": 1}, "ourpackage.near")),
        cv.code_version(stage({"x": 2}, "ourpackage.near")),
        cv.code_version(stage({"x": 1}, "ourpackage.far")),
    }
    assert len(versions) == 3
    assert cv.code_version(stage({"x": 1}, "ourpackage.near")) in versions


def test_what_is_imported_late_is_the_code_that_was_there_at_the_start(package: Path) -> None:
    digests()
    cv.load_code(["ourpackage.entry"])
    (package / "far.py").write_text("value = 3\n")
    assert importlib.import_module("ourpackage.entry").run() == 2


@pytest.mark.parametrize(
    "name",
    ["paragonsr_nano", "paragonsr2_stream", "paragonsr2_pro", "aether_small", "aether3_tiny",
     "realplksr_s"],
)  # fmt: skip
def test_all_that_a_network_is_made_of_is_in_its_code_version(name: str) -> None:
    script = (
        "import sys, torch\n"
        "from sr_models.registry import get_architecture\n"
        "with torch.device('meta'):\n"
        f"    get_architecture({name!r})()\n"
        "print(*(m for m in sys.modules if m.split('.')[1:2] in (['students'], ['layers'])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    used = {m for m in done.stdout.split() if m.count(".") > 1}  # packages hold a docstring alone
    assert used and used <= set(cv.module_digests(modules_of(name, {})))
