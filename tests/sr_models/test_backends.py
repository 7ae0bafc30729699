"""Everything that can run a network, on small real ones."""

import dataclasses
from pathlib import Path

import pytest
import torch
from spandrel.architectures.Compact import Compact
from spandrel.architectures.SPAN import SPAN
from torch import Tensor, nn

from sr_models.experts.loading import Expert
from sr_models.experts.running import ExpertMemoryError
from sr_models.export.fusing import fused_copy
from sr_models.export.onnx import OnnxPackagesError, export_onnx
from sr_models.inference.backends.backend import (
    EXACT_TOLERANCE,
    Backend,
    BackendError,
    Subject,
    open_backend,
)
from sr_models.inference.backends.catalogue import BACKENDS, UNMEASURED, find_backend
from sr_models.inference.backends.compiled import COMPILE
from sr_models.inference.backends.eager import BF16, CHANNELS_LAST, TORCH
from sr_models.inference.backends.graphs import fp32_graph
from sr_models.inference.backends.onnx_runtime import ONNX_RUNTIME, ONNX_RUNTIME_INT8
from sr_models.inference.backends.openvino import OPENVINO, OPENVINO_INT8
from sr_models.inference.backends.shapes import ByShape
from sr_models.students.paragonsr import ParagonSR


def expert(network: nn.Module, scale: int, **changes: object) -> Expert:
    loaded = Expert(
        architecture=type(network).__name__,
        model=fused_copy(network).requires_grad_(False),
        call=lambda model, lr: model(lr),
        scale=scale,
        minimum=1,
        multiple=1,
        feature_module=None,
        feature_channels=None,
        parameters=0,
        bf16_safe=True,
    )
    return dataclasses.replace(loaded, **changes)


def of_compact(seed: int = 4, scale: int = 2) -> Expert:
    torch.manual_seed(seed)
    return expert(Compact(num_feat=8, num_conv=2, upscale=scale), scale)


@pytest.fixture
def compact() -> Expert:
    return of_compact()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """ONNX files: of `compact`, of other weights, of another scale."""
    folder = tmp_path_factory.mktemp("graphs")
    made = {"own": of_compact(), "other": of_compact(5), "x3": of_compact(scale=3)}
    for name, one in made.items():
        export_onnx(one.model, one.scale, 1, folder / name)
    return {name: (folder / name).read_bytes() for name in made}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def lr() -> Tensor:
    return torch.rand(1, 3, 19, 26, generator=torch.Generator().manual_seed(5))


def paragon() -> nn.Module:
    torch.manual_seed(6)
    network = ParagonSR(scale=2, num_feat=16, num_groups=1, num_blocks=1, branch_ratio=0.25)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.normal_()
    return network


@pytest.mark.parametrize("backend", [CHANNELS_LAST, ONNX_RUNTIME, OPENVINO], ids=lambda b: b.name)
@pytest.mark.parametrize(
    "network",
    [
        lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
        paragon,
    ],
    ids=["merges in every pass", "fused"],
)
def test_an_exact_backend_makes_the_pictures_of_torch_at_every_size(
    backend: Backend, network: object, cache: Path
) -> None:
    if backend is OPENVINO:
        pytest.importorskip("openvino")
    torch.manual_seed(7)
    subject = Subject(expert(network(), 2), cache=cache)
    reference, run = open_backend(TORCH, subject), open_backend(backend, subject)
    for height, width in ((19, 26), (26, 19), (19, 26), (19, 26), (9, 8)):
        lr = torch.rand(1, 3, height, width)
        kept = lr.clone()
        found = run(lr)
        assert found.shape == (1, 3, 2 * height, 2 * width)
        assert found.dtype == torch.float32
        assert float((found - reference(kept)).abs().max()) <= EXACT_TOLERANCE
        assert torch.equal(lr, kept)


@pytest.mark.slow
def test_a_compiled_network_makes_the_pictures_of_torch(compact: Expert, lr: Tensor) -> None:
    subject = Subject(compact)
    reason = COMPILE.lacking(subject)
    if reason is not None:
        pytest.skip(reason)
    reference, run = open_backend(TORCH, subject)(lr), open_backend(COMPILE, subject)
    for _ in range(COMPILE.warm_up + 1):
        found = run(lr)
    assert float((found - reference).abs().max()) <= EXACT_TOLERANCE


def test_sides_are_padded_to_what_the_network_asks_for(compact: Expert, tmp_path: Path) -> None:
    seen = []

    def call(model: nn.Module, lr: Tensor) -> Tensor:
        seen.append(tuple(lr.shape[2:]))
        return model(lr)

    subject = Subject(dataclasses.replace(compact, minimum=12, multiple=8, call=call))
    for backend in (TORCH, CHANNELS_LAST):
        assert open_backend(backend, subject)(torch.rand(1, 3, 9, 20)).shape == (1, 3, 18, 40)
    assert seen == [(16, 24), (16, 24)]


