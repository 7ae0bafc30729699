"""Enlarges a video file frame by frame through PyAV; sound and the times of the frames are kept.

How frames are enlarged is `sequences.py`. Needs the extra `video`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from sr_assets.lineage.stage import StageError
from sr_assets.pictures import Pixels
from sr_assets.upscaling.appearing import clear, whole_file
from sr_assets.upscaling.sequences import Sequence
from sr_models.one_line import one_line

if TYPE_CHECKING:
    import av

#: Ending -> encoder of what is written.
ENCODERS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
#: Endings of what is taken for a video.
READABLE = frozenset(ENCODERS) | {".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".flv", ".y4m"}
#: Constant rate factor where no quality is given: hardly to be told from the frames themselves.
_CRF = {"libx264": 16, "libvpx-vp9": 24}
_WORST = {"libx264": 51, "libvpx-vp9": 63}
#: Demuxers that open no other file than the one they are given; playlists would.
_DEMUXERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,flv,yuv4mpegpipe"
_RGB, _UNSPECIFIED = 0, 2  # of the colour fields of H.273
_BT709, _BT601 = 1, 6
_BT709_FROM = 577  # lines; players assume it too
_LIMITED = 1
_PQ, _HLG = 16, 18  # transfer functions of HDR


@dataclass(frozen=True)
class VideoReport:
    """What was written."""

    frames: int
    width: int
    height: int
    """px."""


def is_video(path: Path) -> bool:
    """Whether the name says so."""
    return path.suffix.lower() in READABLE


def upscale_video_file(
    sequence: Sequence,
    source: Path,
    target: Path,
    *,
    quality: int | None = None,
    max_megapixels: float = 120.0,
    tell: Callable[[str], None] = lambda line: None,
) -> VideoReport:
    """Enlarges the first video stream of a file; its sound is copied as it is.

    Frames are computed and written in 8 bits a sample, upright, each with its own time, so that a
    variable frame rate stays. H.264 in mp4, mov and mkv, VP9 in webm.

    Args:
        sequence: that enlarges the frames.
        source: any video that PyAV reads.
        target: a file ending in .mp4, .mov, .mkv or .webm; it appears when it is whole.
        quality: 1 to 100; 100 is lossless for H.264. Left out, hardly to be told from lossless.
        max_megapixels: larger frames are refused.
        tell: is given a line for what is worth saying.

    Raises:
        StageError: PyAV is missing, the file is no video, the target does not hold it, or a frame
            cannot be enlarged; one line. Nothing is left behind.
    """
    encoder = ENCODERS.get(target.suffix.lower())
    if encoder is None:
        raise StageError(f"{target}: videos are written as {', '.join(ENCODERS)}")
    av = load_av()
    from sr_models.experts.running import ExpertMemoryError

    wanted = _Wanted(encoder, quality, max_megapixels)
    try:
        with whole_file(target, target.suffix.lower()) as temporary:
            clear(target.parent)
            with _opened(av, source) as reader, av.open(str(temporary), "w") as writer:
                return _copied(av, reader, writer, sequence, wanted, tell)
    except (ExpertMemoryError, ValueError, av.FFmpegError, OSError) as error:
        raise StageError(f"{source}: {one_line(error)}") from error


@dataclass(frozen=True)
class _Wanted:
    encoder: str
    quality: int | None
    max_megapixels: float

    @property
    def crf(self) -> int:
        if self.quality is None:
            return _CRF[self.encoder]
        return round((100 - self.quality) / 99 * _WORST[self.encoder])


def load_av() -> Any:
    """The module av.

    Raises:
        StageError: it is missing.
    """
    try:
        import av
    except ImportError as error:
        raise StageError("videos need PyAV: pip install 'sr-distillery[video]'") from error
    return av


def _opened(av: Any, source: Path) -> Any:
    # A list of files or addresses, which FFmpeg would follow, is no video here.
    limits = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    try:
        reader = av.open(str(source), options=limits)
    except av.FFmpegError as error:
        raise StageError(f"{source} is no video that can be read: {error.strerror}") from error
    if not reader.streams.video:
        reader.close()
        raise StageError(f"{source} holds no video stream")
    return reader


def _copied(
    av: Any,
    reader: Any,
    writer: Any,
    sequence: Sequence,
    wanted: _Wanted,
    tell: Callable[[str], None],
) -> VideoReport:
    stream = reader.streams.video[0]
    stream.thread_type = "AUTO"
    size = stream.codec_context.width * stream.codec_context.height / 1e6
    if size > wanted.max_megapixels:
        raise ValueError(f"frames of {size:.0f} megapixels (limit {wanted.max_megapixels:g})")
    tell(_told(stream, sequence))
    sound = {s.index: _sound(writer, s) for s in reader.streams.audio}
    clock = _Clock(reader.format.name == "avi", stream.average_rate)
    made = _Made(av, writer, wanted, stream, clock, tell)
    with tqdm(
        total=stream.frames or None, unit="frame", desc=sequence.enlarger.upscaler.name,
        disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        for packet in reader.demux(stream, *reader.streams.audio):
            if packet.stream.index in sound:
                made.hear(packet, sound[packet.stream.index])
                continue
            for frame in packet.decode():
                made.show(frame, sequence.enlarge(_pixels(frame)))
                bar.update(1)
    return made.end()


@dataclass
class _Made:
    """The file that is written, as far as it is."""

    av: Any
    writer: Any
    wanted: _Wanted
    source: Any
    """The video stream that is read."""
    clock: _Clock
    tell: Callable[[str], None]
    _out: Any = None
    """The video stream that is written; its size is known with the first frame."""
    _frames: int = 0
    _waiting: list[Any] = field(default_factory=list)  # sound before the first frame

    def hear(self, packet: Any, out: Any) -> None:
        if packet.dts is not None:
            packet.stream = out
            self._waiting.append(packet)
        self._flush()

    def show(self, frame: Any, sr: Pixels) -> None:
        if self._out is None:
            self._out = _stream(self.writer, self.wanted, self.source, frame, sr)
            if frame.interlaced_frame:
                self.tell("interlaced: each frame is enlarged as it is; deinterlace it first")
        elif (self._out.height, self._out.width) != sr.shape[:2]:
            raise ValueError(f"frame {self._frames + 1} has another size than the first")
        self.clock.set(frame)
        self.writer.mux(self._out.encode(_frame(self.av, sr, frame, self._out)))
        self._frames += 1
        self._flush()

    def end(self) -> VideoReport:
        if self._out is None:
            raise ValueError("no frame could be decoded")
        self.writer.mux(self._out.encode(None))
        return VideoReport(self._frames, self._out.width, self._out.height)

    def _flush(self) -> None:
        while self._out is not None and self._waiting:
            self.writer.mux(self._waiting.pop(0))


@dataclass
class _Clock:
    """Gives every frame a time after that of the one before."""

    by_count: bool
    """AVI holds no times, and what is made up for reordered frames is wrong."""
    rate: Fraction | None
    _count: int = 0
    _last: int | None = None

    def set(self, frame: Any) -> None:
        step = 1 / ((self.rate or 25) * frame.time_base)
        if self.by_count:
            frame.pts = round(self._count * step)
        elif frame.pts is None or (self._last is not None and frame.pts <= self._last):
            frame.pts = 0 if self._last is None else self._last + max(1, round(step))
        self._count, self._last = self._count + 1, frame.pts


def _told(stream: Any, sequence: Sequence) -> str:
    transfer = stream.codec_context.color_trc
    hdr = "; its HDR is kept in 8 bits only" if transfer in (_PQ, _HLG) else ""
    if sequence.temporal:
        return f"each frame whole, with the features of the one before{hdr}"
    return f"{sequence.plan.told}{hdr}"


def _sound(writer: Any, source: Any) -> Any:
    """A stream for sound as it is.

    Raises:
        ValueError: the file that is written cannot hold it.
    """
    name = source.codec_context.codec.canonical_name
    if name not in writer.supported_codecs:
        raise ValueError(f"{writer.format.name} holds no sound as {name}: write .mkv")
    out = writer.add_stream_from_template(source)
    out.codec_context.codec_tag = "\0\0\0\0"  # of the other container
    return out


def _pixels(frame: av.VideoFrame) -> Pixels:
    """Upright RGB, uint8 [h, w, 3]."""
    rgb = frame.reformat(format="rgb24", src_colorspace=_matrix(frame)).to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, _quarter_turns(frame)))


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise, to stand upright."""
    return round(frame.rotation / 90) % 4


