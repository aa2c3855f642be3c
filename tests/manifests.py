"""What makes the files of `clusters/` and `k8s/` checkable without a cloud and without Kubernetes.

- `cluster_problems`: a launcher file, by Ray's own schema and, where that one is lax (node types,
  providers), by key sets held here.
- `build`: what `kubectl apply -k FOLDER` would send, for what our kustomizations use; anything else
  is refused rather than guessed.
- `object_problems`: one Kubernetes object, by KubeRay's CRDs with unknown keys refused at every
  level, and by key sets held here for the core kinds.
- `misspelt`: every key of a document misspelt, one at a time.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parent.parent
K8S = ROOT / "k8s"
CLUSTERS = ROOT / "clusters"

Read = Callable[[Path], str]


class ManifestError(ValueError):
    """A file that is wrong, or uses what this checker does not know."""


# --- versions


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    text = (ROOT / "constraints.txt").read_text()
    return re.search(rf"^{re.escape(package)}==(\S+)$", text, re.MULTILINE)[1]


def image(kind: str) -> str:
    """Name and tag of our image, without a registry; kind is "cpu" or "gpu"."""
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return f"ftray:{version[1]}-ray{pinned('ray')}-{kind}"


# --- YAML


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ManifestError(f"{', '.join(map(str, twice))} twice, line {node.start_mark.line}")
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[Any]:
    """The documents of a YAML text."""
    return [d for d in yaml.load_all(text, Loader=_Loader) if d is not None]


EMBEDDED = ("serveConfigV2", "runtimeEnvYAML")
"""Keys whose text is YAML again."""


def misspelt(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(where, the value with this one key misspelt), for every key at every depth."""
    if isinstance(value, Mapping):
        for key, inside in value.items():
            renamed = {(f"{k}x" if k == key else k): v for k, v in value.items()}
            yield ".".join(map(str, (*path, key))), renamed
            if key in EMBEDDED:
                for where, changed in misspelt(yaml.safe_load(inside), (*path, key)):
                    yield where, {**value, key: yaml.safe_dump(changed)}
            for where, changed in misspelt(inside, (*path, key)):
                yield where, {**value, key: changed}
    elif isinstance(value, list):
        for number, inside in enumerate(value):
            for where, changed in misspelt(inside, (*path, number)):
                yield where, [*value[:number], changed, *value[number + 1 :]]


# --- shapes: which keys may stand where. A dict holds its keys, a list its one kind of item; "*" is
# any key, None a plain value.


def plain(names: str) -> dict[str, None]:
    """The shape of plain values under these names."""
    return dict.fromkeys(names.split())


def shape_problems(value: Any, shape: Any, where: str) -> list[str]:
    """Keys that the shape does not have, and values of another kind."""
    if shape is None:
        return [f"{where}: a plain value"] if isinstance(value, Mapping | list) else []
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where}: a list"]
        return [
            p for i, v in enumerate(value) for p in shape_problems(v, shape[0], f"{where}[{i}]")
        ]
    if not isinstance(value, Mapping):
        return [f"{where}: a mapping"]
    problems = [f"{where}: no key {key}" for key in value if key not in shape and "*" not in shape]
    for key, inside in value.items():
        if key in shape or "*" in shape:
            problems += shape_problems(inside, shape.get(key, shape.get("*")), f"{where}.{key}")
    return problems


# --- clusters/

