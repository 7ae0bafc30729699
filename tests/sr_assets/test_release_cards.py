"""What a release says of itself: to people, to the hub, to OpenModelDB and to programs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from sr_assets.recipe.loading import load_recipe
from sr_assets.recipe.public import public_settings, public_text
from sr_assets.report.front_matter import evaluation_files, front_matter
from sr_assets.report.licences import hub_licence, licence_fields, spdx_licence
from sr_assets.report.model_card import CardFacts, Picture, render_card
from sr_assets.report.model_json import json_card, openmodeldb

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCORE = {"psnr_y": 28.84321, "ssim_y": 0.91234, "colour_offset": [0, 0, 0]}


def facts(**changes: Any) -> CardFacts:
    base = CardFacts(
        description={
            "model": "net", "kind": "student", "architecture": "RealPLKSR", "scale": 4,
            "args": {"dim": 8, "dysample": True}, "parameters": 1234, "licence": "CC-BY-4.0",
            "experts": [],
        },
        files={
            "net_x4.safetensors": {"sha256": "a" * 64, "size": 10},
            "net_x4_fp16.onnx": {"sha256": "b" * 64, "size": 5},
            "net_x4_fp32.onnx": {"sha256": "c" * 64, "size": 9},
        },
        onnx={"multiple": 1, "free_batch": True},
        data={"photos": "CC0"},
        experts={"hat": "Apache-2.0"},
        expert_weights={"hat": "d" * 64},
        teachers={"hat": (0, "Apache-2.0")},
        versions={"gold/pairs[photos]": "g1"},
        rows={"bicubic": {"set5": SCORE}, "net": {"set5": SCORE, "own": SCORE}},
        checks=[{"name": "beats_bicubic", "passed": True, "reason": "+0.8 dB"}],
        plain_spandrel=True,
        pictures=(Picture("assets/own_1.png", "own", "a.png", 0.5, "CC0"),),
        author="Ada L.",
        hub="me/net-x4",
        hub_data=("owner/photos",),
        base_models=("owner/hat",),
        hub_benchmarks={"set5": ("owner/set5", COMMIT)},
        iterations=100,
        batch_size=16,
        hr_size=256,
    )  # fmt: skip
    return replace(base, **changes)


def describe(**changes: Any) -> CardFacts:
    return facts(description={**facts().description, **changes})


def test_the_hub_reads_the_front_matter() -> None:
    data = ModelCard(render_card(facts(), "1.2.0")).data
    assert (data.library_name, data.pipeline_tag) == ("spandrel", "image-to-image")
    assert (data.license, data.datasets) == ("cc-by-4.0", ["owner/photos"])
    assert (data.base_model, data.metrics) == (["owner/hat"], ["psnr", "ssim"])
    assert {"super-resolution", "x4", "realplksr", "onnx"} <= set(data.tags or ())
    assert data.model_name == "net"
    found = {(r.dataset_name, r.metric_type): r for r in data.eval_results or ()}
    assert set(found) == {(b, m) for b in ("set5", "own") for m in ("psnr", "ssim")}
    psnr = found["set5", "psnr"]
    assert (psnr.metric_value, psnr.dataset_type) == (28.843, "owner/set5")
    assert psnr.dataset_revision == COMMIT and found["own", "psnr"].dataset_type == "own"
    assert "BT.601" in (psnr.metric_args or {})["convention"]
    assert (psnr.task_type, psnr.metric_name) == ("image-to-image", "PSNR-Y (dB)")


def test_the_convention_says_what_lr_a_benchmark_has() -> None:
    card = ModelCard(render_card(facts(other_lr={"own": "its own LR"})))
    told = {r.dataset_name: r.metric_args["convention"] for r in card.data.eval_results or ()}
    assert told["set5"].startswith("LR by MATLAB-compatible bicubic reduction; SR rounded")
    assert told["own"].startswith("its own LR on own; SR rounded")
    assert "bicubic reduction, its own LR on own; SR rounded to 8 bits" in card.text


def test_numbers_that_are_not_there_are_left_out() -> None:
    exact = {**SCORE, "psnr_y": None}
    data = ModelCard(render_card(facts(rows={"net": {"own": exact}}))).data
    assert [r.metric_type for r in data.eval_results or ()] == ["ssim"]
    bare = yaml.safe_load(front_matter(facts(rows={}, hub_data=(), base_models=())).strip("-\n"))
    assert {"model-index", "metrics", "datasets", "base_model", "model_name"}.isdisjoint(bare)
    assert json.loads(json_card(facts(rows={}), "1.0.0", ""))["performance"]["psnr"] is None


def test_the_hub_reads_the_evaluation_files() -> None:
    parse = pytest.importorskip("huggingface_hub", minversion="1.4").parse_eval_result_entries
    files = evaluation_files(facts(), "2026-11-22")
    assert list(files) == [".eval_results/set5.yaml"]  # the other is no dataset of the hub
    (entry,) = parse(yaml.safe_load(files[".eval_results/set5.yaml"]))
    assert (entry.dataset_id, entry.dataset_revision) == ("owner/set5", COMMIT)
    assert (entry.task_id, entry.value) == ("super_resolution_x4", 28.843)
    assert str(entry.date) == "2026-11-22" and "BT.601" in entry.notes
    named = facts(hub_benchmarks={"set5": ("owner/set5", "main")})  # a branch is no commit
    assert b"revision" not in evaluation_files(named, "")[".eval_results/set5.yaml"]


def test_the_json_card_has_the_fields_of_distillsr() -> None:
    card = json.loads(json_card(facts(), "1.2.0", "2026-11-22"))
    performance = card.pop("performance")
    assert card == {
        "model_name": "net", "version": "1.2.0", "architecture": "RealPLKSR", "scale": 4,
        "input_channels": 3, "output_channels": 3, "parameters": 1234,
        "training": {"dataset": "photos", "iterations": 100, "batch_size": 16},
        "export_formats": ["onnx", "safetensors"], "license": "CC-BY-4.0", "author": "Ada L.",
        "date": "2026-11-22",
    }  # fmt: skip
    assert performance["psnr"] == pytest.approx(28.84321)
    assert performance["benchmarks"]["own"]["ssim"] == 0.91234


#: What OpenModelDB's own check asks of an entry: field -> type (src/lib/model-props.ts there).
REQUIRED = {
    "name": str, "author": str, "tags": list, "description": str, "date": str, "architecture": str,
    "scale": int, "inputChannels": int, "outputChannels": int, "resources": list, "images": list,
}  # fmt: skip


def test_openmodeldb_takes_the_entry() -> None:
    text = openmodeldb(facts(), "1.2.0", "2026-11-22").decode()
    entry = json.loads(text)
    assert text == json.dumps(entry, indent=4, ensure_ascii=False)
    assert all(isinstance(entry[name], kind) for name, kind in REQUIRED.items())
    assert entry["tags"] and entry["description"] == entry["description"].strip()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"])
    assert (entry["license"], entry["architecture"]) == ("CC-BY-4.0", "realplksr-dysample")
    assert (entry["author"], entry["trainingHRSize"]) == ("ada-l", 256)
    for resource in entry["resources"]:
        assert resource["type"] in ("pth", "onnx", "safetensors") and resource["size"] >= 1
        assert resource["platform"] in ("pytorch", "onnx")
        assert re.fullmatch(r"[0-9a-f]{64}", resource["sha256"])
    base = "https://huggingface.co/me/net-x4/resolve/v1.2.0"
    assert entry["resources"][0]["urls"] == [f"{base}/net_x4.safetensors"]
    assert entry["images"][0]["url"] == f"{base}/assets/own_1.png"
    nowhere = json.loads(openmodeldb(facts(hub=None), "1.2.0", "2026-11-22"))
    assert nowhere["images"] == [] and all(r["urls"] == [] for r in nowhere["resources"])


def test_the_card_tells_how_to_run_it_everywhere() -> None:
    card = render_card(facts(), "1.2.0")
    assert "srd pull me/net-x4@v1.2.0 --to ." in card
    assert 'load_from_file("net_x4.safetensors")' in card
    assert "In chaiNNer: PyTorch, Load Model, `net_x4.safetensors`" in card
    assert 'InferenceSession("net_x4_fp32.onnx")' in card
    assert "![](assets/own_1.png)" in card and "own/a.png: +0.50 dB over bicubic (CC0)" in card
    ours = render_card(facts(plain_spandrel=False), "1.2.0")
    assert "sr_models.register()" in ours and "library_name: sr-distillery" in ours
    assert "In chaiNNer: ONNX, Load Model, `net_x4_fp32.onnx`" in ours


def test_what_people_wrote_stays_in_its_cell() -> None:
    card = render_card(facts(data={"photos": "mine | all\n# rights"}), "1.0.0")
    assert "| photos | mine \\| all # rights |" in card
    assert yaml.safe_load(front_matter(describe(licence="a: b # c\n---\nd")).strip("-\n"))


@pytest.mark.parametrize(
    ("text", "hub", "spdx"),
    [
        ("CC0", "cc0-1.0", "CC0-1.0"),
        ("cc by 4.0", "cc-by-4.0", "CC-BY-4.0"),
        ("MIT", "mit", "MIT"),
        ("GPL-3.0-or-later", "gpl-3.0", "GPL-3.0-or-later"),
        ("AGPL-3.0", "agpl-3.0", "AGPL-3.0-only"),
        ("openrail++", "openrail++", None),
        ("research only", None, None),
        (None, None, None),
    ],
)
def test_licences(text: str | None, hub: str | None, spdx: str | None) -> None:
    assert (hub_licence(text), spdx_licence(text)) == (hub, spdx)


@given(st.text(max_size=30))
def test_every_licence_has_fields_that_the_hub_takes(text: str) -> None:
    fields = licence_fields(text)
    assert fields["license"] in ("unknown", "other") or fields["license"] == hub_licence(text)
    if fields["license"] == "other":
        assert re.fullmatch(r"[a-z0-9.-]+", fields["license_name"])


def test_a_published_recipe_names_no_machine_and_builds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    student = {
        "kind": "student", "teachers": ["plain"], "control": True,
        "network": {"architecture": "Compact"},
    }  # fmt: skip
    plain = {"kind": "plain", "network": {"architecture": "Compact"}, "train": {"steps": 9}}
    written = {
        "name": "mine", "root": "memory://secret-bucket/x", "compute": {"workers": 7},
        "datasets": {"photos": {"source": {"kind": "folder", "path": "photos"}}},
        "models": {"plain": plain, "small": student},
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(written))
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    text = public_text(recipe)
    assert str(tmp_path) not in text and "path: ~/photos" in text
    assert "secret-bucket" not in text and "workers" not in text
    settings = json.dumps(public_settings(recipe))
    assert '"silver.patch_size": 256' in settings and '"models.small.control": true' in settings
    assert str(tmp_path) not in settings and "secret-bucket" not in settings
    (tmp_path / "again.yaml").write_text(text)
    again = load_recipe(str(tmp_path / "again.yaml"))
    left_out = {"root", "compute", "automation"}
    assert again.model_dump(exclude=left_out) == recipe.model_dump(exclude=left_out)
