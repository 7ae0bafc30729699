"""Losses of distillation: where a teacher is followed, and the affinity of features."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_models.losses.distillation import GRID, affinity_loss, where_closer


def test_each_pixel_follows_whichever_is_closer() -> None:
    hr = torch.zeros(1, 3, 1, 3)
    teacher = torch.full_like(hr, 0.2)
    student = torch.tensor([0.1, 0.2, 0.3]).expand(1, 3, 1, 3).clone().requires_grad_()
    target = where_closer(teacher, student, hr)
    assert target[0, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.2])
    (student - target).square().sum().backward()
    assert student.grad is not None
    assert student.grad[0, 0, 0].tolist() == pytest.approx([0, 0, 0.2])


def test_a_pixel_is_judged_by_all_its_channels() -> None:
    hr = torch.zeros(1, 3, 1, 1)
    teacher = torch.tensor([0.5, 0.0, 0.0]).view(1, 3, 1, 1)
    student = torch.tensor([0.2, 0.2, 0.2]).view(1, 3, 1, 1)
    assert torch.equal(where_closer(teacher, student, hr), teacher)


def test_affinity_by_hand() -> None:
    # Two places: alike in the student (inner product 1), orthogonal in the teacher (0).
    student = torch.ones(1, 2, 1, 2)
    teacher = torch.eye(2).view(1, 2, 1, 2)
    assert float(affinity_loss(student, teacher)) == pytest.approx(0.5)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 30), st.integers(1, 30))
def test_affinity_knows_no_scale_and_no_basis(c: int, d: int, height: int, width: int) -> None:
    draw = torch.Generator().manual_seed(c + 10 * d)
    x = torch.randn(2, c, height, width, generator=draw)
    turn, _ = torch.linalg.qr(torch.randn(c, c, generator=draw))
    turned = 3 * torch.einsum("dc,bchw->bdhw", turn, x)
    assert float(affinity_loss(x, turned)) < 1e-5
    other = torch.randn(2, d, height, width, generator=draw)
    assert 0 <= float(affinity_loss(x, other)) <= 2


def test_affinity_of_large_maps_is_of_their_averages() -> None:
    draw = torch.Generator().manual_seed(0)
    small = torch.randn(1, 3, GRID, GRID, generator=draw)
    other = torch.randn(1, 3, GRID, GRID, generator=draw)
    large = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in (small, other)]
    assert affinity_loss(*large) == pytest.approx(float(affinity_loss(small, other)), abs=1e-6)


def test_cells_are_equal_and_the_rest_is_dropped() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(1, 3, GRID + 5, 7, generator=draw) for _ in range(2))
    cut = [x[:, :, : (GRID + 5) // 2 * 2] for x in (one, other)]
    assert torch.equal(affinity_loss(one, other), affinity_loss(*cut))


def test_gradients_reach_the_student_alone() -> None:
    student = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(1, 4, 3, 3, requires_grad=True)
    affinity_loss(student, teacher).backward()
    assert student.grad is not None and student.grad.any() and teacher.grad is None


def test_maps_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        affinity_loss(torch.rand(1, 2, 3, 3), torch.rand(1, 2, 6, 6))
