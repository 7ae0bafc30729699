"""Video: what passes from one frame to the next, and when nothing does."""

from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor, nn

from sr_models.inference.video import VideoState, VideoStep, upscale_frame, upscale_video
from sr_models.students.paragonsr2 import ParagonSR2

FRAMES = 30


@pytest.fixture(scope="module")
def network() -> ParagonSR2:
    torch.manual_seed(0)
    made = ParagonSR2(block="nano", channels=8, groups=1, blocks=2, scale=2, detail_gain=1.0)
    for name, parameter in made.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter)
    return made.eval()


@pytest.fixture(scope="module")
def clip() -> list[Tensor]:
    """A 40x48 window that moves over a photo, two pixels right and one down a frame."""
    photo = torch.from_numpy(np.ascontiguousarray(skimage.data.astronaut())).permute(2, 0, 1)
    photo = photo[None].float() / 255
    return [photo[..., 60 + i : 100 + i, 150 + 2 * i : 198 + 2 * i] for i in range(FRAMES)]


def enlarge(network: ParagonSR2, frames: list[Tensor], **options: float) -> list[Tensor]:
    return list(upscale_video(network, frames, **options))


def alone(network: ParagonSR2, frame: Tensor) -> Tensor:
    with torch.no_grad():
        return network(frame)


def test_each_frame_is_blended_with_the_one_before_only(
    network: ParagonSR2, clip: list[Tensor]
) -> None:
    sr = enlarge(network, clip, blend=0.3)
    assert len(sr) == FRAMES
    assert torch.equal(sr[0], alone(network, clip[0]))
    for (before, frame), got in zip(pairwise(clip), sr[1:], strict=True):
        with torch.no_grad():
            features = 0.7 * network.features(frame) + 0.3 * network.features(before)
            expected = network.reconstruct(frame, features)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert not torch.equal(got, alone(network, frame))


def test_a_constant_clip_is_the_single_frame(network: ParagonSR2, clip: list[Tensor]) -> None:
    for sr in enlarge(network, [clip[3]] * FRAMES):
        assert torch.equal(sr, alone(network, clip[3]))
    # After movement it is reached one frame later: nothing older remains.
    settled = enlarge(network, [*clip[:5], clip[5], clip[5]])
    assert not torch.equal(settled[5], alone(network, clip[5]))
    assert torch.equal(settled[6], alone(network, clip[5]))


def test_the_order_of_frames_matters(network: ParagonSR2, clip: list[Tensor]) -> None:
    there, back = enlarge(network, clip), enlarge(network, clip[::-1])[::-1]
    assert all(not torch.equal(a, b) for a, b in zip(there, back, strict=True))


@pytest.mark.parametrize("cut_at", [1, 13, FRAMES - 1])
def test_two_parts_are_bit_for_bit_one_clip(
    network: ParagonSR2, clip: list[Tensor], cut_at: int
) -> None:
    whole = enlarge(network, clip)
    parts: list[Tensor] = []
    state: VideoState | None = None
    for part in (clip[:cut_at], clip[cut_at:]):
        running = upscale_video(network, part, state=state)
        while True:
            try:
                parts.append(next(running))
            except StopIteration as end:
                state = end.value
                break
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert state is not None and not state.features.requires_grad


def test_a_frame_has_no_side_effects(network: ParagonSR2, clip: list[Tensor]) -> None:
    with torch.no_grad():
        _, state = upscale_frame(network, clip[0])
        features = state.features.clone()
        first, _ = upscale_frame(network, clip[1], state)
        second, _ = upscale_frame(network, clip[1], state)
    assert torch.equal(first, second)
    assert torch.equal(state.features, features)


def test_a_cut_starts_anew_even_when_the_means_agree(
    network: ParagonSR2, clip: list[Tensor]
) -> None:
    mirrored = clip[9].flip(-1)  # the same mean, another picture
    sr = enlarge(network, [clip[9], mirrored, clip[9]])
    assert torch.equal(sr[1], alone(network, mirrored))
    assert torch.equal(sr[2], alone(network, clip[9]))
    never = enlarge(network, [clip[9], mirrored], cut=1.0)
    assert not torch.equal(never[1], alone(network, mirrored))


def test_movement_within_a_scene_is_no_cut(network: ParagonSR2, clip: list[Tensor]) -> None:
    lighter = (clip[0] + 20 / 255).clamp(0, 1)
    assert not torch.equal(enlarge(network, [clip[0], lighter])[1], alone(network, lighter))
    for frame, sr in zip(clip[1:], enlarge(network, clip)[1:], strict=True):
        assert not torch.equal(sr, alone(network, frame))


PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def crop(name: str, top: int, left: int, side: int) -> Tensor:
    photo = torch.from_numpy(np.ascontiguousarray(getattr(skimage.data, name)()))
    part = photo[top : top + side, left : left + side]
    return part.permute(2, 0, 1)[None].float() / 255


def cuts(network: ParagonSR2, before: Tensor, frame: Tensor) -> bool:
    return torch.equal(enlarge(network, [before, frame])[1], alone(network, frame))


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("step", [2, 4, 8])
def test_pans_are_no_cuts(network: ParagonSR2, name: str, step: int) -> None:
    for top in range(0, 220, 73):
        for left in range(0, 350, 70):
            here = crop(name, top, left, 64)
            assert not cuts(network, here, crop(name, top, left + step, 64)), (top, left)
            assert not cuts(network, here, crop(name, top + step // 2, left + step // 2, 64))


def test_another_picture_is_a_cut(network: ParagonSR2) -> None:
    frames = [crop(name, 100, 150, 96) for name in PHOTOS]
    for before, frame in permutations(frames, 2):
        assert cuts(network, before, frame)


def test_noise_is_no_cut(network: ParagonSR2) -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 3, 64, 64, generator=random) for _ in range(2))
    assert not cuts(network, a, b)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (5, 64)])
def test_tiny_frames_have_cuts_too(network: ParagonSR2, size: tuple[int, int]) -> None:
    dark, light = torch.full((1, 3, *size), 0.2), torch.full((1, 3, *size), 0.7)
    assert cuts(network, dark, light)
    assert not cuts(network, dark, dark + 0.05)


def test_another_size_or_batch_starts_anew(network: ParagonSR2, clip: list[Tensor]) -> None:
    narrower, twice = clip[1][..., 1:], torch.cat([clip[1], clip[2]])
    for other in (narrower, twice):
        assert torch.equal(enlarge(network, [clip[0], other])[1], alone(network, other))


def test_clips_side_by_side_have_their_own_cuts(network: ParagonSR2, clip: list[Tensor]) -> None:
    mirrored = clip[9].flip(-1)
    sr = enlarge(network, [torch.cat([clip[9], clip[9]]), torch.cat([mirrored, clip[10]])])[1]
    torch.testing.assert_close(sr[:1], alone(network, mirrored), rtol=0, atol=1e-6)
    expected = enlarge(network, [clip[9], clip[10]])[1]
    torch.testing.assert_close(sr[1:], expected, rtol=0, atol=1e-6)


def test_blending_steadies_what_flickers(network: ParagonSR2, clip: list[Tensor]) -> None:
    random = torch.Generator().manual_seed(1)
    noisy = [clip[0] + 0.02 * torch.randn(clip[0].shape, generator=random) for _ in range(10)]

    def flicker(blend: float) -> float:
        sr = torch.cat(enlarge(network, noisy, blend=blend))
        details = sr - torch.cat([network.base(frame) for frame in noisy])
        return float(details.diff(dim=0).square().mean())

    assert flicker(0.2) < 0.8 * flicker(0.0)


def test_wrong_arguments_are_named(network: ParagonSR2, clip: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="blend"):
        upscale_frame(network, clip[0], blend=1.5)
    with pytest.raises(ValueError, match="frame"):
        upscale_frame(network, clip[0][0])


def test_the_step_as_a_graph_gives_the_same_frames(
    network: ParagonSR2, clip: list[Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    size = {
        0: torch.export.Dim("batch", min=1, max=8),
        2: torch.export.Dim("height", min=4, max=4096),
        3: torch.export.Dim("width", min=4, max=4096),
    }
    example = (torch.rand(2, 3, 16, 24), torch.rand(2, 8, 16, 24), torch.rand(2))
    file = tmp_path / "step.onnx"
    with torch.no_grad():
        torch.onnx.export(
            VideoStep(network).eval(),
            example,
            file,
            dynamo=True,
            opset_version=18,
            input_names=["lr", "previous", "weight"],
            output_names=["sr", "features"],
            dynamic_shapes=(size, size, {0: size[0]}),
            verbose=False,
        )
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    previous, weight = torch.zeros(1, 8, 40, 48).numpy(), np.zeros(1, np.float32)
    for frame, expected in zip(clip[:4], enlarge(network, clip[:4]), strict=True):
        inputs = {"lr": frame.numpy(), "previous": previous, "weight": weight}
        sr, previous = session.run(None, inputs)
        torch.testing.assert_close(torch.from_numpy(sr), expected, rtol=0, atol=1e-5)
        weight = np.full(1, 0.2, np.float32)
