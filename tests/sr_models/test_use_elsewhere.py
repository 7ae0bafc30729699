"""The snippets of docs/use-elsewhere.md, run against registries called as the real ones are."""

import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_models.registry import modules

PAGE = Path(__file__).resolve().parents[2] / "docs" / "use-elsewhere.md"
SMALL: dict[str, dict[str, Any]] = {
    "realplksr_s": {"dim": 8, "n_blocks": 1},
    "paragonsr_nano": {},
    "paragonsr2_realtime": {},
    "aether3_mobile": {},
}


class Registry:
    """As in fvcore, from which traiNNer-redux (lower-case names) and neosr (exact names) have it.

    `register()` decorates, `register(obj)` takes at once; an object goes by its `__name__`, and a
    name can be taken once.
    """

    def __init__(self, lower: bool) -> None:
        self._lower, self._objects = lower, dict[str, Callable[..., Any]]()

    def _key(self, name: str) -> str:
        return name.lower() if self._lower else name

    def register(self, obj: Any = None, suffix: str | None = None) -> Any:
        def take(given: Any) -> Any:
            key = self._key(given.__name__) + (f"_{suffix}" if suffix else "")
            assert key not in self._objects, f"{key} was already registered"
            self._objects[key] = given
            return given

        return take if obj is None else take(obj) and None

    def get(self, name: str) -> Callable[..., Any]:
        return self._objects[self._key(name)]

    def __contains__(self, name: str) -> bool:
        return self._key(name) in self._objects

    def __iter__(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        return iter(self._objects.items())

    def keys(self) -> Any:
        return self._objects.keys()


def realplksr(**options: Any) -> None:
    raise AssertionError("this is the trainer's own network")


def snippets(title: str) -> list[str]:
    """The Python blocks of a section of the page."""
    sections = re.split(r"^#+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = (s for s in sections if s.startswith(title))
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture
def stand_in(monkeypatch) -> Callable[..., types.ModuleType]:
    """Puts `<program>.utils.registry` with registries of these names where imports find it."""

    def put(program: str, lower: bool, *names: str) -> types.ModuleType:
        for package in (program, f"{program}.utils"):
            module = types.ModuleType(package)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, package, module)
        module = types.ModuleType(f"{program}.utils.registry")
        for name in names:
            setattr(module, name, Registry(lower))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    return put


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def enlarges(network: torch.nn.Module, scale: int) -> bool:
    with torch.no_grad():
        return network.eval()(torch.rand(1, 3, 8, 9)).shape == (1, 3, 8 * scale, 9 * scale)


def test_the_first_snippet_builds_a_network():
    (code,) = snippets("Our networks in other programs")
    assert enlarges(run(code)["network"], 2)


def test_spandrel_opens_a_file(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    from sr_models.registry import get_architecture

    network = get_architecture("realplksr")(dim=8, n_blocks=1, scale=2)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    (code,) = snippets("spandrel")
    found = run(code)["model"]
    assert (found.architecture.id, found.scale) == ("RealPLKSR", 2)
    assert enlarges(found.model, 2)


def test_trainner_redux_knows_every_architecture(stand_in):
    module = stand_in("traiNNer", True, "ARCH_REGISTRY", "SPANDREL_REGISTRY")
    module.SPANDREL_REGISTRY.register()(realplksr)
    every, own = snippets("traiNNer-redux")
    run(every)
    names = set(modules("architecture"))
    assert set(module.ARCH_REGISTRY.keys()) == names - {"realplksr"}
    for name, options in SMALL.items():
        if name in names:
            # The program's own call: options of the file, and the scale of the whole recipe.
            assert enlarges(module.ARCH_REGISTRY.get(name)(**options, scale=2), 2)
    run(own)
    network = module.SPANDREL_REGISTRY.get("Distillery_RealPLKSR")(dim=8, n_blocks=1, scale=3)
    assert enlarges(network, 3)


def test_neosr_knows_every_architecture(stand_in):
    module = stand_in("neosr", False, "ARCH_REGISTRY")
    module.ARCH_REGISTRY.register(realplksr)
    (code,) = snippets("neosr")
    run(code)
    names = set(modules("architecture"))
    assert set(module.ARCH_REGISTRY.keys()) == names
    assert module.ARCH_REGISTRY.get("realplksr") is realplksr
    for name, options in SMALL.items():
        if name in names:
            assert enlarges(module.ARCH_REGISTRY.get(name)(**options), 4)
            assert enlarges(module.ARCH_REGISTRY.get(name)(**options, scale=2), 2)


def test_network_files_need_torch_alone():
    files = sorted(set(modules("architecture").values()))
    code = (
        f"import sys, {', '.join(files)}\n"
        "others = {'spandrel', 'einops', 'torchvision', 'dagster'} & sys.modules.keys()\n"
        "assert not others, others"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_snippet_of_the_page_is_run_here():
    assert PAGE.read_text(encoding="utf-8").count("```python") == 5