def test_a_graph_is_exported_once_and_kept(
    compact: Expert, lr: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject(compact, cache=tmp_path / "onnx")
    first = open_backend(ONNX_RUNTIME, subject)(lr)
    (kept,) = (tmp_path / "onnx").iterdir()
    monkeypatch.setattr(
        "sr_models.inference.backends.graphs.export_onnx", lambda *a: pytest.fail("again")
    )
    assert torch.equal(open_backend(ONNX_RUNTIME, subject)(lr), first)
    with pytest.raises(pytest.fail.Exception, match="again"):
        open_backend(ONNX_RUNTIME, Subject(of_compact(5), cache=kept.parent))


def test_a_file_of_other_weights_is_refused(compact: Expert, graphs: dict[str, bytes]) -> None:
    subject = Subject(compact, {"fp32": lambda: graphs["other"]})
    with pytest.raises(BackendError, match=r"differs from these weights by .*: export it again"):
        open_backend(ONNX_RUNTIME, subject)
    subject = Subject(compact, {"fp32": lambda: graphs["x3"]})
    with pytest.raises(BackendError, match=r"gives \(1, 3, 144, 144\) where"):
        open_backend(ONNX_RUNTIME, subject)
    subject = Subject(compact, {"int8-cpu": lambda: graphs["other"]})
    with pytest.raises(BackendError, match="dB to torch is below 30"):
        open_backend(ONNX_RUNTIME_INT8, subject)


def test_a_file_beside_the_weights_is_what_runs(
    compact: Expert, lr: Tensor, graphs: dict[str, bytes], tmp_path: Path
) -> None:
    read = []

    def graph() -> bytes:
        read.append(1)
        return graphs["own"]

    subject = Subject(compact, {"fp32": graph}, tmp_path / "none")
    found = open_backend(ONNX_RUNTIME, subject)(lr)
    assert torch.allclose(found, open_backend(TORCH, subject)(lr), atol=1e-5)
    assert read == [1]
    assert not (tmp_path / "none").exists()


def test_a_network_that_folds_is_exported_in_spite_of_its_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject(expert(paragon(), 2), {"fp32": lambda: b"its file"}, cache)
    assert fp32_graph(subject) != b"its file"

    def no_package(*arguments: object) -> None:
        raise OnnxPackagesError("ONNX export needs onnx")

    monkeypatch.setattr("sr_models.inference.backends.graphs.export_onnx", no_package)
    bare = Subject(subject.expert, subject.graphs)
    assert fp32_graph(bare) == b"its file"
    with pytest.raises(BackendError, match="ONNX export needs onnx"):
        fp32_graph(Subject(subject.expert))


@pytest.mark.parametrize("backend", [ONNX_RUNTIME_INT8, OPENVINO_INT8], ids=lambda b: b.name)
def test_without_a_quantised_file_int8_says_so(backend: Backend, compact: Expert) -> None:
    if backend is OPENVINO_INT8:
        pytest.importorskip("openvino")
    with pytest.raises(BackendError, match=f"{backend.name}: there is no .*_int8-cpu.onnx beside"):
        open_backend(backend, Subject(compact))


def test_bfloat16_is_refused_for_a_network_that_does_not_bear_it(compact: Expert) -> None:
    with pytest.raises(BackendError, match="Compact is not known to bear bfloat16"):
        open_backend(BF16, Subject(dataclasses.replace(compact, bf16_safe=False)))


def test_bfloat16_on_a_cpu_follows_its_instructions(
    compact: Expert, lr: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    with pytest.raises(BackendError, match="this CPU has no bfloat16"):
        open_backend(BF16, Subject(compact))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    near = open_backend(BF16, Subject(compact))(lr)
    difference = (near - open_backend(TORCH, Subject(compact))(lr)).abs()
    assert near.dtype == torch.float32
    assert 0 < float(difference.max()) < 0.05


def test_no_memory_is_told_as_such_whatever_class_the_runtime_has(compact: Expert) -> None:
    def prepare(subject: Subject) -> object:
        def run(lr: Tensor) -> Tensor:
            raise OSError("bad allocation")

        return run

    full = Backend("full", "exact", lambda subject: None, prepare)
    with pytest.raises(ExpertMemoryError, match="does not fit into memory"):
        open_backend(full, Subject(compact))(torch.rand(1, 3, 8, 8))


def test_a_shape_is_prepared_for_once_it_comes_again() -> None:
    ran: list[str] = []

    def general(lr: Tensor) -> Tensor:
        ran.append("general")
        return lr

    def special(shape: tuple[int, ...]) -> object:
        def run(lr: Tensor) -> Tensor:
            ran.append(f"for {shape[2]}x{shape[3]}")
            return lr

        return run

    by_shape = ByShape(general, special, after=2)
    for height in (8, 9, 8, 8, 8, 9):
        by_shape(torch.zeros(1, 3, height, 4))
    assert ran == ["general", "general", "general", "for 8x4", "for 8x4", "general"]


def test_the_first_backend_is_the_reference_and_none_taken_unasked_is_near() -> None:
    assert BACKENDS[0] is TORCH
    assert UNMEASURED.exactness == "exact" and not UNMEASURED.integer
    assert all(backend.exactness == "near" for backend in BACKENDS if backend.integer)
    assert len({backend.name for backend in BACKENDS}) == len(BACKENDS)


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert find_backend("openvino") is OPENVINO
    with pytest.raises(
        BackendError, match="no backend 'fast': take auto, exact or one of torch, chan"
    ):
        find_backend("fast")
