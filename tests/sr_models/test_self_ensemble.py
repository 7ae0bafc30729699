"""The mean over the eight turns of a square."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sr_models.inference.self_ensemble import Turn, self_ensemble


def test_each_of_the_eight_turns_is_taken_once_and_turned_back() -> None:
    image = torch.arange(30.0).reshape(1, 1, 5, 6)
    seen: list[Tensor] = []

    def run(turn: Turn) -> Tensor:
        seen.append(turn(image))
        return seen[-1]

    assert torch.equal(self_ensemble(run), image)
    assert len({(tuple(s.shape), tuple(s.flatten().tolist())) for s in seen}) == 8


def test_a_network_that_is_not_equivariant_becomes_so() -> None:
    torch.manual_seed(0)
    kernel, image = torch.randn(3, 3, 3, 3), torch.rand(1, 3, 7, 9)

    def ensemble(lr: Tensor) -> Tensor:
        return self_ensemble(
            lambda turn: F.interpolate(F.conv2d(turn(lr), kernel, padding=1), scale_factor=2)
        )

    plain = F.interpolate(F.conv2d(image, kernel, padding=1), scale_factor=2)
    found = ensemble(image)
    assert found.shape == plain.shape and not torch.allclose(found, plain)
    torch.testing.assert_close(ensemble(image.flip(-1)), found.flip(-1))
    torch.testing.assert_close(ensemble(image.mT), found.mT)
