"""Videos enlarged with tiny real networks, and read back with PyAV."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from spandrel.architectures.Compact import Compact
from torch import nn

from sr_assets.cli import main
from sr_assets.lineage.stage import StageError
from sr_assets.model_lookup import Upscaler
from sr_assets.upscaling.enlarging import Enlarger, upscale_picture
from sr_assets.upscaling.frame_folders import upscale_frames
from sr_assets.upscaling.sequences import Sequence
from sr_assets.upscaling.videos import upscale_video_file
from sr_models.export.weights import serialise_weights
from sr_models.inference.video import upscale_video
from sr_models.students.paragonsr2 import ParagonSR2

av = pytest.importorskip("av")

HEIGHT, WIDTH, FRAMES = 34, 48, 6
TIMES = [0, 40, 80, 200, 240, 280]  # ms: a gap, as phones leave them


def enlarger(network: nn.Module, scale: int = 2) -> Enlarger:
    network = network.eval()
    return Enlarger(Upscaler("tiny", scale, torch.device("cpu"), network.__call__, network=network))


def compact(scale: int = 2) -> Enlarger:
    torch.manual_seed(0)
    return enlarger(Compact(num_feat=8, num_conv=1, upscale=scale), scale)


def temporal() -> Enlarger:
    torch.manual_seed(0)
    return enlarger(ParagonSR2(scale=2, block="nano", channels=8, groups=1, blocks=1))


def picture(number: int) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin((x + 2 * number) / 9 + k) * np.cos(y / 7 + k) for k in range(3)]
    return np.uint8(np.clip(128 + 80 * np.stack(waves, -1), 0, 255))


def clip(path: Path, codec: str = "libx264", sound: bool = True, **options: str) -> Path:
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream(codec, rate=25, options={"crf": "0", **options})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        voice = writer.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for number, time in enumerate(TIMES):
            frame = av.VideoFrame.from_ndarray(picture(number)).reformat(
                format="yuv444p", dst_colorspace="ITU601"
            )
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
        if voice:
            tone = np.sin(np.arange(4800) / 9, dtype=np.float32)[None] / 2
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate = 16_000
            writer.mux(voice.encode(frame))
            writer.mux(voice.encode(None))
    return path


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as reader:
        return [bytes(p) for p in reader.demux(reader.streams.audio[0]) if p.size]


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as reader:
        return [
            np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            for frame in reader.decode(reader.streams.video[0])
        ]


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as reader:
        return [round(1000 * frame.time) for frame in reader.decode(reader.streams.video[0])]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".mov"])
def test_frames_times_and_sound_arrive(tmp_path: Path, ending: str) -> None:
    source, target = clip(tmp_path / "clip.mp4"), tmp_path / f"clip-x2{ending}"
    report = upscale_video_file(Sequence(compact(), False), source, target, quality=100)
    assert (report.frames, report.width, report.height) == (FRAMES, 2 * WIDTH, 2 * HEIGHT)
    assert times_of(target) == TIMES == times_of(source)
    assert sound_of(target) == sound_of(source) != []
    for lr, sr in zip(frames_of(source), frames_of(target), strict=True):
        assert psnr(sr, upscale_picture(compact().upscaler, lr)) > 40
    assert {p.name for p in tmp_path.iterdir()} == {"clip.mp4", f"clip-x2{ending}"}


def pictures_in(path: Path, codec: str, pix_fmt: str, **options: str) -> Path:
    """A clip without sound in some codec, reordered frames included where it has them."""
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(number)).reformat(format=pix_fmt)
            frame.pts = number
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("quality", [None, 100])
def test_colours_of_a_clip_in_rgb_are_kept(tmp_path: Path, quality: int | None) -> None:
    source, target = pictures_in(tmp_path / "c.mov", "png", "rgb24"), tmp_path / "out.mp4"
    upscale_video_file(Sequence(compact(), False), source, target, quality=quality)
    for number, sr in enumerate(frames_of(target)):
        offset = sr - upscale_picture(compact().upscaler, picture(number)).astype(float)
        assert np.abs(offset.mean((0, 1))).max() < 4, "a cast over the whole picture"
    with av.open(str(target)) as reader:
        assert reader.streams.video[0].codec_context.pix_fmt.startswith("yuv")


def test_avi_with_reordered_frames_keeps_their_rate(tmp_path: Path) -> None:
    source = pictures_in(tmp_path / "c.avi", "libx264", "yuv420p", bf="2", crf="10")
    target = tmp_path / "out.mp4"
    report = upscale_video_file(Sequence(compact(), False), source, target)
    assert report.frames == FRAMES
    assert times_of(target) == [40 * number for number in range(FRAMES)]


def test_oblong_pixels_stay_oblong(tmp_path: Path) -> None:
    source, target = tmp_path / "dvd.mkv", tmp_path / "out.mkv"
    with av.open(str(source), "w") as writer:
        stream = writer.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        frame = av.VideoFrame.from_ndarray(picture(0)).reformat(format="yuv420p")
        frame.pts = 0
        writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    upscale_video_file(Sequence(compact(), False), source, target)
    with av.open(str(target)) as reader:
        assert reader.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


def test_sound_that_does_not_fit_is_named(tmp_path: Path) -> None:
    source = tmp_path / "c.mkv"
    with av.open(str(source), "w") as writer:
        stream = writer.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        voice = writer.add_stream("aac", rate=16_000, layout="mono")
        frame = av.VideoFrame.from_ndarray(picture(0)).reformat(format="yuv420p")
        frame.pts = 0
        writer.mux(stream.encode(frame))
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), "fltp", "mono")
        tone.sample_rate = 16_000
        writer.mux(voice.encode(tone))
        writer.mux(stream.encode(None))
        writer.mux(voice.encode(None))
    target = tmp_path / "out.webm"
    with pytest.raises(StageError, match=r"webm holds no sound as aac: write \.mkv"):
        upscale_video_file(Sequence(compact(), False), source, target)
    assert not target.exists()


def test_odd_sides_and_a_clip_without_sound(tmp_path: Path) -> None:
    source, target = clip(tmp_path / "clip.mkv", sound=False), tmp_path / "out.mkv"
    torch.manual_seed(0)
    odd = enlarger(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1))), 1)  # 49x35
    with pytest.raises(StageError, match=r"clip\.mkv: the network returned"):
        upscale_video_file(Sequence(odd, False), source, target)
    assert not target.exists() and len(list(tmp_path.iterdir())) == 1
    report = upscale_video_file(Sequence(compact(3), False), source, target)
    assert (report.width, report.height) == (3 * WIDTH, 3 * HEIGHT)
    with av.open(str(target)) as reader:
        assert not reader.streams.audio


def test_temporal_frames_are_those_of_the_generator() -> None:
    frames = [picture(n) for n in range(FRAMES)]
    sequence = Sequence(temporal(), True)
    made = [sequence.enlarge(frame) for frame in frames]
    network = temporal().upscaler.network
    tensors = [torch.from_numpy(f.transpose(2, 0, 1)[None] / np.float32(255)) for f in frames]
    expected = [
        (sr[0].clamp(0, 1) * 255 + 0.5).floor().byte().numpy().transpose(1, 2, 0)
        for sr in upscale_video(network, tensors)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(made, expected, strict=True))
    alone = Sequence(temporal(), False)
    assert not np.array_equal(made[3], alone.enlarge(frames[3]))


def test_a_sequence_goes_on_after_a_frame_that_it_is_shown() -> None:
    frames = [picture(n) for n in range(FRAMES)]
    whole, later = Sequence(temporal(), True), Sequence(temporal(), True)
    made = [whole.enlarge(frame) for frame in frames]
    later.see(frames[2])
    for expected, frame in zip(made[3:], frames[3:], strict=True):
        assert np.array_equal(later.enlarge(frame), expected)


def test_what_cannot_be_done_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no features that a frame could hand over"):
        Sequence(compact(), True)
    sequence = Sequence(compact(), False)
    fake = tmp_path / "fake.mp4"
    fake.write_bytes(b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n")
    for source in (fake, tmp_path / "none.mp4"):
        with pytest.raises(StageError, match=r"is no video that can be read"):
            upscale_video_file(sequence, source, tmp_path / "out.mp4")
    with pytest.raises(StageError, match=r"videos are written as \.mp4"):
        upscale_video_file(sequence, fake, tmp_path / "out.wmv")
    small = clip(tmp_path / "small.mp4", sound=False)
    with pytest.raises(StageError, match=r"small\.mp4: frames of 0 megapixels \(limit 0\.001\)"):
        upscale_video_file(sequence, small, tmp_path / "out.mp4", max_megapixels=0.001)
    assert not (tmp_path / "out.mp4").exists()


def test_a_turned_clip_stands_upright(tmp_path: Path) -> None:
    source = clip(tmp_path / "clip.mp4", sound=False)
    turned, target = tmp_path / "turned.mp4", tmp_path / "out.mp4"
    with av.open(str(source)) as reader, av.open(str(turned), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        stream.set_display_rotation(90)
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
    report = upscale_video_file(Sequence(compact(), False), turned, target)
    assert (report.width, report.height) == (2 * HEIGHT, 2 * WIDTH)
    first, plain = frames_of(turned)[0], frames_of(source)[0]
    assert np.array_equal(first, np.rot90(plain)) or np.array_equal(first, np.rot90(plain, -1))


def frames_in(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(folder / name)
    return folder


def test_a_folder_of_frames_goes_on_as_if_nothing_had_stopped(tmp_path: Path) -> None:
    source = frames_in(tmp_path / "clip", [f"f{n}.png" for n in (1, 2, 9, 10, 11, 100)])
    whole = upscale_frames(Sequence(temporal(), True), source, tmp_path / "whole")
    assert [p.name for p in whole.written] == [f"f{n}.png" for n in (1, 2, 9, 10, 11, 100)]
    upscale_frames(Sequence(temporal(), True), source, tmp_path / "again")
    for name in ("f10.png", "f11.png", "f100.png"):
        (tmp_path / "again" / name).unlink()
    report = upscale_frames(Sequence(temporal(), True), source, tmp_path / "again")
    assert [len(report.written), len(report.skipped)] == [3, 3]
    for path in whole.written:
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    sequence = Sequence(temporal(), True)
    for number, path in enumerate(whole.written):
        assert np.array_equal(np.asarray(Image.open(path)), sequence.enlarge(picture(number)))


def test_a_frame_that_cannot_be_read_ends_the_clip_by_name(tmp_path: Path) -> None:
    source = frames_in(tmp_path / "clip", ["1.png", "2.png", "3.png"])
    (source / "2.png").write_bytes(b"no picture")
    with pytest.raises(StageError, match=r"2\.png: .*a frame of a clip cannot be left out"):
        upscale_frames(Sequence(temporal(), True), source, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["1.png"]


def srd(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["upscale", *map(str, words)], catch_exceptions=False)


def test_the_command_takes_clips(tmp_path: Path) -> None:
    network = temporal().upscaler.network
    assert network is not None
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(serialise_weights(network.state_dict(), {}))
    source = clip(tmp_path / "clip.mp4", sound=False)
    for extra in ([], ["--temporal"]):
        target = tmp_path / f"out{len(extra)}.mp4"
        done = srd(weights, source, target, "--backend", "torch", *extra)
        assert done.exit_code == 0, done.output
        assert "1 written, 0 already there" in done.output
        assert times_of(target) == TIMES
    assert (tmp_path / "out0.mp4").read_bytes() != (tmp_path / "out1.mp4").read_bytes()
    assert "0 written, 1 already there" in srd(weights, source, tmp_path / "out1.mp4").output
    frames = frames_in(tmp_path / "frames", ["1.png", "2.png"])
    assert "2 written" in srd(weights, frames, tmp_path / "large", "--temporal").output
    refused = srd(weights, frames, tmp_path / "x", "--temporal", "--tile", "64")
    assert refused.exit_code == 1 and "leave --tile and --halo out" in refused.output
    refused = srd(weights, source, tmp_path / "x.mp4", "--depth", "16")
    assert refused.exit_code == 1 and "frames are written in 8 bits" in refused.output