# Parameters of EC2's RunInstances (its API reference) that a node type may sensibly have, and
# SubnetIds, which Ray itself takes.
AWS_NODE = {
    "BlockDeviceMappings": [
        {
            "DeviceName": None,
            "Ebs": plain(
                "DeleteOnTermination Encrypted Iops KmsKeyId SnapshotId Throughput VolumeSize "
                "VolumeType"
            ),
        }
    ],
    "EbsOptimized": None,
    "IamInstanceProfile": {"Arn": None, "Name": None},
    "ImageId": None,
    "InstanceMarketOptions": {
        "MarketType": None,
        "SpotOptions": plain("InstanceInterruptionBehavior MaxPrice SpotInstanceType ValidUntil"),
    },
    "InstanceType": None,
    "KeyName": None,
    "MetadataOptions": plain(
        "HttpEndpoint HttpPutResponseHopLimit HttpTokens InstanceMetadataTags"
    ),
    "Placement": plain("AvailabilityZone GroupName Tenancy"),
    "SecurityGroupIds": [None],
    "SubnetIds": [None],
    "TagSpecifications": [{"ResourceType": None, "Tags": [{"Key": None, "Value": None}]}],
    "UserData": None,
}
# The body of Compute Engine's instances.insert (its REST reference), likewise.
GCP_NODE = {
    "canIpForward": None,
    "disks": [
        {
            **plain("autoDelete boot interface mode type"),
            "initializeParams": plain("diskName diskSizeGb diskType sourceImage"),
        }
    ],
    "guestAccelerators": [{"acceleratorCount": None, "acceleratorType": None}],
    "labels": {"*": None},
    "machineType": None,
    "metadata": {"items": [{"key": None, "value": None}]},
    "minCpuPlatform": None,
    "networkInterfaces": [
        {"accessConfigs": [{"name": None, "type": None}], "network": None, "subnetwork": None}
    ],
    "scheduling": plain(
        "automaticRestart instanceTerminationAction onHostMaintenance preemptible provisioningModel"
    ),
    "serviceAccounts": [{"email": None, "scopes": [None]}],
    "shieldedInstanceConfig": plain("enableIntegrityMonitoring enableSecureBoot enableVtpm"),
    "tags": {"items": [None]},
}
# The keys that ray/autoscaler/_private/{aws,gcp,local} read of `provider`.
PROVIDERS = {
    "aws": {
        **plain("type region availability_zone cache_stopped_nodes"),
        "use_internal_ips": None,
        "security_group": {"GroupName": None, "IpPermissions": [{"*": None}]},
    },
    "gcp": plain("type region availability_zone project_id use_internal_ips"),
    "local": {"type": None, "head_ip": None, "worker_ips": [None]},
}
NODES = {"aws": AWS_NODE, "gcp": GCP_NODE}
RESOURCES = plain("CPU GPU memory object_store_memory")
# Keys of metadata.items that the images read (Deep Learning VM's, and Compute Engine's own).
GCP_METADATA = ("install-nvidia-driver", "startup-script")


def cluster_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with a launcher file; none if `ray up` would take it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    provider = config.get("provider", {}).get("type")
    if provider not in PROVIDERS:
        return [f"provider.type: one of {', '.join(PROVIDERS)}"]
    try:
        validate_config(prepare_config(copy.deepcopy(dict(config))))
    except jsonschema.ValidationError as error:
        return [f"{error.json_path}: {error.message}"]
    except (Exception, SystemExit) as error:
        return [f"{type(error).__name__}: {error}"]
    problems = shape_problems(config["provider"], PROVIDERS[provider], "provider")
    for name, node in config.get("available_node_types", {}).items():
        problems += shape_problems(node["node_config"], NODES[provider], f"{name}.node_config")
        problems += shape_problems(node["resources"], RESOURCES, f"{name}.resources")
        if provider == "gcp" and not problems:
            items = node["node_config"].get("metadata", {}).get("items", [])
            problems += [f"{name}: metadata {i}" for i in items if i.get("key") not in GCP_METADATA]
    return problems


# --- kustomize

LABELS = plain("app.kubernetes.io/part-of app.kubernetes.io/name")
KUSTOMIZATION = {
    "apiVersion": None,
    "kind": None,
    "resources": [None],
    "components": [None],
    "patches": [{"path": None, "target": {"kind": None, "name": None}}],
    "configMapGenerator": [{"name": None, "behavior": None, "files": [None]}],
    "generatorOptions": {"disableNameSuffixHash": None, "labels": LABELS},
}
KINDS = {
    "Kustomization": "kustomize.config.k8s.io/v1beta1",
    "Component": "kustomize.config.k8s.io/v1alpha1",
}
OPERATION = {"op", "path", "value"}


def build(folder: Path, components: Sequence[str] = (), read: Read = Path.read_text) -> list[Any]:
    """The objects of a kustomization, in kustomize's order: resources, components, generators,
    patches.

    Args:
        folder: holds kustomization.yaml.
        components: names under k8s/components that are added to its own.
        read: gives the text of a file.

    Raises:
        ManifestError: for a file that is missing, an unknown key, a patch that fits nothing.
    """
    return _accumulate(
        folder.resolve(), [], [str(K8S / "components" / c) for c in components], read
    )


