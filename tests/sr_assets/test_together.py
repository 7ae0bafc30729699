"""Processes of one group, started from a step of Dagster: what they tell, and how they fail."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dagster_steps import in_a_step

from sr_assets.lineage.group_process import reason
from sr_assets.lineage.stage import StageError, Tell
from sr_assets.lineage.together import Listening


def greet_and_fail(words: str, tell: Tell) -> None:
    """Both add to what only the first tells; once it has, it waits for the second for ever."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    sums = torch.tensor([1.0 + dist.get_rank()])
    dist.all_reduce(sums)
    for number in range(3):
        tell({"words": words, "number": number, "sum": sums.item()})
    dist.barrier()
    if dist.get_rank() == 1:
        raise StageError("models.a.train: something to mend")
    dist.barrier()


def kill_second(tell: Tell) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes find the jobs of this module."""
    here = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, here)))


def test_the_first_is_heard_in_order_and_a_failure_of_any_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[Any] = []
    with pytest.raises(StageError, match=r"^models\.a\.train: something to mend$"):
        in_a_step(tmp_path, 2, partial(greet_and_fail, "good morning"), heard.append)
    assert heard == [{"words": "good morning", "number": n, "sum": 3.0} for n in range(3)]
    said = capfd.readouterr().err.split("RUN_FAILURE")[0]  # Dagster's own log has the whole way
    assert "elastic" not in said and "ChildFailedError" not in said


def test_a_killed_process_ends_the_others_and_is_named(tmp_path: Path) -> None:
    line = r"^compute.processes: number 2 of 2 failed: Signal 9 \(SIGKILL\) received by PID \d+$"
    with pytest.raises(StageError, match=line):
        in_a_step(tmp_path, 2, kill_second, lambda told: None)


@pytest.mark.parametrize(
    ("failures", "line"),
    [
        (  # torchrun ended the second
            {0: (1, {"message": "RuntimeError: out of\nall memory"}), 1: (-15, "Signal 15")},
            "compute.processes: number 1 of 2 failed: RuntimeError: out of",
        ),
        (  # the first could not reach the second
            {0: (1, {"message": "RuntimeError: closed by peer"}), 1: (-9, "Signal 9 (SIGKILL)")},
            "compute.processes: number 2 of 2 failed: Signal 9 (SIGKILL)",
        ),
        (
            {0: (1, "RuntimeError: closed by peer"), 1: (1, {"message": "StageError: mend it"})},
            "mend it",
        ),
    ],
)
def test_the_line_is_of_the_process_that_failed_by_itself(
    failures: dict[int, tuple[int, Any]], line: str
) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    found = {}
    for rank, (code, message) in failures.items():
        found[rank] = ProcessFailure(local_rank=rank, pid=7, exitcode=code, error_file="none")
        found[rank].message = message
    assert reason(ChildFailedError("job", found), 2) == line


def test_what_a_listener_raises_is_kept_for_the_step() -> None:
    def hear(told: Any) -> None:
        raise OSError(f"no room for {told}")

    reader = Listening(hear)
    with reader.read_messages(None) as parameters:
        file = Path(parameters["path"])
        lines = [{"method": "report_custom_message", "params": {"payload": n}} for n in range(2)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert isinstance(reader.failure, OSError) and str(reader.failure) == "no room for 0"
