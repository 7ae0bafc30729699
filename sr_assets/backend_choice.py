"""Which backend was measured as the fastest for a network on this machine, kept between commands.

Measuring is `bench.py`; the backends are `sr_models/inference/backends/`.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from sr_assets.storage import cache_folder

if TYPE_CHECKING:
    import torch

#: What computes; another version may be fast where this one is slow.
_PACKAGES = ("torch", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Machine:
    """All of a machine that decides which backend is fastest."""

    device: str
    """Name of the CPU or the GPU."""
    capabilities: str
    """Vector instructions of the CPU, or the compute capability of the GPU."""
    threads: int
    """That torch computes with."""
    packages: dict[str, str]
    """Version by name; only those that are installed."""


@dataclass(frozen=True)
class Choice:
    """Names of backends."""

    default: str
    """The fastest whose pictures are as good as those of torch in fp32."""
    exact: str
    """The fastest that is torch in fp32 up to rounding."""


def this_machine(device: torch.device) -> Machine:
    """The machine on which a network on `device` runs."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, capabilities = properties.name, f"sm_{properties.major}{properties.minor}"
    else:
        name, capabilities = cpu_name(), _vector_instructions()
    return Machine(
        name if device.type != "mps" else f"{name} mps",
        capabilities,
        torch.get_num_threads(),
        package_versions(),
    )


def remember(digest: str, machine: Machine, choice: Choice) -> Path:
    """Keeps `choice` for the network with these weights; returns the file."""
    file = _file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        known = {**_read(file), _key(digest, machine): asdict(choice)}
        partial = file.with_name(f".{file.name}.partial")
        partial.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)
    return file


def recall(digest: str, machine: Machine) -> Choice | None:
    """What was remembered for these weights on such a machine."""
    entry = _read(_file()).get(_key(digest, machine))
    try:
        return None if entry is None else Choice(entry["default"], entry["exact"])
    except (KeyError, TypeError):
        return None


def package_versions() -> dict[str, str]:
    """Version of each package that computes; those that are not installed are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def cpu_name() -> str:
    """What the CPU calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Installed memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _vector_instructions() -> str:
    """Names such as avx512_vnni: virtual machines of different CPUs share a model name."""
    import torch

    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    wide = sorted(
        n for n, has in told.items() if has is True and n.startswith(("avx", "amx", "sv"))
    )
    return " ".join([torch.backends.cpu.get_cpu_capability(), *wide])


def _file() -> Path:
    return cache_folder() / "backends.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # what cannot be read is measured again
        return {}
    return found if isinstance(found, dict) else {}


def _key(digest: str, machine: Machine) -> str:
    packages = " ".join(f"{name} {of}" for name, of in sorted(machine.packages.items()))
    threads = f"{machine.threads} threads"
    return " | ".join([digest, machine.device, machine.capabilities, threads, packages])
