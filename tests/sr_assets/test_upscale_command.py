"""`srd upscale` and what it is given: streams, patterns, precision, the lines it prints, memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from spandrel.architectures.Compact import Compact
from torch import Tensor, nn

from sr_assets.cli import main
from sr_assets.lineage.stage import StageError
from sr_assets.model_lookup import Upscaler
from sr_assets.upscaling.enlarging import Enlarger, upscale_picture
from sr_assets.upscaling.files import upscale_files
from sr_assets.upscaling.planning import measured_difference, plan_tiles
from sr_assets.upscaling.precision import load_enlarger
from sr_models.export.weights import serialise_weights
from sr_models.inference.streaming import Cut
from sr_models.networks import build_network

CPU = torch.device("cpu")


def save(path: Path, network: nn.Module) -> Path:
    path.write_bytes(serialise_weights(network.state_dict(), {}))
    return path


def compact(features: int = 8, scale: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return Compact(num_feat=features, num_conv=2, upscale=scale).eval()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "net.safetensors", compact())


def photo(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def srd(*words: str | Path, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, ["upscale", *map(str, words)], input=stdin)


def test_a_stream_becomes_a_stream(model: Path, tmp_path: Path) -> None:
    content = photo(tmp_path / "a.png").read_bytes()
    found = srd(model, "-", "-", "--format", "tiff", stdin=content)
    assert found.exit_code == 0, found.output
    assert "1 written" in found.stderr and "80x60" in found.stderr
    with Image.open(io.BytesIO(found.stdout_bytes)) as made:
        assert made.format == "TIFF" and made.size == (80, 60)
    plain = srd(model, tmp_path / "a.png", "-")
    with Image.open(io.BytesIO(plain.stdout_bytes)) as made:
        assert made.format == "PNG"
    into = srd(model, "-", tmp_path / "b.webp", stdin=content)
    assert into.exit_code == 0 and Image.open(tmp_path / "b.webp").size == (80, 60)
    bad = srd(model, "-", "-", stdin=b"no picture")
    assert bad.exit_code == 1 and bad.stdout_bytes == b"" and "-: not a PNG" in bad.stderr
    many = srd(model, tmp_path, "-")
    assert many.exit_code == 1 and "standard output takes one picture" in many.stderr


def test_a_pattern_keeps_the_tree_below_its_fixed_part(model: Path, tmp_path: Path) -> None:
    for name in ("in/a/x.png", "in/b/deep/y.jpg", "in/b/z.png", "in/notes.png.txt"):
        photo(tmp_path / (name if name.endswith(("png", "jpg")) else "in/c.gif"))
    output = tmp_path / "in" / "out"
    for _ in range(2):  # the second time, its own results are no inputs
        found = srd(model, tmp_path / "in" / "**" / "*.png", output, "--format", "jpeg")
        assert found.exit_code == 0, found.output
    assert "0 written, 2 already there" in found.stdout
    names = {path.relative_to(output).as_posix() for path in output.rglob("*.*")}
    assert names == {"a/x.jpg", "b/z.jpg"}
    none = srd(model, tmp_path / "in" / "*.webp", output)
    assert none.exit_code == 1 and "holds no pictures" in none.stderr


def test_help_shows_how() -> None:
    found = srd("--help")
    assert found.exit_code == 0 and "srd upscale student photo.jpg" in found.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--format", "webp"), "is a name for png, and --format says webp"),
        (("--dtype", "fp16"), "slower than fp32 on a CPU"),
        (("--dtype", "bf16", "--backend", "torch"), "leave --dtype out"),
        (("--backend", "nothing"), "no backend 'nothing'"),
        (("--tile", "60", "--halo", "30"), "--tile 60 must be more than twice the halo of 30"),
    ],
)
def test_wrong_words_are_one_line(
    model: Path, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    photo(tmp_path / "a.png")
    found = srd(model, tmp_path / "a.png", tmp_path / "b.png", "--device", "cpu", *words)
    assert found.exit_code == 1 and told in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1 and not (tmp_path / "b.png").exists()


def test_a_side_beyond_the_format_is_told_before_any_work(model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "wide.png", 8200, 2)
    found = srd(model, tmp_path / "wide.png", tmp_path / "b.webp")
    assert found.exit_code == 1 and "16383 px a side that webp holds" in found.stderr


def test_the_halo_is_what_the_network_sees(model: Path, tmp_path: Path) -> None:
    source = photo(tmp_path / "a.png", 120, 90)
    told: list[str] = []
    upscale_files(
        str(model), source, tmp_path / "b.png", root=tmp_path, device="cpu", tile=32,
        tell=told.append,
    )  # fmt: skip
    assert "net sees 4 px around a pixel: tiles of 32 px with a halo of 4 give" in told[0]
    lr = torch.from_numpy(np.asarray(Image.open(source)).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        whole = (compact()(lr)[0].clamp(0, 1) * 255 + 0.5).floor().byte()
    got = np.asarray(Image.open(tmp_path / "b.png")).transpose(2, 0, 1)
    assert np.array_equal(got, whole.numpy())
    told.clear()
    upscale_files(
        str(model), source, tmp_path / "c.png", root=tmp_path, device="cpu", tile=32, halo=1,
        tell=told.append,
    )  # fmt: skip
    assert "more than the halo" in told[0] and "tiled against whole" in told[1]


def test_a_network_that_looks_at_everything_is_blended_and_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network("realplksr", 2, {"dim": 8, "n_blocks": 1})
    path = save(tmp_path / "plk.safetensors", network)
    told: list[str] = []
    source = photo(tmp_path / "a.png", 150, 90)
    upscale_files(
        str(path), source, tmp_path / "b.png", root=tmp_path, device="cpu", tile=80,
        tell=told.append,
    )  # fmt: skip
    assert "plk looks at all of the picture (GroupNorm): tiles of 80 px" in told[0]
    assert "blended over 32 px" in told[0]
    assert told[1].startswith("tiled against whole on 96x80 px: ") and " levels at most" in told[1]
    told.clear()
    small = photo(tmp_path / "s.png", 60, 50)
    upscale_files(
        str(path), small, tmp_path / "c.png", root=tmp_path, device="cpu", tell=told.append
    )
    assert len(told) == 1  # one tile: whole, nothing to say


def test_a_local_network_differs_by_nothing() -> None:
    def forward(lr: Tensor) -> Tensor:
        return (
            nn.functional.avg_pool2d(lr, 9, 1, 4).repeat_interleave(2, -1).repeat_interleave(2, -2)
        )

    upscaler = Upscaler("net", 2, CPU, forward)
    lr = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)

    def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return lr[top:bottom, left:right]

    exact = measured_difference(Enlarger(upscaler), read, (90, 140), Cut(48, 4))
    assert "88x48 px" in exact and "0.00 of 255 levels at most" in exact
    short = measured_difference(Enlarger(upscaler), read, (90, 140), Cut(48, 0))
    assert "0.00 of 255" not in short


def test_tiles_fit_the_memory_and_the_grid() -> None:
    plans = [
        plan_tiles(Upscaler("n", 2, CPU, lambda lr: lr, grid, network=compact(features)))
        for features, grid in ((8, 1), (8, 24), (512, 1))
    ]
    assert [plan.exact for plan in plans] == [True] * 3
    assert plans[1].cut.tile % 24 == 0 and plans[2].cut.tile <= plans[0].cut.tile
    unknown = plan_tiles(Upscaler("fusion", 2, CPU, lambda lr: lr))
    assert not unknown.exact and unknown.cut.blend > 0 and "several networks" in unknown.told
    with pytest.raises(StageError, match="--tile 6 must be more than twice the halo of 4"):
        plan_tiles(Upscaler("n", 2, CPU, lambda lr: lr, network=compact()), tile=6)


def test_out_of_memory_is_answered_with_smaller_tiles(tmp_path: Path) -> None:
    network, sizes = compact(), []

    def forward(lr: Tensor) -> Tensor:
        sizes.append(lr.shape[-2] * lr.shape[-1])
        if sizes[-1] > 40 * 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        with torch.no_grad():
            return network(lr)

    lr = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)
    got = upscale_picture(Upscaler("net", 2, CPU, forward), lr, tile=128, halo=8)
    with torch.no_grad():
        whole = network(torch.from_numpy(lr.copy()).permute(2, 0, 1)[None] / 255)[0]
    expected = (whole.clamp(0, 1) * 255 + 0.5).floor().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(got, expected) and max(sizes) > 40 * 40


def test_precision_is_what_is_asked_for_or_refused(model: Path, tmp_path: Path) -> None:
    exact = load_enlarger(str(model), tmp_path, "cpu", dtype="fp32")
    lr = torch.rand(1, 3, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(exact.network(lr), compact()(lr), rtol=0, atol=1e-4)
    try:
        near = load_enlarger(str(model), tmp_path, "cpu", dtype="bf16")
    except StageError as error:
        assert "bf16" in str(error)  # of a CPU that has no such arithmetic
    else:
        assert 0 < (exact.network(lr) - near.network(lr)).abs().max() < 0.05


def test_the_call_of_the_documentation_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "upscale.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    photo(tmp_path / "in" / "a.png")
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(code, found)
    assert isinstance(found["sr"], np.ndarray) and found["sr"].shape == (180, 240, 3)
    assert (tmp_path / "out" / "a.webp").exists()


_SLOW = """
import sys, time
from sr_assets.upscaling import enlarging
from sr_assets.upscaling.files import upscale_files
real = enlarging.Enlarger.samples
def slow(*words, **more):
    time.sleep(600)  # until it is killed
    return real(*words, **more)