def _accumulate(folder: Path, objects: list[Any], more: Sequence[str], read: Read) -> list[Any]:
    spec = kustomization(folder, read)
    for name in spec.get("resources", []):
        path = _there(folder / name)
        objects += build(path, read=read) if path.is_dir() else documents(read(path))
    for name in [*spec.get("components", []), *more]:
        objects = _accumulate(_there(folder / name), objects, [], read)
    for generator in spec.get("configMapGenerator", []):
        _generate(generator, spec, folder, objects, read)
    for patch in spec.get("patches", []):
        found = [o for o in objects if _fits(o, patch["target"])]
        if not found and spec["kind"] == "Kustomization":
            raise ManifestError(f"{folder}: {patch['target']} fits nothing")
        for one in found:
            apply_patch(one, documents(read(_there(folder / patch["path"])))[0])
    return objects


def kustomization(folder: Path, read: Read = Path.read_text) -> dict[str, Any]:
    """The checked kustomization.yaml of a folder."""
    file = _there(folder / "kustomization.yaml")
    spec = documents(read(file))[0]
    problems = shape_problems(spec, KUSTOMIZATION, str(file))
    if KINDS.get(spec.get("kind")) != spec.get("apiVersion") or "kind" not in spec:
        problems.append(f"{file}: kind and apiVersion")
    for patch in spec.get("patches", []):
        if set(patch) != {"path", "target"} or "kind" not in patch["target"]:
            problems.append(f"{file}: a patch needs path and target.kind")
    for one in spec.get("configMapGenerator", []):
        if not {"name", "files"} <= set(one) or one.get("behavior", "create") not in BEHAVIORS:
            problems.append(f"{file}: a generator needs name and files; behavior {BEHAVIORS}")
        if not spec.get("generatorOptions", {}).get("disableNameSuffixHash"):
            problems.append(f"{file}: names with a hash are not found by a RayJob")
    if not {"resources", "components", "patches", "configMapGenerator"} & set(spec):
        problems.append(f"{file}: it holds nothing")
    if problems:
        raise ManifestError("; ".join(problems))
    return spec


BEHAVIORS = ("create", "replace")


def _there(path: Path) -> Path:
    if not path.exists():
        raise ManifestError(f"There is no {path}")
    return path.resolve()


def _fits(one: Mapping[str, Any], target: Mapping[str, str]) -> bool:
    name = target.get("name", one["metadata"]["name"])
    return one["kind"] == target["kind"] and one["metadata"]["name"] == name


def _generate(
    generator: Mapping[str, Any],
    spec: Mapping[str, Any],
    folder: Path,
    objects: list[Any],
    read: Read,
) -> None:
    name = generator["name"]
    made = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": spec["generatorOptions"].get("labels", {})},
        "data": {Path(f).name: read(_there(folder / f)) for f in generator["files"]},
    }
    there = [o for o in objects if _fits(o, {"kind": "ConfigMap", "name": name})]
    if bool(there) != (generator.get("behavior") == "replace"):
        raise ManifestError(f"{folder}: ConfigMap {name}: behavior {generator.get('behavior')}")
    for old in there:
        objects.remove(old)
    objects.append(made)


def apply_patch(one: dict[str, Any], patch: Any) -> None:
    """Apply an RFC 6902 patch in place: add, remove, replace, test.

    Raises:
        ManifestError: for anything else (a merge patch replaces the lists of a custom resource),
            and for a path that is not there.
    """
    if not isinstance(patch, list):
        raise ManifestError("a patch is a list of operations (RFC 6902)")
    for step in patch:
        if not {"op", "path"} <= set(step) <= OPERATION:
            raise ManifestError(f"an operation has op, path and value: {sorted(step)}")
        *parents, last = step["path"].lstrip("/").split("/")
        place: Any = one
        for part in parents:
            place = place[_key(place, part, step)]
        _operate(place, last, step)


def _key(place: Any, part: str, step: Mapping[str, Any]) -> Any:
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return int(part)
    if isinstance(place, dict) and part in place:
        return part
    raise ManifestError(f"{step['path']}: there is no {part}")


