"""How far a checkpoint has come, per family, while training runs.

    python -m k2core_nano.train.probe --checkpoint DIR/latest.pt --questions 40 --level 0

Fresh held-out questions are solved by the oracle and fed with teacher forcing. Three figures per family:
first - every token of the first think and call is the most likely one (the decision, which the mean loss hides);
call  - every token of a later call is the most likely one, given everything true before it (copying and formatting);
think - the same for the later thoughts. Neither is an end-to-end result: `k2core_nano.evaluation` measures that.
"""

import argparse
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from attrs import frozen

from k2core_nano.train.geometry import Geometry
from k2core_nano.train.mix import question
from k2core_nano.train.model import NanoModel
from k2core_nano.train.packing import pack
from k2core_nano.train.quantise import fake_bfloat16, fake_quantise
from k2core_nano.train.questions import solved
from k2core_nano.train.tokenizer import CONTROL
from k2core_nano.train.tool_sets import set_of
from k2core_nano.train.wire import SPEC, Builder, Document, Group, prefix

FAMILIES: tuple[str, ...] = tuple(family for group in SPEC["families"].values() for family in group)


@frozen(kw_only=True)
class Score:
    """Counts of exact pieces in one family."""

    first: int
    questions: int
    think: int
    call: int
    calls: int

    def line(self) -> str:
        """The counts in a fixed width."""
        later = f"think {self.think:3d}/{self.calls:<4d} call {self.call:3d}/{self.calls:<4d}"
        return f"first {self.first:3d}/{self.questions:<3d} {later}"


def load_checkpoint(path: Path, *, rounded: bool = True) -> NanoModel:
    """The model of a training checkpoint, with the weights as they would be exported unless `rounded` is False."""
    state = torch.load(path, weights_only=True)
    model = NanoModel(Geometry(**state["geometry"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            master = state["masters"][name]
            kept = fake_quantise(master) if ".experts." in name else fake_bfloat16(master)
            parameter.copy_(kept if rounded else master)
        for layer, bias in zip(model.moe_layers, state["bias"], strict=True):
            layer.gate.e_score_correction_bias.copy_(bias)
    return model


def held_out(rng: random.Random, family: str, level: int, name: str) -> Group:
    """A whole solved conversation whose assistant tokens all have weight 1, behind the declarations of its tools."""
    asked = question(rng, family, level)
    declarations = {**{tool: SPEC["tools"][tool] for tool in set_of(asked)}, **asked.declares}
    builder = Builder()
    builder.user(asked.text)
    turns = solved(asked, rng)
    for turn in turns:
        builder.step(turn.step, turn.index, 1)
        if turn is not turns[-1]:
            builder.result(turn.step.tool, turn.index, turn.result)
    return Group(prefix=prefix(tuple(declarations[tool] for tool in sorted(declarations))), documents=[builder.document(name)])


@torch.no_grad()
def exact_tokens(model: NanoModel, groups: Sequence[Group]) -> list[list[bool]]:
    """For each document, whether each weighted token is the most likely one. Families must be "0", "1", ... in order."""
    batch = pack(groups)
    right = model(batch).argmax(-1) == batch.target_ids
    rows: list[list[bool]] = [[] for group in groups for _ in group.documents]
    for slot, hit in zip(batch.target_families.tolist(), right.tolist(), strict=True):
        rows[int(batch.families[slot])].append(hit)
    return rows


def score(documents: Sequence[Document], rows: Sequence[Sequence[bool]]) -> Score:
    """Count the exact pieces: a step starts at <think>, its call part at </think>."""
    first = think = call = calls = 0
    for document, hits in zip(documents, rows, strict=True):
        tokens = [token for token, weight in zip(document.ids, document.weights, strict=True) if weight]
        starts = [i for i, token in enumerate(tokens) if token == CONTROL["<think>"]] + [len(tokens)]
        first += all(hits[: starts[1]])
        for start, stop in pairwise(starts[1:]):
            middle = tokens.index(CONTROL["</think>"], start)
            think += all(hits[start:middle])
            call += all(hits[middle:stop])
            calls += 1
    return Score(first=first, questions=len(documents), think=think, call=call, calls=calls)


def probe(model: NanoModel, *, questions: int, level: int, seed: int, families: Sequence[str] = FAMILIES) -> dict[str, Score]:
    """Score a model on fresh questions of every family."""
    result: dict[str, Score] = {}
    for family in families:
        rng = random.Random(f"probe {seed} {family} {level}")
        groups = [held_out(rng, family, level, str(index)) for index in range(questions)]
        documents = [document for group in groups for document in group.documents]
        result[family] = score(documents, exact_tokens(model, groups))
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m k2core_nano.train.probe", description="Teacher-forced exactness.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=40, help="questions per family")
    parser.add_argument("--level", type=int, default=0, choices=(0, 1, 2), help="see phrasing")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    scores = probe(load_checkpoint(options.checkpoint), questions=options.questions, level=options.level, seed=options.seed)
    for family, result in scores.items():
        print(f"{family:12s} {result.line()}")
    whole = sum(result.first for result in scores.values()) / sum(result.questions for result in scores.values())
    print(f"first decision exact: {whole:.3f} (level {options.level}, {time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
