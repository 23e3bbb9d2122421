"""The trajectories that the example answers of ``answers.jsonl`` are judged against."""

import json
from pathlib import Path
from typing import Any

from k2core.interfaces import Answer, Claim, Observation, Trajectory


def _trajectory(question: str, *calls: tuple[str, dict[str, str], str]) -> Trajectory:
    return Trajectory(
        question=question,
        question_event=1,
        observations=tuple(
            Observation(
                event=10 + index,
                index=index,
                tool=tool,
                arguments=json.dumps(arguments, ensure_ascii=False, separators=(",", ":")),
                text=text,
                ok=not text.startswith("error: "),
            )
            for index, (tool, arguments, text) in enumerate(calls)
        ),
    )


def _facts(attribute: str, entity: str, text: str) -> tuple[str, dict[str, str], str]:
    return "facts", {"attribute": attribute, "entity": entity}, text


def _calculator(expression: str, text: str) -> tuple[str, dict[str, str], str]:
    return "calculator", {"expression": expression}, text


PASSAGE = (
    "[1] bridges.md:1 # Tal Bridge Opened in 1873 by Mara Oduya. It is 412 m long.\n"
    "[2] bridges.md:6 # Ruvo Bridge Opened in 1901."
)
EPISODES: dict[str, Trajectory] = {
    "areas": _trajectory(
        "Which has the larger area, Kenya or Uganda, and by how much?",
        _facts("area", "Kenya", "580367 km2 [CIA World Factbook, 2023]"),
        _facts("area", "Uganda", "241038 km2 [CIA World Factbook, 2023]"),
        _calculator("580367-241038", "339329"),
    ),
    "product": _trajectory("A shop sells 47 boxes with 23 apples each. How many apples is that?", _calculator("23*47", "1081")),
    "quotient": _trajectory(
        "47 people share a bill of 1082 euros. What does each pay?", _calculator("1082/47", "1082/47 (about 23.0212765957)")
    ),
    "percent": _trajectory(
        "A coat costs 80 dollars. What is the price after a discount of 15%?",
        _calculator("0.15*80", "12"),
        _calculator("80-12", "68"),
    ),
    "bridge": _trajectory("When was the Tal Bridge opened and by whom?", ("search", {"query": "Tal Bridge opened"}, PASSAGE)),
    "iron": _trajectory(
        "At what temperature does iron melt, in Celsius?",
        _facts("melting point", "Iron", "1811 K [CRC]"),
        _facts("symbol", "Iron", "Fe [CRC]"),
        ("units", {"to": "C", "unit": "K", "value": "1811"}, "1537.85 C"),
    ),
    "capital": _trajectory("What is the capital of Brazil?", _facts("capital", "Brazil", "Brasília [CIA World Factbook]")),
    "unknown": _trajectory(
        "What is the area of Kenia?", _facts("area", "Kenia", "error: no entity 'Kenia'. Nearest: Kenya, Guinea")
    ),
    "usa": _trajectory(
        "How many people live in the United States of America?",
        _facts("population", "United States of America", "334914895 people [World Bank, 2023]"),
    ),
}


def example_answers() -> list[dict[str, Any]]:
    """Every line of ``answers.jsonl``: episode, verdict (accept or reject), text, claims as [text, evidence]."""
    lines = (Path(__file__).parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def answer_of(example: dict[str, Any]) -> Answer:
    """The example's answer."""
    return Answer(
        text=example["text"],
        claims=tuple(Claim(text=text, evidence=tuple(evidence)) for text, evidence in example.get("claims", ())),
    )
