"""Grounding: every number and every name of an answer is found in a result, in a call's arguments or in the question.

A claim that names evidence must find its numbers in those calls or the question. A number that stands alone on one side of a
true equation whose other numbers are grounded follows from them and counts as found; so do the parts of a true equation whose
value is grounded (``20*47 + 3*47 = 1081``) and constants such as 60 or 100 in a true equation.

An answer's text that states numbers needs at least one that comes from a result, or follows from one; numbers that repeat the
question or a call's arguments answer nothing alone. Sentences that decline (*could not*, *cannot*, *unable*) may repeat them.

A claim that names evidence must find its names in those calls; a name of the question will do where no other call has it.
"""

import re
from fractions import Fraction
from itertools import pairwise

from attrs import evolve, frozen

from k2core.interfaces import Answer, Finding, Trajectory, Verdict
from k2core_verifiers.common_words import MONTHS
from k2core_verifiers.equations import Equation, find_equations
from k2core_verifiers.names import Name, find_names, is_english, is_near_miss
from k2core_verifiers.quantities import CONVERSIONS, Number, find_number_words, find_numbers
from k2core_verifiers.sources import Source, events_with_name, events_with_number, is_in_a_result, sources_of

_LIST_MARK = re.compile(r"(?m)^\s*\(?\d{1,2}[.)](?=\s)")
_CALL_MARK = re.compile(r"\b(?:calls?|call numbers?|evidence)\s*:?\s*\[?#?\d+(?:(?:,| and|, and)\s*\d+)*\]?", re.I)
_STATED_WORD = re.compile(r"\b(?:is|are|was|were|equals|=)\s+$", re.I)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_DECLINES = re.compile(r"\b(?:could ?n[o'’]t|can ?no?['’]?t|unable|not able)\b", re.I)


@frozen(kw_only=True)
class GroundingVerifier:
    """Finds every number and name of an answer in what was observed."""

    name: str = "grounding"

    def verify(self, answer: Answer, trajectory: Trajectory) -> Verdict:
        """One finding per number and name, with the events it was found in.

        Hints: ``number 1082 is in no result``, ``number 1082 is not in call 0``, ``name Kenia is in no result``,
        ``name Kenya is not in call 1``, ``call 7 does not exist``.
        """
        sources = sources_of(trajectory)
        calls = frozenset(one.index for one in trajectory.observations)
        texts = [answer.text, *(claim.text for claim in answer.claims)]
        derived, from_results = _derived([equation for text in texts for equation in find_equations(text)], sources)
        findings = self._check(answer.text, None, sources, sources, calls, derived, ())
        findings = _unanswered(findings, _repeats(answer.text, calls, sources, from_results))
        for place, claim in enumerate(answer.claims):
            missing = [index for index in dict.fromkeys(claim.evidence) if index not in calls]
            findings += [
                Finding(
                    verifier=self.name,
                    subject=f"call {index}",
                    status="unsupported",
                    hint=f"call {index} does not exist",
                    claim=place,
                )
                for index in missing
            ]
            cited = tuple(index for index in dict.fromkeys(claim.evidence) if index in calls)
            own = [source for source in sources if source.index is None or source.index in cited] if cited else sources
            findings += self._check(claim.text, place, sources, own, calls, derived, cited)
        return Verdict(findings=tuple(findings))

    def _check(
        self,
        text: str,
        claim: int | None,
        sources: list[Source],
        own: list[Source],
        calls: frozenset[int],
        derived: dict[Fraction, tuple[int, ...]],
        cited: tuple[int, ...],
    ) -> list[Finding]:
        findings = []
        holding = [equation for equation in find_equations(text) if equation.status == "supported"]
        splits = [one for one in holding if all(events_with_number(number, own) for number in find_numbers(one.stated))]
        for number in _numbers(text, calls):
            events = events_with_number(number, own) or derived.get(number.value, ())
            is_found = bool(events) or number.value in derived or _is_inside(number, splits)
            is_found = is_found or (number.value in CONVERSIONS and _is_inside(number, holding))
            is_elsewhere = bool(cited and events_with_number(number, sources))
            hint = f"number {number.text} is {_place(cited if is_elsewhere else ())}"
            findings.append(self._finding(f"number {number.text}", is_found, hint, events, claim))
        english = is_english(text)
        for name in find_names(text):
            everywhere = _events_of_name(name, sources)
            events = _cited_events(name, everywhere, sources, own) if cited else everywhere
            if not events and not name.is_certain and not any(is_near_miss(name, source.words) for source in sources):
                continue
            hint = f"name {name.text} is {_place(cited if everywhere else ())}"
            finding = self._finding(f"name {name.text}", bool(events), hint, events, claim)
            if events or english or name.kind != "words":
                findings.append(finding)
            else:
                findings.append(self._unchecked(name.text, claim))
        return list({(finding.subject, finding.status): finding for finding in reversed(findings)}.values())[::-1]

    def _finding(self, subject: str, is_found: bool, hint: str, events: tuple[int, ...], claim: int | None) -> Finding:
        return Finding(
            verifier=self.name,
            subject=subject,
            status="supported" if is_found else "unsupported",
            hint="" if is_found else hint,
            events=events,
            claim=claim,
        )

    def _unchecked(self, name: str, claim: int | None) -> Finding:
        return Finding(verifier=self.name, subject=f"name {name}", status="unchecked", claim=claim)


