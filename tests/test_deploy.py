"""The examples in `deploy/`, held against the schemas and the settings that read them."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from sr_assets import home
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.models import Recipe

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DATABASE = ("PG_HOST", "PG_PORT", "PG_USER", "PG_PASSWORD", "PG_DATABASE")
#: What a server may set otherwise than one person's machine.
_OF_A_SERVER = {"storage", "concurrency"}


def _read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.mark.parametrize("name", ["docker-compose.yaml", "compose.gpu.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    package = pytest.importorskip("check_jsonschema").__name__
    schema = files(package) / "builtin_schemas" / "vendor" / "compose-spec.json"
    content = json.loads(schema.read_text())
    validator = jsonschema.validators.validator_for(content)(content)
    assert [error.message for error in validator.iter_errors(_read(name))] == []
    assert list(validator.iter_errors({"services": {"a": {"imago": "b"}}})), "it sees mistakes"


def test_compose_gives_every_variable_that_the_settings_read() -> None:
    services = _read("docker-compose.yaml")["services"]
    settings = _read("dagster.yaml")["storage"]["postgres"]["postgres_db"]
    assert {v["env"] for v in settings.values() if isinstance(v, dict)} == set(DATABASE)
    (location,) = _read("workspace.yaml")["load_from"]
    for name in ("code", "daemon", "webserver"):
        service = services[name]
        assert {*DATABASE, location["grpc_server"]["host"]["env"]} <= set(service["environment"])
        mounts = [str(volume).split(":")[1] for volume in service["volumes"]]
        assert "/opt/dagster/dagster_home/dagster.yaml" in mounts
    assert services["code"]["environment"]["SRD_CODE_HOST"] in services
    assert f"--port={location['grpc_server']['port']}" in services["code"]["command"]
    assert services["webserver"]["ports"][0].startswith("${UI_ADDRESS:-127.0.0.1:"), "no password"


def test_settings_of_a_server_differ_only_where_they_have_to() -> None:
    ours = yaml.safe_load((files("sr_assets") / "dagster.yaml").read_text())
    server = _read("dagster.yaml")
    assert {k: v for k, v in server.items() if k not in _OF_A_SERVER} == {
        k: v for k, v in ours.items() if k not in _OF_A_SERVER
    }
    assert server["concurrency"]["pools"] == ours["concurrency"]["pools"]


def test_the_chart_gets_our_pool_our_retries_and_an_accelerator_for_each_run(
    tmp_path: Path,
) -> None:
    values = _read("kubernetes/values.yaml")
    ours = yaml.safe_load((files("sr_assets") / "dagster.yaml").read_text())
    pools = values["concurrency"]["pools"]
    assert pools == {
        "granularity": ours["concurrency"]["pools"]["granularity"],
        "defaultLimit": ours["concurrency"]["pools"]["default_limit"],
    }
    extra = values["additionalInstanceConfig"]
    assert extra["run_retries"] == ours["run_retries"]
    assert {**extra["run_monitoring"], "start_timeout_seconds": 180} == ours["run_monitoring"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(extra))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_settings("run_monitoring") == extra["run_monitoring"]
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    assert launcher["containerConfig"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert launcher["podSpecConfig"]["nodeSelector"]


def test_pods_refer_to_secrets_and_settings_that_the_examples_make() -> None:
    values = _read("kubernetes/values.yaml")
    made = {
        document["metadata"]["name"]: document
        for name in ("secrets.example.yaml", "recipe.example.yaml")
        for document in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())
    }
    (location,) = values["dagster-user-deployments"]["deployments"]
    assert {entry["name"] for entry in location["envSecrets"]} <= set(made)
    assert "postgresql-password" in made[values["global"]["postgresqlSecretName"]]["stringData"]
    volumes = {volume["name"]: volume for volume in location["volumes"]}
    assert {mount["name"] for mount in location["volumeMounts"]} == set(volumes)
    recipe = made[volumes["recipe"]["configMap"]["name"]]["data"]["recipe.yaml"]
    root = Recipe.model_validate(yaml.safe_load(recipe)).root
    assert root is not None and root.startswith("s3://"), "pods share no disk"


def test_the_image_is_built_in_stages_and_does_not_run_as_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    assert [name for _, name in stages] == ["wheels-cpu", "wheels-cuda", "build", "run"]
    last = text[text.index(" AS run") :]
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == ["10001:10001"]
    assert not re.search(r"^RUN .*pip install", last, re.MULTILINE), "compilers stay behind"
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), name


def test_a_home_with_settings_of_its_own_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("nux: {enabled: true}\n")
    assert home.dagster_home() == tmp_path
    assert (tmp_path / "dagster.yaml").read_text() == "nux: {enabled: true}\n"


def test_a_new_home_gets_our_settings_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "new"))
    home.dagster_home()
    (file,) = (tmp_path / "new").iterdir()
    assert file.read_bytes() == (files("sr_assets") / "dagster.yaml").read_bytes()


def test_settings_that_cannot_be_used_are_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text(
        "storage: {sqlite: {base_dir: {env: SRD_NO_SUCH_VARIABLE}}}\n"
    )
    with pytest.raises(StageError, match="SRD_NO_SUCH_VARIABLE") as refused:
        home.open_instance()
    assert str(tmp_path / "dagster.yaml") in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
