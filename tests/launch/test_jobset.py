"""launch/gke_jobset.yaml: its schema, what refers to what, and what JAX makes of it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from skin_jax.base import errors

ROOT = Path(__file__).parents[2]
FILE = ROOT / "launch/gke_jobset.yaml"
DOCUMENTS = list(yaml.safe_load_all(FILE.read_text()))
JOBSET = DOCUMENTS[-1]
JOB = JOBSET["spec"]["replicatedJobs"][0]["template"]["spec"]
POD = JOB["template"]["spec"]


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    content = json.loads(Path(__file__).with_name("kubernetes.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def test_every_document_fits_the_schema(schema):
    assert [document["kind"] for document in DOCUMENTS] == [
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "PersistentVolumeClaim",
        "JobSet",
    ]
    for document in DOCUMENTS:
        schema.validate(document)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("failurePolicy", "maxRestart"), 3),
        (("failurePolicy", "rules", 0, "action"), "Fail"),
        (("replicatedJobs", 0, "template", "spec", "parallelism"), "2"),
        (("replicatedJobs", 0, "template", "spec", "template", "spec", "restartPolicy"), "Always"),
    ],
)
def test_the_schema_finds_mistakes(schema, where, value):
    wrong = copy.deepcopy(JOBSET)
    *path, last = where
    place = wrong["spec"]
    for key in path:
        place = place[key]
    place[last] = value
    assert not schema.is_valid(wrong)


def test_what_is_referred_to_is_there():
    named = {document["kind"]: document["metadata"]["name"] for document in DOCUMENTS}
    (container,) = POD["containers"]
    (volume,) = (v for v in POD["volumes"] if "persistentVolumeClaim" in v)
    assert POD["serviceAccountName"] == named["ServiceAccount"]
    assert DOCUMENTS[2]["roleRef"]["name"] == named["Role"]
    assert volume["persistentVolumeClaim"]["claimName"] == named["PersistentVolumeClaim"]
    assert DOCUMENTS[3]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in POD["volumes"]
    }
    (store,) = (m["mountPath"] for m in container["volumeMounts"] if m["name"] == volume["name"])
    paths = dict(arg.split("=", 1) for arg in container["args"])
    assert (ROOT / paths.pop("--config")).is_file()
    assert all(path.startswith(f"{store}/") for path in paths.values()), paths


def test_only_bad_input_is_final():
    (rule,) = JOB["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["containerName"] == POD["containers"][0]["name"]
    assert rule["onExitCodes"]["operator"] == "In"
    assert rule["onExitCodes"]["values"] == [errors.BAD_INPUT]
    (rule,) = JOBSET["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # Every other failure of a pod ends the job at once, and JobSet starts all of its pods again.
    assert JOB["backoffLimit"] == 0
    assert JOBSET["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_jax_joins_the_pods():
    found = []
    for index in range(JOB["completions"]):
        result = subprocess.run(
            [sys.executable, Path(__file__).with_name("stand_in_pod.py"), FILE, str(index)],
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert result.returncode == 0, result.stderr
        found.append(json.loads(result.stdout))
    assert [pod["process"] for pod in found] == list(range(len(found)))
    assert {pod["processes"] for pod in found} == {len(found)}
    assert {pod["address"].split(":")[0] for pod in found} == {"skin-jax-trainer-0-0.skin-jax"}
