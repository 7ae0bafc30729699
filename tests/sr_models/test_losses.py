"""Pixel losses."""

from __future__ import annotations

import doctest

import pytest
import torch

from sr_models.losses import pixel
from sr_models.losses.pixel import loss_terms


def test_l1_is_the_weighted_mean_of_absolute_errors() -> None:
    output = torch.zeros(1, 3, 2, 2)
    target = torch.zeros(1, 3, 2, 2)
    target[0, 0, 0, 0] = -6.0
    assert float(loss_terms(output, target, {"l1": 0.5})["l1"]) == pytest.approx(0.25)


def test_charbonnier_is_smooth_at_zero_and_absolute_far_away() -> None:
    target = torch.zeros(1, 3, 2, 2)
    output = target.clone().requires_grad_()
    near = loss_terms(output, target, {"charbonnier": 1.0})["charbonnier"]
    near.backward()
    assert near.item() == pytest.approx(1e-3)
    assert output.grad is not None and output.grad.abs().max() == 0
    far = loss_terms(output + 4, target, {"charbonnier": 1.0})["charbonnier"]
    assert far.item() == pytest.approx(4.0, abs=1e-6)


def test_term_of_weight_zero_is_not_computed() -> None:
    target = torch.zeros(1, 3, 2, 2)
    assert loss_terms(target, target, {"l1": 0.0, "charbonnier": 0.0}) == {}
    assert loss_terms(target, target, {"l1": 1.0, "charbonnier": 0.0}, "teacher_").keys() == {
        "teacher_l1"
    }


def test_unknown_term_lists_the_known_ones() -> None:
    target = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"'ssim' is not one of \['l1', 'charbonnier'\]"):
        loss_terms(target, target, {"ssim": 0.0})


def test_shapes_that_would_broadcast_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[1, 3, 2, 2\] and target \[2, 3, 2, 2\] differ"):
        loss_terms(torch.zeros(1, 3, 2, 2), torch.zeros(2, 3, 2, 2), {"l1": 1.0})


def test_example_in_the_docstring() -> None:
    assert doctest.testmod(pixel).failed == 0
