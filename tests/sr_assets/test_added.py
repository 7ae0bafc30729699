"""Datasets that are registered from several sides at once."""

import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from sr_assets.lineage.added import register
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.loading import added_datasets_file
from sr_assets.recipe.models import Recipe

_EACH = 15


def _recipe(root: str) -> Recipe:
    source = {"kind": "builtin", "images": ["astronaut.png"]}
    return Recipe.model_validate({"name": "x", "root": root, "datasets": {"d": {"source": source}}})


def _register_some(root: str, who: str, start: Barrier) -> None:
    recipe = _recipe(root)
    start.wait(600)
    for number in range(_EACH):
        register(recipe, f"{who}{number}", root, benchmark=False)


def test_processes_that_register_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [
        context.Process(target=_register_some, args=(str(tmp_path), who, start)) for who in "abc"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    added = json.loads((tmp_path / "added_datasets.json").read_bytes())["datasets"]
    assert set(added) == {f"{who}{number}" for who in "abc" for number in range(_EACH)}


def test_a_name_that_was_taken_since_the_recipe_was_loaded_is_refused(tmp_path: Path) -> None:
    recipe, late = _recipe(str(tmp_path)), _recipe(str(tmp_path))
    register(recipe, "holiday", str(tmp_path), benchmark=True)
    with pytest.raises(StageError, match="'holiday' is already a dataset or benchmark"):
        register(late, "holiday", str(tmp_path), benchmark=False)


def test_a_root_on_an_object_store_is_locked_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "cache"))
    recipe = _recipe(f"memory://{tmp_path.name}/root")
    names = [f"n{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: register(recipe, name, str(tmp_path), benchmark=False), names))
    added = json.loads(added_datasets_file(recipe).read_bytes())["datasets"]
    assert set(added) == set(names)
    assert list((tmp_path / "cache" / "locks").iterdir())
