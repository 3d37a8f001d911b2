"""Weights are data: read only when whole, known and finite."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.tiny import TINY, awake
from vsfmanet.errors import ConfigError, WeightsError
from vsfmanet.manifest import file_sha256, list_models
from vsfmanet.networks.fmanetpp import FMANetPP
from vsfmanet.weights import METADATA_KEY, MODELS, load_model, save_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(awake(TINY).deployed_form(), path, about={"step": 5})
    return path


def resave(path: Path, to: Path, *, change: dict[str, object] | None = None, nan: bool = False) -> Path:
    """A copy with another description, or with a NaN."""
    state = load_file(path)
    if nan:
        state["anchors"][0, 0] = torch.nan
    config = {"network": "fmanetpp", "config": load_config(path), **(change or {})}
    save_file(state, to, metadata={METADATA_KEY: json.dumps(config)})
    return to


def load_config(path: Path) -> dict[str, object]:
    with safe_open(path, framework="pt") as file:
        config: dict[str, object] = json.loads(file.metadata()[METADATA_KEY])["config"]
    return config


def test_saved_weights_come_back_rounded_to_fp16(path: Path) -> None:
    model = load_model(str(path))
    wanted = awake(TINY).deployed_form().state_dict()
    assert model.name == "tiny"
    assert model.scale == TINY.scale
    assert model.sha256 == file_sha256(path)
    assert not model.network.training
    for name, value in model.network.state_dict().items():
        expected = wanted[name].half().float() if wanted[name].is_floating_point() else wanted[name]
        assert torch.equal(value, expected), name


def test_no_temporary_file_is_left(path: Path) -> None:
    assert [file.name for file in path.parent.iterdir()] == ["tiny.safetensors"]


def test_every_shipped_model_loads_and_is_described() -> None:
    models = list_models()
    assert "fmanetpp_x4_fast" in [entry.name for entry in models]
    for entry in models:
        assert entry.path.stat().st_size == entry.size <= 32 * 2**20
        model = load_model(entry.name)
        assert model.scale == entry.scale
        assert entry.name.startswith(f"{model.network.kind}_x{entry.scale}")
        assert entry.path.with_suffix(".md").is_file()
        assert entry.scores
        assert entry.licence


def test_an_unknown_model_is_refused_with_those_that_exist() -> None:
    with pytest.raises(WeightsError, match=r"must be one of .*fmanetpp_x4_fast.*got 'fmanet'"):
        load_model("fmanet")
    with pytest.raises(WeightsError, match="file that exists"):
        load_model("no-such-file.safetensors")


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "header", "trailing"])
def test_a_damaged_file_is_refused(path: Path, tmp_path: Path, damage: str) -> None:
    data = path.read_bytes()
    broken = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "text": b"<html>not found</html>",
        "header": (2**60).to_bytes(8, "little") + data[8:],
        "trailing": data + b"x",
    }[damage]
    (tmp_path / "bad.safetensors").write_bytes(broken)
    with pytest.raises(WeightsError, match="whole safetensors file"):
        load_model(str(tmp_path / "bad.safetensors"))


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    (tmp_path / "bad.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(WeightsError):
        load_model(str(tmp_path / "bad.safetensors"))
    assert not marker.exists()


def test_values_that_are_not_finite_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="NaN or infinity"):
        load_model(str(resave(path, tmp_path / "nan.safetensors", nan=True)))


def test_another_architecture_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds the network 'other'"):
        load_model(str(resave(path, tmp_path / "a.safetensors", change={"network": "other"})))
    wider = resave(path, tmp_path / "b.safetensors", change={"config": {**load_config(path), "width": 16}})
    with pytest.raises(WeightsError, match="must fit its configuration"):
        load_model(str(wider))
    misspelt = resave(path, tmp_path / "c.safetensors", change={"config": {**load_config(path), "num_feat": 90}})
    with pytest.raises(WeightsError, match=r"configuration .* must be complete"):
        load_model(str(misspelt))


def test_a_file_without_our_metadata_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="our metadata"):
        load_model(str(tmp_path / "x.safetensors"))


def test_a_shipped_file_with_another_hash_is_refused(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr("vsfmanet.weights.find_model", lambda name: ("tiny", path, "0" * 64))
    with pytest.raises(WeightsError, match="must have sha256 0000"):
        load_model("tiny")


def test_loading_a_model_does_not_load_torchs_compiler(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from vsfmanet.weights import MODELS, load_model, save_model\n"
        "for kind, build in MODELS.items():\n"
        "    save_model(build({}), Path(kind + '.safetensors'))\n"
        "    load_model(kind + '.safetensors')\n"
        "print(kind, 'torch._dynamo' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ran.stdout == f"{[*MODELS][-1]} False\n"  # it would take seconds at each start of a job


def test_only_finite_deployed_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="deployed form"):
        save_model(FMANetPP(TINY), tmp_path / "x.safetensors")
    network = FMANetPP(TINY).deployed_form()
    with torch.no_grad():
        next(network.parameters()).fill_(1e6)
    with pytest.raises(WeightsError, match="fit fp16"):
        save_model(network, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
