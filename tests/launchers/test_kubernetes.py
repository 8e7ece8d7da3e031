"""The Kubernetes manifests in launch/ are valid and consistent; no cluster runs them here."""

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from crepe_dist.errors import ExitCode
from crepe_dist.settings.config import parse_with_cluster

LAUNCH = Path(__file__).parents[2] / "launch"
DOCKER = LAUNCH.parent / "docker"
VERSIONS = ("1.31", "1.37")
MODULE = "crepe_dist.train"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text(encoding="utf-8")))


SERVICE, JOB = documents("job.yaml")
GPU_SERVICE, GPU_JOB = documents("job_gpu.yaml")
(MPIJOB,) = documents("mpijob.yaml")
REPLICAS = MPIJOB["spec"]["mpiReplicaSpecs"]
(RAYJOB,) = documents("rayjob.yaml")
RAY = RAYJOB["spec"]["rayClusterSpec"]
(RAY_WORKERS,) = RAY["workerGroupSpecs"]
TEMPLATES = {
    "job": JOB["spec"]["template"],
    "gpu": GPU_JOB["spec"]["template"],
    **{role: each["template"] for role, each in REPLICAS.items()},
    "head": RAY["headGroupSpec"]["template"],
    "ray": RAY_WORKERS["template"],
}


def container(template: dict[str, Any]) -> dict[str, Any]:
    (found,) = template["spec"]["containers"]
    return dict(found)


def words(template: dict[str, Any]) -> list[str]:
    each = container(template)
    return [*each["command"], *each["args"]]


def environment(template: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(template)["env"]}


def as_job(template: dict[str, Any]) -> dict[str, Any]:
    """Return a Job that contains the template, because the schema only describes complete objects."""
    template = copy.deepcopy(template)
    template["spec"].setdefault("restartPolicy", "Never")
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": {"template": template}}


@pytest.mark.parametrize("version", VERSIONS)
def test_they_are_of_the_form_that_kubernetes_takes(version):
    for manifest in (SERVICE, JOB, GPU_SERVICE, GPU_JOB, *map(as_job, TEMPLATES.values())):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_their_flags_are_train_s():
    for command in (
        words(TEMPLATES["job"]),
        words(TEMPLATES["gpu"]),
        words(TEMPLATES["Launcher"]),
        RAYJOB["spec"]["entrypoint"].split(),
    ):
        config, _ = parse_with_cluster(command[command.index(MODULE) + 1 :])
        assert (config.run_dir or "").startswith("/runs/")


@pytest.mark.parametrize("role", TEMPLATES)
def test_no_pod_runs_as_root_and_those_that_compute_have_their_volumes(role):
    template = TEMPLATES[role]
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    each = container(template)
    assert each["securityContext"]["allowPrivilegeEscalation"] is False
    assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert each["resources"]["limits"].keys() >= {"cpu", "memory"}
    if role != "Launcher":
        volumes = {each["name"]: each for each in template["spec"]["volumes"]}
        mounts = {each["mountPath"]: each["name"] for each in container(template)["volumeMounts"]}
        # A pod with a single process shares no memory.
        assert role == "job" or volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert all("persistentVolumeClaim" in volumes[mounts[path]] for path in ("/data", "/runs"))


def test_the_pods_of_a_job_meet_at_the_first():
    spec, service = JOB["spec"], SERVICE["metadata"]["name"]
    name, given = JOB["metadata"]["name"], environment(TEMPLATES["job"])
    assert spec["completionMode"] == "Indexed"
    assert given["WORLD_SIZE"] == str(spec["parallelism"]) == str(spec["completions"])
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (10, 0)
    assert given["MASTER_ADDR"] == f"{name}-0.{service}"
    assert TEMPLATES["job"]["spec"]["subdomain"] == service
    assert SERVICE["spec"]["selector"] == {"job-name": name}
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["publishNotReadyAddresses"] is True
    assert given["MASTER_PORT"] == str(SERVICE["spec"]["ports"][0]["port"])
    assert "job-completion-index" in given["RANK"]["fieldRef"]["fieldPath"]