def _place(cited: tuple[int, ...]) -> str:
    if not cited:
        return "in no result"
    return f"not in call{'s' if len(cited) > 1 else ''} {', '.join(map(str, cited))}"


def _events_of_name(name: Name, sources: list[Source]) -> tuple[int, ...]:
    events = events_with_name(name, sources)
    if not events and name.text.lower() in MONTHS:
        month = Fraction(MONTHS[name.text.lower()])
        events = tuple(source.event for source in sources if month in source.values)
    return events


def _cited_events(name: Name, everywhere: tuple[int, ...], sources: list[Source], own: list[Source]) -> tuple[int, ...]:
    """Events of the cited calls that have *name*; else the question's, where no other call has it."""
    events = _events_of_name(name, [source for source in own if source.index is not None])
    asked = {source.event for source in sources if source.index is None}
    return events or (everywhere if asked.issuperset(everywhere) else ())


def _repeats(text: str, calls: frozenset[int], sources: list[Source], from_results: frozenset[Fraction]) -> frozenset[str]:
    """Subjects of the numbers of *text* when none comes from a result; sentences that decline may repeat the question."""
    numbers = _numbers(text, calls)
    if any(number.value in from_results or is_in_a_result(number, sources) for number in numbers):
        return frozenset()
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    declining = [(start, end) for start, end in pairwise(ends) if _DECLINES.search(text, start, end)]
    return frozenset(
        f"number {number.text}" for number in numbers if not any(start <= number.start < end for start, end in declining)
    )


def _unanswered(findings: list[Finding], subjects: frozenset[str]) -> list[Finding]:
    """*findings* with those on *subjects* turned into ``number 47 is in no result``."""
    return [
        evolve(finding, status="unsupported", hint=f"{finding.subject} is in no result", events=())
        if finding.subject in subjects
        else finding
        for finding in findings
    ]


def _numbers(text: str, calls: frozenset[int]) -> list[Number]:
    """The numbers that state something: no list marks, no references to existing calls; words where they are the value."""
    blanked = _LIST_MARK.sub(lambda match: " " * len(match[0]), text)
    for match in _CALL_MARK.finditer(blanked):
        if all(int(index) in calls for index in re.findall(r"\d+", match[0])):
            blanked = blanked[: match.start()] + " " * len(match[0]) + blanked[match.end() :]
    stated = [
        word
        for word in find_number_words(blanked)
        if _STATED_WORD.search(blanked[: word.start]) and re.match(r"\s*(?:[.!?,;]|$)", blanked[word.end :])
    ]
    return sorted(find_numbers(blanked) + stated, key=lambda number: number.start)


def _derived(equations: list[Equation], sources: list[Source]) -> tuple[dict[Fraction, tuple[int, ...]], frozenset[Fraction]]:
    """Values of true equations whose operands are grounded (or follow from an earlier one).

    Returns:
        Each value with the operands' events, and those values that rest on at least one result.
    """
    derived: dict[Fraction, tuple[int, ...]] = {}
    from_results: set[Fraction] = set()
    for equation in equations:
        if equation.status != "supported":
            continue
        events: set[int] = set()
        operands = find_numbers(equation.expression)
        for operand in operands:
            found = events_with_number(operand, sources)
            if not found and operand.value not in derived and operand.value not in CONVERSIONS:
                break
            events.update(found or derived.get(operand.value, ()))
        else:
            rests_on_result = any(one.value in from_results or is_in_a_result(one, sources) for one in operands)
            for stated in find_numbers(equation.stated):
                derived.setdefault(stated.value, tuple(sorted(events)))
                if rests_on_result:
                    from_results.add(stated.value)
    return derived, frozenset(from_results)


def _is_inside(number: Number, equations: list[Equation]) -> bool:
    return any(equation.start <= number.start < equation.end for equation in equations)
