"""What JAX finds out about itself in a pod of launch/gke_jobset.yaml, as JSON on standard output.

It runs JAX's own detection against a Kubernetes API that answers as if JobSet's controller had set
the file's objects up, and refuses what the file's role does not allow.

Usage: stand_in_pod.py FILE INDEX
"""

import json
import os
import socket
import sys
import types
from pathlib import Path

import yaml

documents = {d["kind"]: d for d in yaml.safe_load_all(Path(sys.argv[1]).read_text())}
index = sys.argv[2]
jobset = documents["JobSet"]
name = jobset["metadata"]["name"]
(replicated,) = jobset["spec"]["replicatedJobs"]
job_spec = replicated["template"]["spec"]
job_name = f"{name}-{replicated['name']}-0"
pod_name = f"{job_name}-{index}"
labels = {"jobset.sigs.k8s.io/jobset-name": name, "job-name": job_name}


class ApiException(Exception):  # noqa: N818  # its name in the package
    status, reason = 403, "Forbidden"


def check(group, resource, verb):
    account = job_spec["template"]["spec"]["serviceAccountName"]
    bound = account in [subject["name"] for subject in documents["RoleBinding"]["subjects"]]
    for rule in documents["Role"]["rules"]:
        allowed = group in rule["apiGroups"] and resource in rule["resources"]
        if bound and allowed and verb in rule["verbs"]:
            return
    raise ApiException(f"{verb} {resource}")


def record(**fields):
    return types.SimpleNamespace(**fields)


class CoreV1Api:
    def list_namespaced_pod(self, namespace, field_selector):
        check("", "pods", "list")
        controller = record(controller=True, kind="Job")
        metadata = record(name=pod_name, labels=labels, owner_references=[controller])
        return record(items=[record(metadata=metadata)])


class BatchV1Api:
    def read_namespaced_job(self, name, namespace):
        check("batch", "jobs", "get")
        assert name == job_name
        spec = record(parallelism=job_spec["parallelism"])
        return record(metadata=record(name=job_name, labels=labels), spec=spec)


kubernetes = types.ModuleType("kubernetes")
kubernetes.config = record(load_incluster_config=lambda: None)
kubernetes.client = record(
    CoreV1Api=CoreV1Api, BatchV1Api=BatchV1Api, exceptions=record(ApiException=ApiException)
)
sys.modules["kubernetes"] = kubernetes
os.environ |= {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": pod_name}
if job_spec["completionMode"] == "Indexed":
    os.environ["JOB_COMPLETION_INDEX"] = index
socket.gethostbyname = lambda host: "10.0.0.2"

from jax._src import clusters  # noqa: E402  # detection is not public; this is what it is for

clusters.k8s_cluster.K8sCluster._namespace = classmethod(lambda cls: "default")
address, processes, process, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, None, 1
)
print(json.dumps({"address": address, "processes": processes, "process": process}))