def test_what_the_end_of_a_process_of_a_job_means():
    policy = JOB["spec"]["podFailurePolicy"]["rules"]
    rules = [each for each in policy if "onExitCodes" in each]
    assert all(each["onExitCodes"]["operator"] == "In" for each in rules)
    assert all(each["onExitCodes"]["containerName"] == container(TEMPLATES["job"])["name"] for each in rules)
    actions = {code: each["action"] for each in rules for code in each["onExitCodes"]["values"]}
    assert actions == {ExitCode.STOPPED: "Ignore", ExitCode.ERROR: "FailJob", 2: "FailJob"}
    assert TEMPLATES["job"]["spec"]["restartPolicy"] == "Never"  # Required by podFailurePolicy.
    ignored = [each for rule in policy if rule["action"] == "Ignore" for each in rule.get("onPodConditions", [])]
    assert {"type": "DisruptionTarget", "status": "True"} in ignored


def test_the_processes_of_an_mpijob_meet_at_the_first_worker_and_know_where():
    spec, name, command = MPIJOB["spec"], MPIJOB["metadata"]["name"], words(TEMPLATES["Launcher"])
    given = environment(TEMPLATES["Launcher"])
    assert command[command.index("--np") + 1] == str(spec["slotsPerWorker"] * REPLICAS["Worker"]["replicas"])
    cores = int(container(TEMPLATES["Worker"])["resources"]["limits"]["cpu"])
    assert given["OMP_NUM_THREADS"] == str(cores // spec["slotsPerWorker"])
    assert given["MASTER_ADDR"] == f"{name}-worker-0.{name}"
    assert given.keys() <= {command[place + 1] for place, word in enumerate(command) if word == "-x"}


def test_the_image_of_an_mpijob_has_the_files_and_the_port_that_the_manifest_names():
    script = (DOCKER / "mpi.sh").read_text(encoding="utf-8")
    worker = container(TEMPLATES["Worker"])
    assert f"cat >{worker['args'][-1]} <<" in script
    assert f"HostKey {MPIJOB['spec']['sshAuthMountPath']}/id_rsa\n" in script
    assert script.count(f"Port {worker['readinessProbe']['tcpSocket']['port']}\n") == 2
    assert {each["image"] for each in (worker, container(TEMPLATES["Launcher"]))} == {"crepe-dist:mpi"}
    assert (DOCKER / "Dockerfile.mpi").read_text(encoding="utf-8").count("crepe-dist:mpi") == 1


def test_the_pods_that_compute_prefer_different_nodes():
    """A GPU Job prefers one zone instead, because its pods need a GPU each."""
    for role in ("job", "Worker", "ray"):
        metadata, spec = TEMPLATES[role]["metadata"], TEMPLATES[role]["spec"]
        (constraint,) = spec["topologySpreadConstraints"]
        assert constraint["topologyKey"] == "kubernetes.io/hostname"
        assert constraint["labelSelector"]["matchLabels"] == metadata["labels"]


def test_all_jobs_name_the_queue_of_kueue():
    flavor, cluster_queue, local_queue = documents("kueue.yaml")
    (group,) = cluster_queue["spec"]["resourceGroups"]
    (quotas,) = group["flavors"]
    assert quotas["name"] == flavor["metadata"]["name"]
    assert [each["name"] for each in quotas["resources"]] == group["coveredResources"]
    assert local_queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    for job in (JOB, GPU_JOB, MPIJOB, RAYJOB):
        assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": local_queue["metadata"]["name"]}


def test_a_job_on_gpus_differs_only_in_its_gpu_and_cache():
    template = TEMPLATES["gpu"]
    assert GPU_SERVICE == SERVICE
    assert {**GPU_JOB["spec"], "template": {}} == {**JOB["spec"], "template": {}}
    assert container(template)["resources"]["limits"]["nvidia.com/gpu"] == 1
    given, mounts = environment(template), {each["mountPath"] for each in container(template)["volumeMounts"]}
    assert given["XDG_CACHE_HOME"] in mounts
    assert given["CUDA_CACHE_PATH"].startswith(given["XDG_CACHE_HOME"])
    assert {name: given[name] for name in environment(TEMPLATES["job"])} == environment(TEMPLATES["job"])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_with_rdma_is_of_the_form_that_kubernetes_takes(version):
    text = (LAUNCH / "job_gpu.yaml").read_text(encoding="utf-8")
    for line in ("add: [IPC_LOCK]", "rdma/hca: 1"):
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    _, job = yaml.safe_load_all(text)
    assert container(job["spec"]["template"])["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    kubernetes_validate.validate(job, version, strict=True)
