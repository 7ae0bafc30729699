"""What the command line makes of an error: one line and an exit code, never a traceback."""

import errno
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner
from upath import UPath

from sr_assets import cli
from sr_assets.cli import _Commands
from sr_assets.graph import Graph
from sr_assets.lineage import build
from sr_assets.lineage.stage import Ref
from sr_assets.recipe.models import Recipe


def group_that_raises(error: Exception) -> _Commands:
    group = _Commands("srd")

    @group.command()
    def fail() -> None:
        raise error

    return group


def test_a_file_that_cannot_be_written_is_one_line() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "out.html")
    result = CliRunner().invoke(group_that_raises(error), ["fail"])
    assert result.exit_code == 1
    assert result.output == "srd: [Errno 13] Permission denied: 'out.html'\n"


def test_a_closed_pipe_is_left_to_click() -> None:
    result = CliRunner().invoke(group_that_raises(BrokenPipeError(errno.EPIPE, "")), ["fail"])
    assert (result.exit_code, result.output) == (1, "")


def test_json_without_a_dry_run_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli.main, ["build", "--json", "--recipe", "nowhere.yaml"])
    assert result.exit_code == 2
    assert "give --dry-run" in result.output


def test_outputs_that_wait_for_changed_inputs_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = build.BuildResult(made=[Ref("a/b")], held_back=[Ref("c/d"), Ref("e/f")])
    monkeypatch.setattr(build, "build", lambda *given: waits)
    graph = Graph(Recipe.model_construct(), UPath("root"), {})
    project: Any = SimpleNamespace(graph=graph, instance=None)
    monkeypatch.setattr("sr_assets.definitions.build_defs", MagicMock())
    with pytest.raises(SystemExit) as ended:
        cli._build(project, set())
    assert ended.value.code == 1
    assert "2 outputs wait for inputs that changed meanwhile" in capsys.readouterr().err
