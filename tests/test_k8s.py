"""The manifests of `k8s/`, as kustomize would build them, against KubeRay's own CRDs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import manifests
from tests.manifests import K8S, ROOT, ManifestError, build, clusters_of, documents, image, pinned

ENTRIES = [f"{kind}{part}" for kind in ("cpu", "gpu") for part in ("", "/fit", "/serve")]
COMPONENTS = sorted(p.name for p in (K8S / "components").iterdir())
VARIANTS = [(), *((c,) for c in COMPONENTS), tuple(COMPONENTS)]
OBJECTS = sorted(f for f in (K8S / "base").rglob("*.yaml") if "kind:" in f.read_text())
OBJECTS = [f for f in OBJECTS if f.name != "kustomization.yaml"]
FITS = sorted(K8S.rglob("fit.yaml"))
OTHERS = [f for f in sorted(K8S.rglob("*.yaml")) if f not in OBJECTS and f not in FITS]

needs_crds = pytest.mark.skipif(
    manifests.crds() is None,
    reason="FTRAY_CRDS is not set: KubeRay's CRDs (ray.io_rayclusters.yaml, …) are not here",
)


def name(value) -> str:
    return str(value.relative_to(K8S)) if isinstance(value, Path) else "+".join(value) or "plain"


def one(entry: str, kind: str, components=()) -> dict:
    (found,) = (o for o in build(K8S / "overlays" / entry, components) if o["kind"] == kind)
    return found


def ray_object(entry: str, components=()) -> dict:
    kinds = {"": "RayCluster", "fit": "RayJob", "serve": "RayService"}
    return one(entry, kinds[entry.partition("/")[2]], components)


def problems_of(objects) -> list[str]:
    return [f"{o['kind']}: {p}" for o in objects for p in manifests.object_problems(o)]


# --- against the CRDs


@needs_crds
@pytest.mark.parametrize("components", VARIANTS, ids=name)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_applied_is_valid(entry, components):
    assert problems_of(build(K8S / "overlays" / entry, components)) == []


@needs_crds
@pytest.mark.parametrize("file", OBJECTS, ids=name)
def test_no_misspelt_key_of_an_object_gets_through_at_any_depth(file):
    tried = through = 0
    for document in documents(file.read_text()):
        assert manifests.object_problems(document) == []
        for where, changed in manifests.misspelt(document):
            tried += 1
            if not manifests.object_problems(changed):
                through += 1
                print(where)
    assert not through and tried >= 5


@needs_crds
@pytest.mark.parametrize("file", OTHERS, ids=name)
def test_no_misspelt_key_of_a_kustomization_or_a_patch_gets_through(file):
    """Built with the file changed; at least one of the overlays that it is part of must fail."""
    entries = [(e, c) for e in ENTRIES for c in VARIANTS if file in files_read(e, c)]
    assert entries
    (document,) = documents(file.read_text())
    for where, changed in manifests.misspelt(document):
        text = yaml.safe_dump(changed)

        def read(path: Path, text: str = text) -> str:
            return text if path == file else path.read_text()

        assert any(fails(e, c, read) for e, c in entries), where


def fails(entry: str, components, read) -> bool:
    try:
        return bool(problems_of(build(K8S / "overlays" / entry, components, read)))
    except ManifestError:
        return True


def files_read(entry: str, components) -> set[Path]:
    seen = set()

    def read(path: Path) -> str:
        seen.add(path)
        return path.read_text()

    build(K8S / "overlays" / entry, components, read)
    return seen


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here")
@pytest.mark.parametrize("components", VARIANTS, ids=name)
def test_kustomize_itself_builds_the_same(components, tmp_path):
    """`kubectl kustomize` needs no cluster; the components stand where the page says."""
    shutil.copytree(K8S, tmp_path / "k8s")
    for entry in ENTRIES:
        folder = tmp_path / "k8s" / "overlays" / entry
        up = "../" * (2 + entry.count("/"))
        if components:
            lines = ["components:", *(f"  - {up}components/{c}" for c in components), ""]
            with (folder / "kustomization.yaml").open("a") as file:
                file.write("\n".join(lines))
        command = ["kubectl", "kustomize", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert by_name(documents(done.stdout)) == by_name(
            build(K8S / "overlays" / entry, components)
        )


def by_name(objects) -> dict:
    return {(o["kind"], o["metadata"]["name"]): o for o in objects}


def test_every_file_is_part_of_something():
    used = set().union(*(files_read(e, c) for e in ENTRIES for c in VARIANTS))
    there = {f for f in K8S.rglob("*") if f.is_file() and not f.name.startswith("Dockerfile")}
    assert there - used == set()


@needs_crds
def test_the_check_sees_what_the_schema_alone_lets_pass():
    job = one("gpu/fit", "RayJob")
    for key, value in [
        ("submissionMode", "K8SJobMode"),
        ("entrypoint", "ftray fti /config/fit.yaml"),
        ("runtimeEnvYAML", "enviroment: {}"),
        ("backoffLimit", "two"),
    ]:
        assert manifests.object_problems({**job, "spec": {**job["spec"], key: value}}), key


def test_what_the_builder_does_not_know_is_refused(tmp_path):
    head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    for body in (
        "resources: [missing.yaml]",
        "resources: [a.yaml]\nnamePrefix: x-",
        "resources: [a.yaml]\npatches: [{path: merge.yaml, target: {kind: ConfigMap}}]",
        "resources: [a.yaml]\npatches: [{path: wrong.yaml, target: {kind: ConfigMap}}]",
        "resources: [a.yaml]\npatches: [{path: wrong.yaml, target: {kind: RayJob}}]",
    ):
        (tmp_path / "kustomization.yaml").write_text(head + body)
        config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {}\n"
        (tmp_path / "a.yaml").write_text(config)
        (tmp_path / "merge.yaml").write_text("data: {a: b}")
        (tmp_path / "wrong.yaml").write_text("- {op: replace, path: /data/a, value: b}")
        with pytest.raises(ManifestError):
            build(tmp_path)


# --- what the manifests promise


@pytest.mark.parametrize("components", VARIANTS, ids=name)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_pod_is_confined_and_its_mounts_are_there(entry, components):
    top = ray_object(entry, components)
    found = list(manifests.pods(top))
    assert len(found) == (3 if entry.endswith("fit") else 2)
    for pod in found:
        assert pod["metadata"]["labels"] == {"app.kubernetes.io/part-of": "ftray"}
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] == 1000 == context["fsGroup"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] == (spec["serviceAccountName"] != "ftray")
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        for bound in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][bound])
        volumes = {v["name"]: v for v in spec["volumes"]}
        mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        assert {"/tmp", "/home/ray"} <= set(mounts)  # nothing else can be written
        if "/dev/shm" in mounts:
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("part", ["", "/fit", "/serve"])
def test_names_that_are_referred_to_exist(kind, part):
    objects = build(K8S / "overlays" / kind) + (build(K8S / "overlays" / (kind + part)))
    there = {(o["kind"], o["metadata"]["name"]) for o in objects}
    for pod in manifests.pods(ray_object(kind + part)):
        assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in there
        for volume in pod["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in there
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there


@pytest.mark.parametrize("entry", ENTRIES)
def test_versions_are_those_of_the_constraints(entry):
    top = ray_object(entry)
    assert clusters_of(top)["rayVersion"] == pinned("ray")
    images = [pod["spec"]["containers"][0]["image"] for pod in manifests.pods(top)]
    worker = clusters_of(top)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert worker["image"] == image(entry[:3])
    assert set(images) == {image("cpu"), image(entry[:3])}


@pytest.mark.parametrize("entry", ENTRIES)
def test_clusters_ask_for_a_token_and_grow_from_the_least(entry):
    cluster = clusters_of(ray_object(entry))
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    account = cluster["headGroupSpec"]["template"]["spec"]["serviceAccountName"]
    if entry.endswith("fit"):  # the workers of a run are there before it starts
        assert "enableInTreeAutoscaling" not in cluster and account == "ftray"
        assert workers["minReplicas"] == workers["maxReplicas"] == 2
    else:
        assert (
            cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
        )
        assert workers["minReplicas"] == (1 if entry.endswith("serve") else 0)
        assert workers["minReplicas"] < workers["maxReplicas"]
        assert account == "ftray-autoscaler"


@pytest.mark.parametrize("part", ["", "/fit", "/serve"])
def test_gpu_workers_have_a_gpu_and_nobody_else_has(part):
    for kind in ("cpu", "gpu"):
        cluster = clusters_of(ray_object(kind + part))
        template = cluster["workerGroupSpecs"][0]["template"]["spec"]
        limits = template["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == ("1" if kind == "gpu" else None)
        assert ("tolerations" in template) == (kind == "gpu")
        head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert "nvidia.com/gpu" not in head["resources"]["limits"]


def test_components_do_what_they_say():
    for entry in ENTRIES:
        plain = clusters_of(ray_object(entry))
        assert "gcsFaultToleranceOptions" not in plain
        lasting = clusters_of(ray_object(entry, ["gcs-fault-tolerance"]))
        options = lasting.get("gcsFaultToleranceOptions")
        assert (options is None) == entry.endswith("fit")
        assert options is None or options["backend"] == "rocksdb"
        worker = clusters_of(ray_object(entry, ["s3"]))["workerGroupSpecs"][0]["template"]["spec"]
        volumes = [v["name"] for v in worker["volumes"]]
        assert volumes == ["tmp", "home", "shm"]
    accounts = [o for o in build(K8S / "overlays/cpu", ["s3"]) if o["kind"] == "ServiceAccount"]
    assert all("eks.amazonaws.com/role-arn" in a["metadata"]["annotations"] for a in accounts)


@pytest.mark.parametrize("entry", ["cpu/fit", "gpu/fit"])
def test_the_run_in_the_config_map_is_one_that_ftray_takes(entry):
    from ftray.config_file import load_config

    data = one(entry, "ConfigMap")["data"]
    job = one(entry, "RayJob")["spec"]
    (file,) = data
    assert job["entrypoint"].endswith(f"/config/{file}")
    config = load_config(K8S / "overlays" / entry / file)
    workers = job["rayClusterSpec"]["workerGroupSpecs"][0]
    assert config.num_workers == workers["replicas"]
    assert config.device == ("cuda" if entry.startswith("gpu") else "cpu")
    assert config.resume == "auto" and config.run_name  # what `backoffLimit` starts again goes on
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    mounts = {m["mountPath"] for m in head["volumeMounts"]}
    for path in (config.storage_path, config.train_data):
        assert any(str(path).startswith(f"{mount}/") for mount in mounts), path


@pytest.mark.parametrize("file", FITS, ids=name)
def test_no_misspelt_key_of_a_run_gets_through(file):
    from ftray.config import validated
    from ftray.errors import ConfigError

    (document,) = documents(file.read_text())
    validated(document)
    for where, changed in manifests.misspelt(document):
        with pytest.raises(ConfigError):
            validated(changed)
            pytest.fail(where)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_serving_application_is_one_that_exists_and_fits_its_workers(kind):
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    from ray.serve.schema import ServeDeploySchema

    from ftray.cluster import serving

    service = one(f"{kind}/serve", "RayService")["spec"]
    config = yaml.safe_load(service["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert application["import_path"] == f"{serving.__name__}:{serving.build.__name__}"
    assert serving.ServingArgs.model_validate(application["args"])
    (deployment,) = application["deployments"]
    assert deployment["name"] == serving.Embedder.__name__
    assert config["http_options"]["port"] == 8000
    worker = service["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    limits = worker["resources"]["limits"]
    assert deployment["ray_actor_options"]["num_cpus"] <= int(limits["cpu"])
    gpus = int(limits.get("nvidia.com/gpu", 0))
    assert deployment["ray_actor_options"].get("num_gpus", 0) == gpus
    assert application["args"]["device"] == ("cuda" if gpus else "cpu")


def test_the_network_lets_in_what_is_needed_and_not_more():
    policy = one("cpu", "NetworkPolicy")["spec"]
    inside, service = policy["ingress"]
    assert policy["podSelector"]["matchLabels"] == {"app.kubernetes.io/part-of": "ftray"}
    assert "ports" not in inside and len(inside["from"]) == 2
    assert service == {"from": [{"podSelector": {}}], "ports": [{"port": 8000, "protocol": "TCP"}]}


# --- the image


def test_the_image_holds_what_is_pinned_and_runs_as_nobody_special():
    text = (K8S / "Dockerfile").read_text()
    assert "FROM python:3.11-slim" in text and "USER 1000:1000" in text
    assert text.count("--constraint constraints.txt") == 2 and "ENV HOME=/home/ray" in text
    assert {image("cpu"), image("gpu")} == set(re.findall(r"REGISTRY/(\S+)", text))
    assert "://" not in text  # indexes are named by who builds
    allowed = (K8S / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [s for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for s in line.split()]
    assert copied and all((ROOT / source).exists() and f"!{source}" in allowed for source in copied)
    assert {line for line in allowed if line.startswith("!")} == {f"!{s}" for s in copied}


# --- the page


def test_the_page_names_files_images_and_objects_that_are_there():
    page = (ROOT / "docs" / "clusters.md").read_text()
    places = set(re.findall(r"\b(?:k8s|clusters)/[\w./-]*[\w]", page))
    assert len(places) > 12 and [p for p in places if not (ROOT / p).exists()] == []
    applied = re.findall(r"kubectl apply -k (\S+?)(?:`|$)", page, re.M)
    assert applied and all(build(ROOT / folder) for folder in applied)
    assert set(re.findall(r"ftray:[\w.]+-ray[\w.-]+", page)) == {image("cpu"), image("gpu")}
    components = re.findall(r"^- `../../components/([\w-]+)`", page, re.M)
    assert sorted(components) == COMPONENTS
    assert {"ftray", "ftray-fit", "ftray-serve"} == {
        ray_object(f"cpu{part}")["metadata"]["name"] for part in ("", "/fit", "/serve")
    }
