"""A manifest that runs the jobs of a list as an Indexed Job of Kubernetes."""

from __future__ import annotations

import json
from pathlib import Path

from vsfmanet.cluster.joblist import read_list
from vsfmanet.errors import ConfigError

FINAL = (1, 2, 3, 6, 8)
"""Exit codes that another attempt, or another machine, would have too."""


def kubernetes_manifest(path: Path, *, image: str, claim: str, mount: Path, at_once: int, gpus: int, cpus: int) -> str:
    """Build an Indexed Job (Kubernetes 1.33 or newer) that runs the jobs of a list, for `kubectl apply -f`.

    Args:
        path: The list.
        image: Container image with vsfmanet.
        claim: Persistent volume claim with sources and outputs, to which many pods can write.
        mount: Where the volume is mounted, here and in the pods.
        at_once: Most pods that run at one time.
        gpus: GPUs for each job.
        cpus: Processors for each job.

    Raises:
        ConfigError: Sources or outputs are not below `mount`.
    """
    listed = read_list(path)
    for folder in (listed.in_folder, listed.out_folder):
        if not Path(folder).is_relative_to(mount):
            raise ConfigError(
                f"--mount must hold IN_DIR and OUT_DIR, under the same paths as in the pods, got {mount} and "
                f"{folder}; run the command where the volume is mounted at this place"
            )
    name = "vsfmanet"
    volume = "films"
    fail = {"containerName": name, "operator": "In", "values": list(FINAL)}  # another attempt would end the same way
    container = {
        "name": name,
        "image": image,
        "command": [name, "cluster", "run", _literal(path)],  # which job: JOB_COMPLETION_INDEX
        "resources": {"limits": {"cpu": str(cpus), **({"nvidia.com/gpu": gpus} if gpus else {})}},
        "volumeMounts": [{"name": volume, "mountPath": str(mount)}],
    }
    spec = {
        "completionMode": "Indexed",
        "completions": len(listed.jobs),
        "parallelism": min(at_once, len(listed.jobs)),
        "backoffLimitPerIndex": 2,
        "maxFailedIndexes": len(listed.jobs),
        "podReplacementPolicy": "Failed",  # otherwise a pod that is ending and the next one overlap
        "podFailurePolicy": {
            "rules": [
                {"action": "FailIndex", "onExitCodes": fail},
                # Preemption, or a drained node.
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 60,
                "containers": [container],
                "volumes": [{"name": volume, "persistentVolumeClaim": {"claimName": claim}}],
            }
        },
    }
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": path.stem.replace("cluster", name),
            "annotations": {
                "description": "Restores the films of a folder; written by `vsfmanet cluster kubernetes`. Delete and "
                "apply it again after any interruption: what is done stays done, everything else is done again."
            },
        },
        "spec": spec,
    }
    return json.dumps(manifest, indent=2) + "\n"


def _literal(path: Path) -> str:
    """Escape a path for a container's command, in which Kubernetes replaces `$(NAME)` and `$$`.

    Raises:
        ConfigError: The path is not text.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"paths for Kubernetes must be text in UTF-8, got {str(path)!r}; rename the folder"
        ) from error
    return str(path).replace("$", "$$")
