"""The scripts of export/training_kit: Slurm's with stand-ins for its commands, Kubernetes' against its schemas."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

from keras_seg.training.hosts import read_cluster

KIT = Path(__file__).resolve().parent.parent / "export/training_kit"
SCRIPT = KIT / "slurm.sh"
TRAIN = ["recipe.yaml", "--data", "data", "--output", "run"]

# -- Slurm -----------------------------------------------------------------------------------------------------------

SCONTROL = """#!/bin/bash
if [[ $1 == show && $2 == hostnames && $3 == "$SLURM_JOB_NODELIST" ]]; then printf '%s\\n' $HOSTS; exit; fi
if [[ $1 == requeue ]]; then echo "$2" > requeued; exit; fi
echo "scontrol: $*" >&2; exit 1
"""
# Runs the command once for each task, all at the same time; ends with the first failure's status.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task "$@" > "task_$task.out" 2>&1 &
  tasks+=($!)
done
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit $status
"""
TELLING = """#!/bin/bash
printf '%s\\n' "$TF_CONFIG" "$@"
"""


def job(folder: Path, keras_seg: str, hosts: list[str], tasks_per_node: int, *arguments: str, **more: str):
    """The script as Slurm starts it, in `folder`; keras_seg: what is run by that name."""
    commands = folder / "bin"
    commands.mkdir()
    for name, text in {"scontrol": SCONTROL, "srun": SRUN, "keras-seg": keras_seg}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TF_CONFIG", "PORT", "VENV")
    }
    environment |= {
        "PATH": f"{commands}:{os.environ['PATH']}", "HOSTS": " ".join(hosts), "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS_PER_NODE": str(tasks_per_node),
        "SLURM_NTASKS": str(len(hosts) * tasks_per_node), **more,
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def finished(process: subprocess.Popen, timeout: float = 60) -> str:
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_each_task_is_told_its_place(tmp_path):
    process = job(tmp_path, TELLING, ["node1", "node2"], 2, *TRAIN)
    assert "job 4711, start 0" in finished(process)
    assert process.returncode == 0
    addresses = ["node1:24711", "node1:24712", "node2:24711", "node2:24712"]
    for task in range(4):
        config, *arguments = (tmp_path / f"task_{task}.out").read_text().splitlines()
        assert read_cluster(config) == (addresses, task)
        assert arguments == ["train", *TRAIN, "--resume"]


def test_a_single_node_trains_alone(tmp_path):
    process = job(tmp_path, TELLING, ["node1"], 1, *TRAIN, PORT="12345")
    finished(process)
    assert read_cluster((tmp_path / "task_0.out").read_text().splitlines()[0]) == (["node1:12345"], 0)


def test_what_went_wrong_is_the_jobs_status(tmp_path):
    process = job(tmp_path, "#!/bin/bash\nexit 2\n", ["node1", "node2"], 1, *TRAIN)
    finished(process)
    assert process.returncode == 2
    assert not (tmp_path / "requeued").exists()


def test_before_its_time_is_up_the_job_is_queued_again(tmp_path):
    slow = "#!/bin/bash\ntouch begun_$SLURM_PROCID\nuntil [[ -e end ]]; do sleep 0.05; done\n"
    process = job(tmp_path, slow, ["node1", "node2"], 1, *TRAIN)
    try:
        while not (tmp_path / "begun_1").exists():
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGUSR1)
        while not (tmp_path / "requeued").exists():
            assert process.poll() is None, "the training goes on until Slurm ends it"
            time.sleep(0.02)
        (tmp_path / "end").touch()
    finally:
        output = finished(process)
    assert (tmp_path / "requeued").read_text() == "4711\n"
    assert "job 4711: queued again" in output
    assert process.returncode == 0


def test_the_script_asks_slurm_for_what_it_relies_on():
    asked = [
        line.removeprefix("#SBATCH ")
        for line in SCRIPT.read_text().splitlines()
        if line.startswith("#SBATCH")
    ]
    assert {"--requeue", "--signal=B:USR1@120", "--ntasks-per-node=1", "--open-mode=append"} <= set(asked)
    assert all(option.startswith("--") and " " not in option for option in asked)


