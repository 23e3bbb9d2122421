"""What a perfect agent does: policies as coroutines that yield steps and receive results.

Every comparison is written out before its verdict, failures are counted, and a result is believed only after its inverse
gave back an operand.
"""

from collections.abc import Generator, Sequence

from attrs import frozen

TOOL_FAILS = "I could not get an answer because the tool keeps failing."
CHECK_FAILS = "I could not get a result that passes the check."
DECLINE = "I cannot answer this with my tools."
FAILURES = 4
WRONG = 4


@frozen
class Step:
    """One assistant message: its thinking and its one call. ``weight`` is the loss weight of its tokens."""

    think: str
    tool: str
    arguments: dict[str, object]
    weight: int = 1


@frozen
class Returned:
    """A result together with its call number."""

    index: int
    text: str


@frozen
class Value:
    """A checked value: what it is, the calls that support it, and the thought that follows it."""

    text: str
    shown: str
    evidence: tuple[int, ...]
    think: str


@frozen
class Stopped:
    """The oracle gave up: the last thought and the answer that says so."""

    think: str
    answer: str


Policy = Generator[Step, Returned, Step]
Part = Generator[Step, Returned, "Value | Stopped"]


def final(think: str, text: str, claims: Sequence[tuple[Sequence[int], str]] = (), weight: int = 2) -> Step:
    """The answer call; each claim is (call numbers, text)."""
    listed = [{"evidence": list(evidence), "text": claim} for evidence, claim in claims]
    return Step(think, "answer", {"claims": listed, "text": text}, weight)


def stop(stopped: Stopped) -> Step:
    """The answer call that says why there is no answer."""
    return final(stopped.think, stopped.answer)


def is_failure(text: str) -> bool:
    """Whether a result says that the tool may work when it is called again."""
    return text.startswith(("error: timed out", "error: busy"))


def persist(step: Step, what: str) -> Generator[Step, Returned, "Returned | Stopped"]:
    """Call, and call again while the tool fails, at most FAILURES times."""
    returned = yield step
    failures = 0
    while is_failure(returned.text):
        failures += 1
        if failures == FAILURES:
            return Stopped(f"Failure {failures}. Stop.", TOOL_FAILS)
        returned = yield Step(f"Failure {failures}. Try again: {what}.", step.tool, step.arguments)
    return returned


def compared(left: str, right: str) -> tuple[str, bool]:
    """Both values written out character by character up to the first difference, and whether they are the same."""
    written: list[str] = []
    for place in range(max(len(left), len(right))):
        first = left[place] if place < len(left) else "_"
        second = right[place] if place < len(right) else "_"
        if first != second:
            return "".join(written) + f"{first}|{second}# differ", False
        written.append(f"{first}|{second}=")
    return "".join(written)[:-1] + " same", True


def computed(think: str, expression: str, inverse: str, want: str, weight: int) -> Part:
    """Compute an expression, check the result with its inverse, and compute again when the check differs.

    Args:
        inverse: an expression with ``R`` where the result stands; it must give ``want``.
    """
    step = Step(think, "calculator", {"expression": expression}, weight)
    for count in range(1, WRONG + 1):
        result = yield from persist(step, expression)
        if isinstance(result, Stopped):
            return result
        value = result.text.split(" ")[0]
        check = inverse.replace("R", value)
        proof = yield from persist(
            Step(f"Got {value}. Check {check}, want {want}.", "calculator", {"expression": check}), check
        )
        if isinstance(proof, Stopped):
            return proof
        got = proof.text.split(" ")[0]
        written, same = compared(got, want)
        verdict = f"Got {got}, want {want}: {written}."
        if same:
            return Value(value, result.text, (result.index, proof.index), f"{verdict} Right.")
        if count < WRONG:
            step = Step(f"{verdict} Wrong {count}, compute again: {expression}.", "calculator", {"expression": expression})
    return Stopped(f"{verdict} Wrong {count}. Stop.", CHECK_FAILS)
