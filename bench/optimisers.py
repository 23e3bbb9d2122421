"""MuonClip against AdamW: the trainer of the embedded model with both, on two seeds, and what came of it as figures and a plot.

    python bench/optimisers.py --tokens 10000000 --out FOLDER

Each run is the trainer's own command with one option more, so both see the same documents in the same order. A run that is
there already is not made again; a line per run says the loss behind equal numbers of tokens. Needs the extras ``train`` and
``sandbox`` (for matplotlib); hours on two cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

OPTIMISERS, SEEDS = ("muonclip", "adamw"), (1, 2)
LINES = {"muonclip": "-", "adamw": "--"}


def trained(folder: Path, optimiser: str, seed: int, tokens: int, more: list[str]) -> list[dict[str, float]]:
    """The progress lines of one run, which is made unless it is there."""
    log = folder / "log.jsonl"
    if not log.exists() or '"train.end"' not in log.read_text():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "k2core_nano.train.trainer", "--out", str(folder), "--seed", str(seed)]
        command += ["--tokens", str(tokens), "--optimizer", optimiser, "--log-every", "20", *more]
        with log.open("w") as file:
            subprocess.run(command, stdout=file, check=True)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == "train.progress" and line["phase"] == "main"]


def drawn(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Smoothed loss over tokens, and the largest attention logit below it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 8), sharex=True)
    for name, lines in curves.items():
        tokens = [line["document_tokens"] / 1e6 for line in lines]
        style = LINES[name.split()[0]]
        above.plot(tokens, [line["smooth"] for line in lines], style, label=name)
        below.plot(tokens, [line["peak_logit"] for line in lines], style, label=name)
    above.set(yscale="log", ylabel="smoothed loss")
    below.set(yscale="log", ylabel="largest attention logit", xlabel="million document tokens")
    above.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train, compare, draw."""
    parser = argparse.ArgumentParser(description="MuonClip against AdamW on the embedded model.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the figures and the plot")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="document tokens of each run")
    parser.add_argument("more", nargs="*", help="further options of the trainer, behind --")
    options = parser.parse_args()
    curves = {
        f"{optimiser} seed {seed}": trained(options.out / f"{optimiser}-{seed}", optimiser, seed, options.tokens, options.more)
        for seed in SEEDS
        for optimiser in OPTIMISERS
    }
    last = {name: lines[-1] for name, lines in curves.items() if lines}
    for name, line in last.items():
        told = f"loss {line['smooth']:.4f} behind {line['document_tokens']:,.0f} tokens in {line['seconds']:,.0f} s"
        print(f"{name:18} {told}, largest logit {line['peak_logit']:.1f}")
    (options.out / "optimisers.json").write_text(json.dumps(curves, indent=1) + "\n")
    drawn(curves, options.out / "optimisers.png")


if __name__ == "__main__":
    main()