def _matrix(frame: av.VideoFrame) -> int:
    """Which luma and chroma these are; by the number of lines where nothing is said, or RGB."""
    said = int(frame.colorspace)
    if said not in (_RGB, _UNSPECIFIED):
        return said
    return _BT709 if frame.height >= _BT709_FROM else _BT601


def _stream(writer: Any, wanted: _Wanted, source: Any, frame: Any, sr: Pixels) -> Any:
    """The video stream that is written, of the size of its first frame."""
    options = {"crf": str(wanted.crf)}
    if wanted.encoder == "libvpx-vp9":
        options |= {"b": "0", "row-mt": "1"}
    out = writer.add_stream(wanted.encoder, rate=source.average_rate, options=options)
    out.height, out.width = sr.shape[:2]
    halved = out.height % 2 == out.width % 2 == 0 and wanted.crf > 0
    out.pix_fmt = "yuv420p" if halved else "yuv444p"
    context = out.codec_context
    context.time_base = source.time_base
    context.colorspace = _matrix(frame)
    context.color_primaries = source.codec_context.color_primaries
    context.color_trc = source.codec_context.color_trc
    context.color_range = _LIMITED
    if shape := source.sample_aspect_ratio:
        context.sample_aspect_ratio = 1 / shape if _quarter_turns(frame) % 2 else shape
    return out


def _frame(av: Any, sr: Pixels, like: Any, out: Any) -> Any:
    made = av.VideoFrame.from_ndarray(sr, format="rgb24").reformat(
        format=out.pix_fmt, dst_colorspace=out.codec_context.colorspace
    )
    made.pts, made.time_base = like.pts, like.time_base
    return made
