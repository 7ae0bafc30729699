"""The expert stages: where weights come from, what is verified, and the resumable cache."""

import contextlib
import dataclasses
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from upath import UPath

from sr_assets.assets import expert_caches, experts
from sr_assets.lineage.stage import Ref, StageContext, StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.stores import expert_cache
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairWriter
from sr_models.experts.loading import load_expert
from sr_models.experts.running import run_expert
from sr_models.networks import build_network

COUNT, VARIANTS, SIDE = 5, 2, 12


def _recipe(source, scale=4, *, models=None, **expert):
    return Recipe.model_validate(
        {
            "name": "r",
            "scale": scale,
            "datasets": {"photos": {"source": {"kind": "folder", "path": "p"}}},
            "experts": {"e": {"source": source, **expert}},
            "models": {"f": {"kind": "fusion"}} if models is None else models,
            "compute": {"device": "cpu"},
        }
    )


def _stage(recipe, what):
    stages = [*experts.stages(recipe), *expert_caches.stages(recipe)]
    return {stage.key: stage for stage in stages}[f"expert/e/{what}"]


class _Run:
    """Runs one stage into `folder`; keeps what it logged and how far its bar came."""

    def __init__(self, folder, recipe, what, inputs=None):
        stage = _stage(recipe, what)
        self.logged, self.advanced, self.total = [], [], 0
        self.folder = OutputFolder(UPath(folder / "out" / f"{what}"))
        partition = "photos" if what == "cache" else None
        context = StageContext(
            recipe=recipe,
            ref=Ref(stage.key, partition),
            output=self.folder,
            inputs=inputs or {},
            log=self.logged.append,
            observe=lambda point: None,
            bar=self._bar,
        )
        self.metadata = stage.run(context)
        self.output = self.folder.commit({"metadata": self.metadata})

    @contextlib.contextmanager
    def _bar(self, label, total, unit):
        self.total = total
        yield self.advanced.append


def _weights(folder, name="e.safetensors", scale=4, **args):
    torch.manual_seed(0)
    state = build_network("EDSR", scale, {"num_feat": 8, "num_block": 1, **args}).state_dict()
    path = folder / name
    save_file(state, path)
    return path


def _file(path):
    return {"kind": "file", "path": str(path)}


def test_weights_are_taken_untouched_and_recognised(tmp_path):
    path = _weights(tmp_path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    recipe = _recipe(_file(path), sha256=sha256, architecture="EDSR", licence="MIT")
    run = _Run(tmp_path, recipe, "weights")
    assert run.output.read_bytes("weights.safetensors") == path.read_bytes()
    expert = load_expert(path)
    assert run.output.read_json("expert.json") == {
        "architecture": "EDSR",
        "scale": 4,
        "parameters": expert.parameters,
        "sha256": sha256,
        "licence": "MIT",
        "feature_channels": 8,
        "multiple": 1,
    }
    assert experts.load_weights(run.output, tmp_path).parameters == expert.parameters


def test_licence_does_not_change_the_content(tmp_path):
    path = _weights(tmp_path)
    versions = set()
    for licence in ("MIT", "CC0-1.0"):
        run = _Run(tmp_path / licence, _recipe(_file(path), licence=licence), "weights")
        versions.add(run.output.data_version)
    assert len(versions) == 1


def test_shipped_weights_and_what_ships(tmp_path, monkeypatch):
    monkeypatch.setattr(experts, "SHIPPED", tmp_path)
    _weights(tmp_path, "tiny_x4.safetensors")
    recipe = _recipe({"kind": "builtin", "name": "tiny_x4"})
    assert _Run(tmp_path, recipe, "weights").metadata["architecture"] == "EDSR"
    before = _stage(recipe, "weights").outside(None)
    _weights(tmp_path, "tiny_x4.safetensors")  # another time, the same bytes
    assert _stage(recipe, "weights").outside(None) == before
    with pytest.raises(StageError, match=r"source\.name: no weights 'huge'.*there is: tiny_x4"):
        _Run(tmp_path, _recipe({"kind": "builtin", "name": "huge"}), "weights")


def test_a_missing_file_says_where_to_put_it(tmp_path):
    recipe = _recipe(_file(tmp_path / "gone.pth"))
    with pytest.raises(StageError, match=r"gone\.pth is missing: put the weights of e at /.*gone"):
        _Run(tmp_path, recipe, "weights")
    assert _stage(recipe, "weights").outside(None) == {str(tmp_path / "gone.pth"): "missing"}


def test_a_changed_file_is_noticed(tmp_path):
    stage = _stage(_recipe(_file(_weights(tmp_path))), "weights")
    before = stage.outside(None)
    _weights(tmp_path, num_block=2)
    assert stage.outside(None) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, r"experts\.e\.sha256 is 0{64}, but the file has [0-9a-f]{64}"),
        ({"architecture": "HAT"}, r"architecture is HAT, but the file holds EDSR"),
        ({"scale": 2}, r"these weights enlarge 4 times, but scale is 2"),
    ],
)
def test_what_contradicts_the_recipe_is_refused(change, message, tmp_path):
    path = _weights(tmp_path)
    with pytest.raises(StageError, match=message):
        _Run(tmp_path, _recipe(_file(path), **change), "weights")
    assert not OutputFolder(UPath(tmp_path / "out" / "weights")).files


