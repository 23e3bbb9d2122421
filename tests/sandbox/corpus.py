"""The whole corpus, and which families do not apply."""

from sandbox import (
    attacks_files,
    attacks_kernel,
    attacks_network,
    attacks_output,
    attacks_processes,
    attacks_python,
    attacks_resources,
)
from sandbox.cases import Case

GROUPS = {
    "files": attacks_files.CASES,
    "network": attacks_network.CASES,
    "processes": attacks_processes.CASES,
    "kernel": attacks_kernel.CASES,
    "python": attacks_python.CASES,
    "resources": attacks_resources.CASES,
    "output": attacks_output.CASES,
}
CASES: dict[str, Case] = {case.key: case for group in GROUPS.values() for case in group}
ELSEWHERE = {
    21: "a race of the host's reader, in test_artefacts.py",
}
