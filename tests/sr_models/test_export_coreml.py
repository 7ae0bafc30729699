"""CoreML packages, as far as they can be looked at without a Mac."""

import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sr_models.export.coreml import CoreMLError, CoreMLPackagesError, export_coreml
from sr_models.networks import build_network

SPECIFICATION = "a.mlpackage/Data/com.apple.CoreML/model.mlmodel"


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> None:
    if "missing" not in request.node.name:
        pytest.importorskip("coremltools")


def test_a_package_takes_any_size_and_says_what_it_is(tmp_path: Path) -> None:
    from coremltools.proto import Model_pb2

    torch.manual_seed(3)
    network = build_network("paragonsr2_realtime", 2, {"channels": 8})
    path = tmp_path / "a.mlpackage.zip"
    report = export_coreml(network, 2, 1, path, metadata={"licence": "MIT", "model": "student"})
    assert (report.smallest, report.largest) == (8, 2048)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in network.modules())
    assert report.operations["conv"] == convolutions + 2  # both passes of the fixed enlargement
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("a.mlpackage/Manifest.json"))
        entries = manifest["itemInfoEntries"].values()
        names = archive.namelist()
        assert all(any(e["path"] in name for name in names) for e in entries)
        assert manifest["rootModelIdentifier"] in manifest["itemInfoEntries"]
        spec = Model_pb2.Model.FromString(archive.read(SPECIFICATION))
        content = b"".join(archive.read(name) for name in names)
    (given,), (made,) = spec.description.input, spec.description.output
    assert (given.name, made.name) == ("input", "output")
    sides = given.type.multiArrayType.shapeRange.sizeRanges[2:]
    assert [(s.lowerBound, s.upperBound) for s in sides] == [(8, 2048)] * 2
    told = dict(spec.description.metadata.userDefined)
    assert told == {"licence": "MIT", "model": "student", "multiple": "1", "scale": "2"}
    for word in (b"site-packages", str(Path.home()).encode() + b"/", b".py"):
        assert word not in content


def test_equal_networks_give_equal_bytes(tmp_path: Path) -> None:
    network = build_network("Compact", 2, {"num_feat": 4, "num_conv": 1})
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        export_coreml(network, 2, 1, tmp_path / folder / "a.mlpackage.zip")
    one, two = ((tmp_path / f / "a.mlpackage.zip").read_bytes() for f in ("one", "two"))
    assert one == two and zipfile.is_zipfile(io.BytesIO(one))


class Baked(nn.Module):
    """Works at one size only."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.register_buffer("place", torch.rand(1, 3, side, side))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.place


def test_a_size_that_is_baked_in_stays_fixed(tmp_path: Path) -> None:
    report = export_coreml(Baked(256), 1, 16, tmp_path / "a.mlpackage.zip")
    assert (report.smallest, report.largest) == (256, 256)


def test_what_cannot_be_converted_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(CoreMLError, match="Baked cannot be converted"):
        export_coreml(Baked(40), 1, 1, tmp_path / "a.mlpackage.zip")
    assert not list(tmp_path.iterdir())


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(CoreMLPackagesError, match=r"pip install 'sr-distillery\[coreml\]'"):
        export_coreml(Baked(256), 1, 1, tmp_path / "a.mlpackage.zip")