def test_a_file_that_is_no_network_names_the_field(tmp_path):
    save_file({"what": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(StageError, match=r"experts\.e\.source: weights\.safetensors: no arch"):
        _Run(tmp_path, _recipe(_file(tmp_path / "a.safetensors")), "weights")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that holds owner/name:e.safetensors at revision v1."""
    from huggingface_hub import constants

    content = _weights(tmp_path).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            found = self.path == "/owner/name/resolve/v1/e.safetensors"
            self.send_response(200 if found else 404)
            if found:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "1" * 40)
                self.send_header("Content-Length", str(len(content)))
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
            self.end_headers()
            if body and found:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield content
    server.shutdown()
    server.server_close()
    thread.join()


def test_weights_from_a_hub(hub, tmp_path):
    source = {"kind": "hub", "repo": "owner/name", "file": "e.safetensors", "revision": "v1"}
    run = _Run(tmp_path, _recipe(source), "weights")
    assert run.output.read_bytes("weights.safetensors") == hub
    assert _stage(_recipe(source), "weights").outside(None) == {}
    with pytest.raises(StageError, match=r"gone\.pth of owner/name@v1 cannot be fetched") as caught:
        _Run(tmp_path / "2", _recipe({**source, "file": "gone.pth"}), "weights")
    assert "\n" not in str(caught.value)


@pytest.fixture
def gold(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "gold"))
    writer = PairWriter(folder, COUNT, VARIANTS, SIDE, {})
    lr = np.random.default_rng(0).integers(0, 256, (COUNT, VARIANTS, SIDE, SIDE, 3), np.uint8)
    for shard, samples in enumerate(writer.shards):
        writer.write(shard, lr[samples.start : samples.stop])
    return folder.commit({"metadata": {}}), lr


def _cached(folder, gold, **expert):
    path = folder / "e.safetensors"
    recipe = _recipe(_file(path if path.exists() else _weights(folder)), **expert)
    weights = _Run(folder, recipe, "weights").output
    inputs = {Ref("gold/pairs", "photos"): gold[0], Ref("expert/e/weights"): weights}
    return recipe, inputs


def test_cache_holds_what_the_expert_says(tmp_path, gold):
    recipe, inputs = _cached(tmp_path, gold, features=True, batch=3)
    run = _Run(tmp_path, recipe, "cache", inputs)
    cache = CacheReader(run.output)
    assert (len(cache), cache.variants, cache.size) == (COUNT, VARIANTS, 4 * SIDE)
    assert cache.feature_shape == (8, SIDE, SIDE)
    expert = load_expert(tmp_path / "e.safetensors")
    for index, variant in ((0, 0), (2, 1), (4, 1)):
        lr = torch.from_numpy(gold[1][index, variant]).permute(2, 0, 1)[None].float() / 255
        out = run_expert(expert, lr, features=True)
        assert np.abs(cache.sr(index, variant) - out.sr[0].numpy()).max() < 0.51 / 2040
        features = out.features[0].numpy()
        step = np.abs(features).max((1, 2), keepdims=True) / 127
        assert (np.abs(cache.features(index, variant) - features) <= 0.51 * step + 1e-6).all()
    assert run.total == COUNT * VARIANTS == sum(run.advanced) == run.metadata["images"]
    assert run.metadata["images_per_second"] > 0
    assert cache.attributes["tap"] == "conv_after_body"
    weights = inputs[Ref("expert/e/weights")]
    assert cache.attributes["weights_sha256"] == weights.read_json("expert.json")["sha256"]
    assert run.metadata["sr_error_max"] <= 0.51 / 2040


@pytest.mark.parametrize("preset", ["lossless", "default", "small"])
def test_a_preset_keeps_what_it_promises(tmp_path, gold, preset):
    recipe, inputs = _cached(tmp_path, gold, features=True, cache=preset)
    run = _Run(tmp_path, recipe, "cache", inputs)
    cache = CacheReader(run.output)
    lr = torch.from_numpy(gold[1][:, 0]).permute(0, 3, 1, 2).float() / 255
    out = run_expert(load_expert(tmp_path / "e.safetensors"), lr, features=True)
    sr, features = cache.sr_batch(range(COUNT), [0] * COUNT), cache.features(1, 0)
    error = np.abs(sr - out.sr.numpy()).max()
    assert cache.attributes["preset"] == preset
    assert error <= run.metadata["sr_error_max"] * 1.01 + 1e-6  # batches differ in rounding
    if preset == "lossless":
        assert run.metadata["sr_error_max"] == run.metadata["features_error_max"] == 0
        assert cache.sr_step is None and cache.sr_stored(0, 0).dtype == np.float32
        assert np.abs(features - out.features[1].numpy()).max() < 1e-5
    else:
        assert 0 < error < 0.51 / 2040 and cache.sr_step == 1 / 2040
        assert cache.features_stored(1, 0)[0].dtype == np.int8


def test_features_that_no_model_learns_from_are_not_cached(tmp_path, gold):
    for models in ({}, {"f": {"kind": "fusion", "phases": {"collaboration": False}}}):
        recipe, inputs = _cached(tmp_path, gold, features=True, models=models)
        run = _Run(tmp_path / str(len(models)), recipe, "cache", inputs)
        assert CacheReader(run.output).feature_shape is None


def test_a_killed_cache_resumes_and_gives_the_same_content(tmp_path, gold, monkeypatch):
    monkeypatch.setattr(expert_cache, "_SHARD_SAMPLES", 2)
    recipe, inputs = _cached(tmp_path, gold, features=True, batch=3)
    whole = _Run(tmp_path / "whole", recipe, "cache", inputs)

    calls = []
    real = run_expert

    def killed(*args, **kwargs):
        calls.append(len(args[1]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr("sr_models.experts.running.run_expert", killed)
    with pytest.raises(KeyboardInterrupt):
        _Run(tmp_path, recipe, "cache", inputs)
    assert calls == [3, 1, 3, 1]  # batches stay inside a shard of 2 patches x 2 variants
    assert not (tmp_path / "out" / "cache").exists()
    calls.clear()
    calls += [0] * 10
    resumed = _Run(tmp_path, recipe, "cache", inputs)
    assert calls[10:] == [3, 1, 2]  # the first shard is not run again
    assert resumed.total == 6
    assert any("1 of 3 shards are finished" in line for line in resumed.logged)
    assert resumed.output.data_version == whole.output.data_version
    assert resumed.metadata["sr_error_rms"] == whole.metadata["sr_error_rms"]


def test_a_cache_made_twice_has_the_same_content(tmp_path, gold):
    recipe, inputs = _cached(tmp_path, gold)
    first = _Run(tmp_path / "1", recipe, "cache", inputs)
    second = _Run(tmp_path / "2", recipe, "cache", inputs)
    assert first.output.data_version == second.output.data_version
    assert CacheReader(first.output).feature_shape is None


def test_bf16_caches_another_result(tmp_path, gold):
    recipe, inputs = _cached(tmp_path, gold)
    full = _Run(tmp_path / "1", recipe, "cache", inputs)
    recipe, inputs = _cached(tmp_path, gold, dtype="bf16")
    half = _Run(tmp_path / "2", recipe, "cache", inputs)
    difference = CacheReader(full.output).sr(0, 0) - CacheReader(half.output).sr(0, 0)
    assert 0 < np.abs(difference).max() < 0.05


def test_a_value_that_is_not_finite_names_patch_and_variant(tmp_path, gold, monkeypatch):
    from sr_models.experts import loading

    recipe, inputs = _cached(tmp_path, gold, batch=3)
    bad = torch.from_numpy(gold[1][2, 1]).permute(2, 0, 1).float() / 255

    def broken(model, x):
        y = model(x)
        y[(x == bad).all(dim=(1, 2, 3))] = float("nan")
        return y

    real = loading.load_expert
    monkeypatch.setattr(
        loading, "load_expert", lambda path: dataclasses.replace(real(path), call=broken)
    )
    with pytest.raises(StageError, match="patch 2, variant 1 of photos gives a value that is not"):
        _Run(tmp_path, recipe, "cache", inputs)


def test_features_of_a_network_without_any_are_refused(tmp_path, gold):
    torch.manual_seed(0)
    state = build_network("Compact", 4, {"num_feat": 8, "num_conv": 1}).state_dict()
    save_file(state, tmp_path / "e.safetensors")
    recipe, inputs = _cached(tmp_path, gold, features=True)
    with pytest.raises(StageError, match=r"experts\.e\.features: Compact has no conv_after_body"):
        _Run(tmp_path, recipe, "cache", inputs)


def test_only_what_decides_a_result_is_in_the_code_version():
    first = _recipe(_file("/a"), batch=1)
    for what in ("weights", "cache"):
        assert _stage(first, what).settings == _stage(_recipe(_file("/a"), batch=9), what).settings
    wide = _recipe(_file("/a"), features=True)
    assert _stage(first, "weights").settings == _stage(wide, "weights").settings
    assert _stage(first, "cache").settings != _stage(wide, "cache").settings
    assert _stage(first, "cache").pool == "gpu"
    assert _stage(first, "cache").partitions == "dataset"
    assert _stage(first, "weights").partitions is None
    assert set(_stage(first, "cache").inputs("photos")) == {
        Ref("gold/pairs", "photos"),
        Ref("expert/e/weights"),
    }
