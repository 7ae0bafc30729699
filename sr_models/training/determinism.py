"""Seeds, torch's random state and its deterministic mode, each put back as it was found.

Which seed belongs to what is the caller's choice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws from `seed`; afterwards its random state is what it was before.

    Example: `with seeded(42): network = build_network(...)`.
    """
    before = random_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before)


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside, torch chooses deterministic kernels and warns where it has none."""
    mode = torch.get_deterministic_debug_mode()
    switches: Any = torch.utils.deterministic  # a module whose attribute is a property
    fill = switches.fill_uninitialized_memory
    # cuBLAS reads this when it is first used; it has no other switch.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same switch as use_deterministic_algorithms(True, warn_only=True), read back as one value.
    torch.set_deterministic_debug_mode("warn")
    # Filling fresh memory finds reads of unset values; it costs time and changes no result.
    switches.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        switches.fill_uninitialized_memory = fill


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators: `cpu`, and `cuda` or `mps` where in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put back what `random_state` returned; generators that this machine lacks are left out."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())