def _operate(place: Any, last: str, step: Mapping[str, Any]) -> None:
    if (step["op"] != "remove") != ("value" in step):
        raise ManifestError(f"{step['path']}: {step['op']} and value")
    if step["op"] == "add" and isinstance(place, dict):
        place[last] = step["value"]
    elif step["op"] == "remove":
        del place[_key(place, last, step)]
    elif step["op"] == "replace":
        place[_key(place, last, step)] = step["value"]
    elif step["op"] == "test":
        if place[_key(place, last, step)] != step["value"]:
            raise ManifestError(f"{step['path']}: it is not {step['value']}")
    else:
        raise ManifestError(f"{step['path']}: op {step['op']}")


# --- Kubernetes objects

ANNOTATIONS = plain("eks.amazonaws.com/role-arn iam.gke.io/gcp-service-account")
METADATA = {"name": None, "labels": LABELS, "annotations": ANNOTATIONS}
SELECTOR = {"matchLabels": LABELS}
PEER = {"podSelector": SELECTOR, "namespaceSelector": SELECTOR}
PORT = {"port": None, "protocol": None}
HEADER = {"apiVersion": None, "kind": None, "metadata": METADATA}
CORE = {
    ("v1", "ServiceAccount"): {**HEADER, "automountServiceAccountToken": None},
    ("v1", "ConfigMap"): {**HEADER, "data": {"*": None}},
    ("v1", "PersistentVolumeClaim"): {
        **HEADER,
        "spec": {
            "accessModes": [None],
            "resources": {"requests": {"storage": None}},
            "storageClassName": None,
        },
    },
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        **HEADER,
        "spec": {
            "podSelector": SELECTOR,
            "policyTypes": [None],
            "ingress": [{"from": [PEER], "ports": [PORT]}],
        },
    },
}
# Paths that the objects cannot do without, where their kind alone does not say so.
REQUIRED = {
    "PersistentVolumeClaim": [
        ("spec", "accessModes"),
        ("spec", "resources", "requests", "storage"),
    ],
    "NetworkPolicy": [
        ("spec", "podSelector", "matchLabels"),
        ("spec", "policyTypes"),
        ("spec", "ingress"),
    ],
    "ServiceAccount": [("automountServiceAccountToken",)],
    "ConfigMap": [("data",)],
}
RAY = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
QUANTITIES = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}
FREE_MAPS = {  # maps whose keys a CRD leaves open, and those that we use
    "labels": set(LABELS),
    "annotations": set(ANNOTATIONS),
    "matchLabels": set(LABELS),
    "requests": QUANTITIES,
    "limits": QUANTITIES,
}
# ray/serve/schema.py: ServeDeploySchema and its parts, those that we use or users of ours may.
SERVE = {
    "proxy_location": None,
    "http_options": plain("host port request_timeout_s keep_alive_timeout_s"),
    "applications": [
        {
            **plain("name route_prefix import_path"),
            "runtime_env": {"env_vars": {"*": None}},
            "args": {"*": None},
            "deployments": [
                {
                    **plain("name num_replicas max_ongoing_requests"),
                    "max_queued_requests": None,
                    "autoscaling_config": plain(
                        "min_replicas max_replicas target_ongoing_requests upscale_delay_s "
                        "downscale_delay_s"
                    ),
                    "ray_actor_options": plain("num_cpus num_gpus memory"),
                }
            ],
        }
    ],
}
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")


def crds() -> Path | None:
    """The folder with KubeRay's CRDs, if FTRAY_CRDS names one."""
    return Path(os.environ["FTRAY_CRDS"]) if os.environ.get("FTRAY_CRDS") else None


