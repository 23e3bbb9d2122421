"""The command line that trains the embedded model from generated documents, and the start of its processes.

    python -m k2core_nano.train.trainer --out DIR --seconds 5400

One data-parallel process per core; SIGTERM and SIGINT end the run after the current step, with a checkpoint. Or one process on
a GPU, with large steps and processes that make their documents (nothing of this is tested on a GPU yet)::

    python -m k2core_nano.train.trainer --out DIR --seconds 3600 --device cuda --precision bfloat16 --feeders 14 --shares 16 \
        --step-tokens 131072 --copy-step-tokens 16384 --pass-tokens 65536 --group-tokens 8192

Phases: "copy" (induction is learnt from pure copying) until the smoothed loss is below --copy-until or --copy-tokens are used,
then "main", which keeps a share of copying for a while. Rounding: in the last --rounding-share of the budget the forward pass
sees the weights exactly as they will be exported (INT4 routed experts, bfloat16 others) and the gradient at those values
updates the unrounded ones (straight-through).
"""

import json
import os
import signal
import socket
import subprocess
import sys

from k2core_nano.train.options import parse, parser

COMMAND = (sys.executable, "-m", "k2core_nano.train.trainer")

# Large temporary arrays are otherwise mapped and unmapped at every use; so the heap keeps them, in huge pages (11 % faster).
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> str:
    """Parse the command line, start the other processes, train.

    Args:
        arguments: instead of the command line's.

    Returns:
        "done" or "stopped".

    Raises:
        CheckpointError: --resume or --weights names a model of another size, or --resume another optimiser's.
        K2Error: a feeder ended.
    """
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)

    # Imported here because the process is replaced before it would need them (see the last lines), and --help needs none.
    import structlog
    import torch
    import torch.distributed as dist

    from k2core_nano.train import checkpoints, running
    from k2core_nano.train.documents import stream
    from k2core_nano.train.geometry import Geometry
    from k2core_nano.train.training import Trainer

    if options.device == "cuda" and not torch.cuda.is_available():
        parser().exit(2, f"{parser().prog}: --device cuda: torch {torch.__version__} sees no CUDA device.\n")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # a sharp softmax leaves tiny probabilities, and arithmetic on denormals halves the speed
    # weight gradients are sums over tens of thousands of tokens, whose parts would otherwise be added in bfloat16
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
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
    try:
        ending = running.run(trainer, options.out)
    finally:
        trainer.close()
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
