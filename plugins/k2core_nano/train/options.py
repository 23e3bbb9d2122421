"""The options of a training run, and which of them cannot be together. Needs no torch, so that --help is quick."""

import argparse
from collections.abc import Sequence
from pathlib import Path

# What options are when they are not given.
DEFAULTS = {
    "cpu": {"processes": 2, "rectangle_tokens": 192, "padding_overhead": 48, "score_limit": 0},
    "cuda": {"processes": 1, "rectangle_tokens": 8192, "padding_overhead": 1024, "score_limit": 2**24},
}
MOST_SHARES = 64  # of a step, so that their seeds differ


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of `training.Trainer`, all with a value; those that cannot be together end the program with one line."""
    p = parser()
    options = p.parse_args(arguments)
    for name, value in DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.shares is None:
        options.shares = options.processes
    problem = ""
    if options.device == "cuda" and options.processes > 1:
        problem = f"--device cuda trains in one process, not in {options.processes}: leave --processes out."
    elif options.feeders and options.processes > 1:
        problem = f"--feeders make documents for one training process, not for {options.processes}: give --processes 1."
    elif options.shares > MOST_SHARES or options.shares < 1 or options.shares % options.processes:
        problem = f"--shares {options.shares} is not a multiple of --processes {options.processes} up to {MOST_SHARES}."
    if problem:
        p.exit(2, f"{p.prog}: {problem}\n")
    return options


def parser() -> argparse.ArgumentParser:
    """The command line, as it is given; `parse` fills in what depends on the device."""
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
    add("--device", choices=tuple(DEFAULTS), default="cpu")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of weights and activations; masters: float32")
    add("--processes", type=int, help="data-parallel processes (default: 2, on cuda 1)")
    add("--shares", type=int, help="parts of a step that are generated on their own (default: one per process)")
    add("--feeders", type=int, default=0, help="processes that generate coming steps for one training process (0: it does)")
    add("--threads", type=int, default=1, help="threads of each process")
    add("--step-tokens", type=int, default=8192, help="document tokens per optimiser step, all processes together")
    add("--copy-step-tokens", type=int, default=2560, help="the same in the copy phase, which needs steps more than tokens")
    add("--pass-tokens", type=int, default=4096, help="document tokens per forward pass of one process")
    add("--rectangle-tokens", type=int, help="most tokens of documents padded to one length (default: 192, on cuda 8192)")
    add(
        "--padding-overhead",
        type=int,
        help="padding tokens that cost as much as one more rectangle (default: 48, on cuda 1024)",
    )
    add("--score-limit", type=int, help="most attention scores per head and rectangle (default: 0, no limit; on cuda 16777216)")
    add("--group-tokens", type=int, default=2048, help="document tokens that share one set of tool declarations")
    add("--optimizer", choices=("muonclip", "adamw"), default="muonclip", help="of the hidden matrices")
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
