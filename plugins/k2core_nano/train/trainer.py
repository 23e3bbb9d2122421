"""The command line that trains the embedded model from generated documents, and the start of its processes.

    python -m k2core_nano.train.trainer --out DIR --seconds 5400

One data-parallel process per core; SIGTERM and SIGINT end the run after the current step, with a checkpoint.

Phases: "copy" (induction is learnt from pure copying) until the smoothed loss is below --copy-until or --copy-tokens are used,
then "main", which keeps a share of copying for a while. Rounding: in the last --rounding-share of the budget the forward pass
sees the weights exactly as they will be exported (INT4 routed experts, bfloat16 others) and the gradient at those values
updates the unrounded ones (straight-through).
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

COMMAND = (sys.executable, "-m", "k2core_nano.train.trainer")

# Large temporary arrays are otherwise mapped and unmapped at every use; so the heap keeps them, in huge pages (11 % faster).
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1",
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line; its options steer `training.Trainer`."""
    p = argparse.ArgumentParser(prog="python -m k2core_nano.train.trainer", description="Train the embedded model.")
    add = p.add_argument
    add("--out", type=Path, required=True, help="folder for checkpoints")
    add("--seconds", type=float, default=0.0, help="budget in seconds of training (0: none)")
    add(
        "--tokens",
        type=int,
        default=0,
        help="budget in document tokens (0: none); the larger used share of the two steers the schedule",
    )
    add("--seed", type=int, default=1)
    add("--processes", type=int, default=2, help="data-parallel processes")
    add("--threads", type=int, default=1, help="threads of each process")
    add("--step-tokens", type=int, default=8192, help="document tokens per optimiser step, all processes together")
    add("--copy-step-tokens", type=int, default=2560, help="the same in the copy phase, which needs steps more than tokens")
    add("--pass-tokens", type=int, default=4096, help="document tokens per forward pass of one process")
    add("--group-tokens", type=int, default=2048, help="document tokens that share one set of tool declarations")
    add("--muon-rate", type=float, default=0.009)
    add("--adam-rate", type=float, default=0.0037)
    add("--weight-decay", type=float, default=0.05)
    add("--warmup-steps", type=int, default=30, help="linear warm-up, also after --resume")
    add("--decay-share", type=float, default=0.45, help="last share of the budget over which the rates fall linearly")
    add("--final-rate", type=float, default=0.02, help="smallest factor on the rates")
    add("--rounding-share", type=float, default=0.2, help="last share of the budget trained on INT4/bfloat16 values")
    add("--balance-rate", type=float, default=0.003)
    add("--logit-limit", type=float, default=100.0, help="largest attention logit before a head is clipped")
    add("--late-balance-rate", type=float, default=0.0005)
    add("--copy-until", type=float, default=0.45, help="smoothed loss that ends the copy phase")
    add("--copy-tokens", type=int, default=2_500_000, help="largest number of tokens in the copy phase")
    add("--copy-mix", type=float, default=0.15, help="share of copy tokens at the start of the main phase")
    add("--copy-mix-tokens", type=int, default=4_000_000, help="main-phase tokens over which that share falls to zero")
    add("--geometry", type=Path, help="config.json of another size of model (default: the embedded model's)")
    add("--resume", type=Path, help="checkpoint to continue from")
    add("--weights", type=Path, help="exported folder to begin with instead of drawn weights, in the main phase")
    add("--restart-schedule", action="store_true", help="with --resume: budgets count from the checkpoint on")
    add("--log-every", type=float, default=15.0)
    add("--save-every", type=float, default=180.0)
    add("--archive-every", type=float, default=900.0, help="seconds between checkpoints that are kept under their own name")
    add("--rank", type=int, default=0, help=argparse.SUPPRESS)
    add("--port", type=int, default=0, help=argparse.SUPPRESS)
    return p


def main(arguments: list[str] | None = None) -> str:
    """Parse the command line, start the other processes, train.

    Args:
        arguments: instead of the command line's.

    Returns:
        "done" or "stopped".

    Raises:
        CheckpointError: --resume or --weights names a model of another size.
    """
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)

    # Imported here because the process is replaced before it would need them (see the last lines), and --help needs none.
    import structlog
    import torch
    import torch.distributed as dist

    from k2core_nano.train import checkpoints, running
    from k2core_nano.train.documents import stream
    from k2core_nano.train.geometry import Geometry
    from k2core_nano.train.training import Trainer

    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # a sharp softmax leaves tiny probabilities, and arithmetic on denormals halves the speed
    options.out.mkdir(parents=True, exist_ok=True)
    structlog.configure(
        processors=[structlog.processors.TimeStamper("%H:%M:%S"), structlog.processors.JSONRenderer(ensure_ascii=False)],
        logger_factory=structlog.PrintLoggerFactory(),
    )
    children = []
    if options.processes > 1:
        port = options.port or _free_port()
        if options.rank == 0:
            children = [
                subprocess.Popen([*COMMAND, *given, "--port", str(port), "--rank", str(rank)], env={**os.environ, **ALLOCATOR})
                for rank in range(1, options.processes)
            ]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
        dist.init_process_group("gloo", rank=options.rank, world_size=options.processes)
    size = Geometry.from_config(json.loads(options.geometry.read_text())) if options.geometry else Geometry()
    trainer = Trainer(options, size, stream)

    def request_stop(*_: object) -> None:
        trainer.stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    if options.weights:
        checkpoints.begin(trainer, options.weights)
    if options.resume:
        checkpoints.load(trainer, options.resume, restart_schedule=options.restart_schedule)
    if options.rank == 0:
        (options.out / "options.json").write_text(json.dumps({k: str(v) for k, v in vars(options).items()}, indent=1))
        parameters = sum(parameter.numel() for parameter in trainer.parameters)
        structlog.get_logger().info("train.start", parameters=parameters, **running.summary(trainer))
    ending = running.run(trainer, options.out)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    for child in children:
        child.wait()
    return ending


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    if "MALLOC_MMAP_MAX_" not in os.environ:  # the C library reads these before any of our code runs
        os.execve(sys.executable, [*COMMAND, *sys.argv[1:]], {**os.environ, **ALLOCATOR})
    main()
