"""How much memory a backend takes to load and run a checkpoint: anonymous pages and resident pages of files, at their peak."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from k2core.errors import K2Error
from k2core.testing.checkpoints import write_tiny_checkpoint

LARGE: Mapping[str, int] = {
    "hidden_size": 1024, "intermediate_size": 4096, "moe_intermediate_size": 512, "n_routed_experts": 64, "vocab_size": 8192,
}  # fmt: skip
MEASURE = """
import json, sys, threading, time
from pathlib import Path
from k2core.interfaces import SequenceInput, Want
from k2core.plugins import Plugins
from k2core.testing.checkpoints import write_tiny_checkpoint

def now():  # anonymous pages and resident pages of files
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))

name, folder, options, tokens = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
backend = Plugins.discover().get("backend", name).make()

def used(folder, **options):
    model = backend.load(folder, **options)
    handle = model.new_sequence()
    for _ in range(3):
        model.forward([SequenceInput(handle=handle, token_ids=list(range(1, tokens + 1)))], Want(logits="all"))
    return model

used(write_tiny_checkpoint(Path(sys.argv[5]))).close()  # libraries and compiled code are the process's own
baseline, peak, done = now(), [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], now())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
model = used(folder, **options)
done.set()
watcher.join()
print(json.dumps({"baseline_bytes": baseline, "peak_bytes": max(peak[0], now()), "info": dict(model.info())}))
"""


@frozen(kw_only=True)
class Peak:
    """Memory of one process.

    Attributes:
        file_bytes: of the checkpoint's tensors' files.
        baseline_bytes: resident before the checkpoint was loaded, a tiny one having been loaded and run.
        peak_bytes: resident at most while it was loaded and run.
        info: what the model told of itself at the end.
    """

    backend: str
    file_bytes: int
    baseline_bytes: int
    peak_bytes: int
    info: Mapping[str, str]

    @property
    def share(self) -> float:
        """What the checkpoint took beyond the process's own, over its file."""
        return (self.peak_bytes - self.baseline_bytes) / self.file_bytes

    def __str__(self) -> str:
        return (
            f"{self.backend}: peak {self.share:.3f} times the file of {self.file_bytes / 1e6:.0f} MB, "
            f"beyond {self.baseline_bytes / 1e6:.0f} MB of the process's own"
        )


def write_large_checkpoint(folder: Path, **overrides: Any) -> Path:
    """A random checkpoint of about 240 MB, mostly experts as the family's are; *overrides* as of `write_tiny_checkpoint`."""
    return write_tiny_checkpoint(folder / "large", seed=2, **{"num_hidden_layers": 4, **LARGE, **overrides})


def measure_peak(backend: str, folder: Path, *, tokens: int = 32, **options: Any) -> Peak:
    """Load and run a checkpoint in a process of its own.

    Args:
        backend: a registered backend's name.
        folder: the checkpoint.
        tokens: of each of three forwards.
        options: of the backend's `load`.

    Raises:
        K2Error: the process failed; the last lines of what it said.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, backend, str(folder), json.dumps(options), str(tokens), str(folder.parent / "warm")],
        env=os.environ | {"K2CORE_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise K2Error(f"measuring the memory of '{backend}' failed: {' '.join(done.stderr.split())[-1000:]}")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Peak(backend=backend, file_bytes=size, **json.loads(done.stdout))