@cache
def _validator(folder: Path, kind: str) -> jsonschema.Draft7Validator:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((folder / f"ray.io_{RAY[kind]}.yaml").read_text(), Loader=loader)
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    return jsonschema.Draft7Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(node: Any) -> Any:
    """An OpenAPI schema as JSON schema that refuses unknown keys at every level."""
    if isinstance(node, list):
        return [_strict(inside) for inside in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    if node.pop("x-kubernetes-int-or-string", False):
        node.pop("anyOf", None)
        node["type"] = ["integer", "string"]
    if node.get("type") == "object" and "properties" in node:
        node["additionalProperties"] = False
    named = ("properties",)
    return {
        k: ({n: _strict(s) for n, s in v.items()} if k in named else _strict(v))
        for k, v in node.items()
    }


def object_problems(one: Any) -> list[str]:
    """What is wrong with one object; none if Kubernetes would take it and knew every key.

    Custom resources need the CRDs (`crds`).
    """
    if not isinstance(one, Mapping) or not {"apiVersion", "kind", "metadata"} <= set(one):
        return ["an object has apiVersion, kind and metadata"]
    problems = shape_problems(one["metadata"], METADATA, "metadata")
    if not one["metadata"].get("name") or not one["metadata"].get("labels"):
        problems.append("metadata: name and labels")
    kind = one["kind"]
    if kind in RAY and one["apiVersion"] == "ray.io/v1":
        folder = crds()
        assert folder is not None, "FTRAY_CRDS is not set"
        errors = _validator(folder, kind).iter_errors(one)
        problems += [f"{e.json_path}: {e.message[:200]}" for e in errors]
        return problems or _free_maps(one, kind) + _embedded(one)
    shape = CORE.get((one["apiVersion"], kind))
    if shape is None:
        return [f"{one['apiVersion']} {kind}: not a kind that is known here"]
    problems += shape_problems(one, shape, kind)
    problems += [f"no {'.'.join(p)}" for p in REQUIRED[kind] if _at(one, p) is None]
    if kind == "NetworkPolicy" and not problems:
        for rule in one["spec"]["ingress"]:  # a rule without `from` lets everybody in
            if not rule.get("from") or {} in rule["from"]:
                problems.append("NetworkPolicy: a rule for everybody")
    return problems


def _at(value: Any, path: Sequence[str]) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _free_maps(value: Any, where: str) -> list[str]:
    problems = []
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in _free_maps(v, f"{where}[{i}]")]
    if isinstance(value, Mapping):
        for key, inside in value.items():
            allowed = _start_options() if key == "rayStartParams" else FREE_MAPS.get(key)
            if allowed is not None and isinstance(inside, Mapping):
                problems += [f"{where}.{key}: no key {k}" for k in inside if k not in allowed]
            problems += _free_maps(inside, f"{where}.{key}")
    return problems


@cache
def _start_options() -> frozenset[str]:
    from ray.scripts.scripts import start

    return frozenset(name.removeprefix("--") for p in start.params for name in p.opts)


def _embedded(one: Mapping[str, Any]) -> list[str]:
    """What the CRD takes for mere text."""
    spec = one["spec"]
    problems = []
    if one["kind"] == "RayService":
        config = yaml.safe_load(spec.get("serveConfigV2", ""))
        problems += shape_problems(config, SERVE, "serveConfigV2")
        problems += [] if problems else _applications(config)
    if one["kind"] == "RayJob":
        from ray.runtime_env import RuntimeEnv

        environment = yaml.safe_load(spec.get("runtimeEnvYAML", "{}"))
        known = dict.fromkeys(RuntimeEnv.known_fields)
        known["env_vars"] = {"HF_HUB_DISABLE_TELEMETRY": None}
        problems += shape_problems(environment, known, "runtimeEnvYAML")
        if spec.get("submissionMode") not in SUBMISSION_MODES:
            problems.append(f"submissionMode: one of {', '.join(SUBMISSION_MODES)}")
        if not re.fullmatch(r"ftray fit /config/[\w-]+\.yaml", spec.get("entrypoint", "")):
            problems.append("entrypoint: ftray fit of a file in /config")
    return problems


def _applications(config: Mapping[str, Any]) -> list[str]:
    """Serve takes what is missing for its default, so what we rely on is asked for."""
    problems = []
    paths = [("http_options", "host"), ("http_options", "port"), ("proxy_location",)]
    problems += [f"serveConfigV2: no {'.'.join(p)}" for p in paths if _at(config, p) is None]
    for application in config.get("applications") or [{}]:
        for key in ("name", "route_prefix", "import_path", "deployments"):
            if key not in application:
                problems.append(f"serveConfigV2.applications: no {key}")
        arguments = application.get("args", {})
        problems += shape_problems(arguments, plain("model device"), "args")
    return problems


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod template inside an object."""
    if isinstance(value, list):
        for inside in value:
            yield from pods(inside)
    elif isinstance(value, Mapping):
        for key, inside in value.items():
            if key in ("template", "submitterPodTemplate"):
                yield inside
            else:
                yield from pods(inside)


def clusters_of(one: Mapping[str, Any]) -> dict[str, Any]:
    """The RayCluster's spec in a RayCluster, RayJob or RayService."""
    spec = one["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
