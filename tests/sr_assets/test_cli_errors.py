"""What the command line makes of an error: one line and an exit code, never a traceback."""

import errno

from click.testing import CliRunner

from sr_assets.cli import _Commands


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