enlarging.Enlarger.samples = slow
upscale_files(*sys.argv[1:4], root="unused", device="cpu", tile=32)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="cannot tell who is gone")
def test_a_killed_run_leaves_no_picture_and_is_cleared_by_the_next(
    model: Path, tmp_path: Path
) -> None:
    photo(tmp_path / "in" / "a.png", 300, 300)
    output = tmp_path / "out"
    words = [str(model), str(tmp_path / "in"), str(output)]
    process = subprocess.Popen([sys.executable, "-c", _SLOW, *words])
    try:
        while not list(output.glob(".srd-*.rows")):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert [path.suffix for path in output.iterdir()] == [".rows"]
    (output / ".srd-elsewhere-1-1.rows").write_text("of another machine")
    found = srd(*words)
    assert found.exit_code == 0, found.output
    assert {p.name for p in output.iterdir()} == {"a.png", ".srd-elsewhere-1-1.rows"}


_MEASURED = """
import json, resource, sys
from pathlib import Path
from sr_assets.upscaling.files import upscale_files
report = upscale_files(*sys.argv[1:4], root="unused", device="cpu")
assert not report.failed, report.failed
status = Path("/proc/self/status")
if status.exists():  # Linux starts ru_maxrss at what the process was forked from
    peak = int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak": peak, "megapixels": report.megapixels}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no getrusage")
def test_a_hundred_megapixels_stay_under_two_gibibytes(tmp_path: Path) -> None:
    small = save(tmp_path / "net.safetensors", compact(4, 4))
    flat = np.linspace(0, 255, 2500, dtype=np.uint8)
    lr = np.broadcast_to(flat[None, :, None], (2500, 2500, 3))
    Image.fromarray(np.ascontiguousarray(lr)).save(tmp_path / "a.jpg", quality=90)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, small, tmp_path / "a.jpg", tmp_path / "b.jpg"],
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["megapixels"] == 100.0 and found["peak"] < 2 << 30
    assert (tmp_path / "b.jpg").stat().st_size > 1e6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