def free_port() -> int:
    """One whose successor is free too."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("localhost", 0))
            port = one.getsockname()[1]
            try:
                other.bind(("localhost", port + 1))
            except OSError:
                continue
            return port


def test_two_workers_train_by_the_script(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for k in range(4):
        mask = np.kron(random.integers(0, 2, (4, 4)), np.full((16, 16), 255)).astype(np.uint8)
        noisy = np.clip(mask * 0.5 + random.normal(60, 10, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / f"data/masks/{k}.png")
        Image.fromarray(noisy).save(tmp_path / f"data/images/{k}.png")
    recipe = {
        "schema": 1, "name": "tiny", "summary": "for a test",
        "model": {"builder": "unet", "input_channels": 1, "depth": 1, "base_channels": 4, "padding": "same"},
        "data": {
            "reader": "folder", "classes": {"ground": 0, "cell": 255}, "tile": 32, "batch_size": 2,
            "train_images": "images", "train_masks": "masks",
            "validation_images": "images", "validation_masks": "masks",
        },
        "training": {
            "steps": 4, "evaluate_every": 4, "checkpoint_every": 2,
            "optimizer": {"name": "adam", "learning_rate": 1e-3},
            "select": {"metric": "mean_iou", "mode": "max"},
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = f'#!/bin/bash\nexec "{sys.executable}" -c "from keras_seg.cli import main; main()" "$@"\n'
    more = {"PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": "-1", "TF_NUM_INTRAOP_THREADS": "1"}
    output = finished(job(tmp_path, command, ["localhost"], 2, *TRAIN, **more), timeout=300)
    told = [(tmp_path / f"task_{task}.out").read_text() for task in range(2)]
    assert "the weights are in run" in told[0], (output, told)
    assert "worker 0 of 2" in told[0]
    assert "worker 1 of 2" in told[1]
    assert (tmp_path / "run/last.weights.h5").is_file()


# -- Kubernetes --------------------------------------------------------------------------------------------------------

VERSIONS = [f"1.{minor}" for minor in range(29, 38)]


@pytest.fixture(scope="module")
def manifests() -> list[dict]:
    return list(yaml.safe_load_all((KIT / "kubernetes.yaml").read_text()))


@pytest.fixture(scope="module")
def parts(manifests) -> dict[str, dict]:
    return {one["kind"]: one for one in manifests}


@pytest.fixture(scope="module")
def schemas():
    return pytest.importorskip(
        "kubernetes_validate", reason="needs kubernetes-validate: pip install 'keras_seg[test]'"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_the_manifests(version, manifests, schemas):
    for manifest in manifests:
        assert schemas.validate(manifest, version, strict=True) == version


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "completionsMode"), "Indexed"),
        (("spec", "completions"), "two"),
        (("spec", "template", "spec", "containers", 0, "env", 0, "valueFrom", "fieldPath"), "x"),
        (("spec", "podFailurePolicy", "rules", 0, "onPodConditions", 0, "status"), True),
    ],
)
def test_the_schemas_would_tell_a_slip(place, value, parts, schemas):
    slipped = copy.deepcopy(parts["Job"])
    *path, last = place
    target = slipped
    for step in path:
        target = target[step]
    target[last] = value
    with pytest.raises(schemas.ValidationError):
        schemas.validate(slipped, VERSIONS[-1], strict=True)


def test_each_pod_is_told_its_place(parts):
    spec = parts["Job"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    number, config = container["env"]
    assert number["valueFrom"]["fieldRef"]["fieldPath"] == (
        "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    )
    for index in range(spec["completions"]):
        # as Kubernetes puts in variables that were defined before
        addresses, own = read_cluster(config["value"].replace(f"$({number['name']})", str(index)))
        assert own == index
    # a pod of an indexed Job is called by the Job's name and its index, in the domain of the Service
    name, port = parts["Job"]["metadata"]["name"], container["ports"][0]["containerPort"]
    assert addresses == [f"{name}-{k}.{pod['subdomain']}:{port}" for k in range(spec["completions"])]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"], "workers wait for all others"
    service = parts["Service"]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert service["spec"]["ports"][0]["port"] == port


def test_the_pods_share_the_volume_that_the_command_names(parts):
    pod = parts["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    claim = parts["PersistentVolumeClaim"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    mounted = container["volumeMounts"][0]["mountPath"]
    command = container["command"]
    for option in ("--data", "--output"):
        assert command[command.index(option) + 1].startswith(f"{mounted}/")


def test_the_command_is_one_of_keras_seg(parts):
    from keras_seg import cli

    program, command, *arguments = parts["Job"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert (program, command) == ("keras-seg", "train")
    train = typer.main.get_command(cli.app).commands[command]
    assert train.make_context(command, arguments).params["resume"] is True


def test_the_image_has_the_version_of_the_package(parts):
    import keras_seg

    image = parts["Job"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image.endswith(f"/keras_seg:{keras_seg.__version__}")
    assert f"-t {image} " in (KIT / "Dockerfile").read_text()
