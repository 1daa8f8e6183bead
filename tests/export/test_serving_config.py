"""The files that TensorFlow Serving, Docker Compose and Prometheus read, by the server's own definitions and each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

pytest.importorskip(
    "tensorflow_serving", reason="needs tensorflow-serving-api: pip install 'keras_seg[serving]'"
)

KIT = Path(__file__).resolve().parents[2] / "export" / "serving"
# of tensorflow_model_server --help; the image's entry point sets the ports
FLAGS = {
    "allow_version_labels_for_unavailable_models",
    "batching_parameters_file",
    "enable_batching",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "monitoring_config_file",
    "rest_api_timeout_in_ms",
}


@pytest.fixture
def configs(monkeypatch):
    monkeypatch.syspath_prepend(str(KIT))
    import server_configs

    return server_configs


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((KIT / "docker-compose.yml").read_text())


def test_models_and_their_labels(configs):
    models = configs.read_models(KIT / "models.config").model_config_list.config
    names = [model.name for model in models]
    assert len(names) == len(set(names)) == 2
    for model in models:
        assert model.model_platform == "tensorflow"
        assert model.base_path == f"/models/{model.name}"
        served = set(model.model_version_policy.specific.versions)
        assert dict(model.version_labels).keys() == {"stable", "canary"}
        assert set(model.version_labels.values()) <= served


def test_batching(configs):
    batching = configs.read_batching(KIT / "batching.config")
    assert batching.max_batch_size.value > 1
    assert batching.batch_timeout_micros.value > 0
    assert batching.num_batch_threads.value >= 1
    assert batching.max_enqueued_batches.value >= 1
    # the images of others must not change what is found in one
    assert not batching.pad_variable_length_inputs


def test_monitoring_is_where_prometheus_looks(configs, compose):
    monitoring = configs.read_monitoring(KIT / "monitoring.config").prometheus_config
    (job,) = yaml.safe_load((KIT / "prometheus.yml").read_text())["scrape_configs"]
    assert monitoring.enable
    assert job["metrics_path"] == monitoring.path
    ((host, port),) = [target.split(":") for entry in job["static_configs"] for target in entry["targets"]]
    assert port == "8501"
    for service in servers(compose):
        assert service["networks"]["default"]["aliases"] == [host]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("models", "model_config_list { config { nam: 'a' } }", r'bad:1:.*has no field named "nam"'),
        ("models", "model_config_list {", r"bad:1:"),
        ("batching", "max_batch_size { value: 8 }\nbatch_timeout { value: 1 }", r'bad:2:1.*"batch_timeout"'),
        ("batching", "max_batch_size: 8", r"bad:1:"),
        ("batching", "max_batch_size { value: many }", r"bad:1:.*many"),
        (
            "batching",
            "max_batch_size { value: 8 } allowed_batch_sizes: [2, 4]",
            r"must increase and end in max_batch_size, got \[2, 4\]",
        ),
        ("monitoring", "prometheus_config { enabled: true }", r'"enabled"'),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(configs, tmp_path, kind, text, message):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(ValueError, match=message):
        getattr(configs, f"read_{kind}")(tmp_path / "bad")


def test_the_images_are_pinned_and_the_same_version(compose):
    images = {name: service["image"] for name, service in compose["services"].items()}
    version = r"tensorflow/serving:\$\{SERVING_VERSION:-(\d+\.\d+\.\d+)\}"
    cpu = re.fullmatch(version, images["serving-cpu"])
    gpu = re.fullmatch(version + "-gpu", images["serving-gpu"])
    assert cpu.group(1) == gpu.group(1)
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", images["prometheus"])
    assert cpu.group(1) in (KIT / "README.md").read_text()  # and why


def test_flags_and_files_of_the_server(compose):
    for service in servers(compose):
        flags = dict(re.fullmatch(r"--(\w+)=(\S+)", flag).groups() for flag in service["command"])
        assert flags.keys() <= FLAGS
        places = dict(
            reversed(re.fullmatch(r"(\S+?):(\S+?):ro", entry).groups()) for entry in service["volumes"]
        )
        assert places["/models"] == "./models"
        for flag, value in flags.items():
            if flag.endswith("_file"):
                folder, name = value.rsplit("/", 1)
                assert (KIT / places[folder] / name).is_file()


def test_ports_are_open_to_this_machine_alone(compose):
    for service in compose["services"].values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")


def test_only_the_gpu_variant_reserves_a_gpu(compose):
    cpu, gpu = servers(compose)
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "deploy" not in cpu
    assert {key for key in gpu if gpu[key] != cpu.get(key)} == {"deploy", "environment", "image", "profiles"}


def test_memory_is_limited_and_health_is_checked(compose, configs):
    names = {model.name for model in configs.read_models(KIT / "models.config").model_config_list.config}
    for service in servers(compose):
        assert service["mem_limit"]
        assert service["restart"] == "unless-stopped"
        asked = re.search(r"/v1/models/(\w+)/labels/(\w+) ", service["healthcheck"]["test"][-1])
        assert asked.group(1) in names
        assert asked.group(2) == "stable"


def servers(compose):
    return [compose["services"][f"serving-{kind}"] for kind in ("cpu", "gpu")]
