"""Events as people read them: live while a question is worked on, and from the journal afterwards."""

import json
import re
from collections.abc import Mapping, Sequence

from attrs import define, field

from k2core.agent.approving import exact, visible
from k2core.agent.control import ANSWER
from k2core.cli.screen import Screen, Spans
from k2core.cli.text import arguments_text, counted, cut, joined, one_line, to_json
from k2core.events import (
    AnswerGiven,
    BudgetReached,
    CallDecided,
    DecisionNeeded,
    Event,
    GuardActed,
    HypothesisStated,
    LimitsChanged,
    Live,
    MessageAdded,
    ModelSwitched,
    NoteKept,
    Partial,
    PathChosen,
    PathEnded,
    PlanMade,
    Recalled,
    ResultsHidden,
    RunEnded,
    RunForked,
    RunResumed,
    RunStarted,
    Stalled,
    StatusLine,
    StepsLeftOut,
    Stored,
    Swapped,
    ToolAgain,
    ToolBegun,
    ToolIntent,
    ToolReturned,
    TurnEnded,
    UnknownEvent,
    VerdictGiven,
    Warned,
)
from k2core.interfaces import Finding
from k2core.messages import ContentDelta, ReasoningDelta, Usage

_HASH = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]+")
_MARKS = {
    "supported": ("ok", "green"),
    "unchecked": ("unchecked", "dim"),
    "unsupported": ("wrong", "red"),
    "refuted": ("wrong", "red"),
}
_STEPS = {
    "todo": ("[ ]", "dim"),
    "doing": ("[>]", "cyan"),
    "done": ("[x]", "green"),
    "failed": ("[!]", "red"),
    "dropped": ("[-]", "dim"),
}
STATUS_STYLE = {
    "answered": "green",
    "declined": "yellow",
    "unverified": "red",
    "partial": "yellow",
    "failed": "red",
    "cancelled": "yellow",
    "waiting": "yellow",
}


@define(kw_only=True)
class Display:
    """Shows a run's events on a screen.

    Attributes:
        screen: where to.
        reasoning: whether thinking is shown.
        whole: nothing is cut, and every event is shown with its number (`k2 runs show`).
    """

    screen: Screen
    reasoning: bool = True
    whole: bool = False
    _streamed: bool = field(default=False, init=False)
    _calls: dict[int, str] = field(factory=dict, init=False)  # event of a result -> what was called
    _indices: dict[int, int] = field(factory=dict, init=False)  # event of a result -> the call's number
    _results: dict[int, str] = field(factory=dict, init=False)  # the call's number -> what came back
    _running: str = field(default="", init=False)  # the tool whose result is awaited
    _answer: str = field(default="", init=False)  # the text of the newest answer

    def show(self, item: Stored | Live) -> None:
        """Show one item of the agent's stream, or of the journal."""
        if isinstance(item, Live):
            self._live(item)
            return
        self.screen.status(None)
        self._event(item.sequence, item.event)

    def _live(self, item: Live) -> None:
        delta = item.delta
        if isinstance(delta, StatusLine):
            self.screen.status(delta)
            return
        if isinstance(delta, ReasoningDelta) and self.reasoning:
            self._streamed = self.screen.stream("think", delta.text) or self._streamed
        elif isinstance(delta, ContentDelta):
            self.screen.stream("draft", delta.text)  # it is shown again, checked, as the answer

    def _event(self, sequence: int, event: Event) -> None:
        if isinstance(event, TurnEnded):
            self._turn(sequence, event)
        elif isinstance(event, ToolIntent):
            limit = 100_000 if self.whole else 300
            text = one_line(_asked(event, self.whole), limit)
            self._calls[event.index], self._running = f"{event.name} {text}", event.name
            self._answer = _answer_of(event) or self._answer
            self._block(sequence, f"call {event.index}", [(event.name, "cyan"), (f" {text}", "")], "cyan")
        elif isinstance(event, ToolReturned):
            self._returned(sequence, event)
        elif isinstance(event, VerdictGiven):
            self._verdict(sequence, event)
        elif isinstance(event, BudgetReached):
            what = event.which.replace("_", " ")
            near = "nearly " if event.near else ""
            line = f"{event.limit:g} {what.removesuffix('s') if event.limit == 1 else what} {near}used up"
            self._block(sequence, "budget", [(line, "yellow")], "yellow")
        elif isinstance(event, Warned):
            self._block(sequence, "warning", [(event.text, "yellow")], "yellow")
        elif isinstance(event, NoteKept):
            self._block(sequence, "note", [(self._cut(event.text), "")], "cyan")
        elif isinstance(event, ResultsHidden):
            line = f"{counted(len(event.calls), 'old result')}, for room in the model's context"
            self._room(sequence, "hidden", line, event)
        elif isinstance(event, StepsLeftOut):
            line = f"steps up to call {event.through}, for room in the model's context"
            self._room(sequence, "left out", line, event)
        elif isinstance(event, Recalled):
            line = f"the result of call {event.call}, {counted(event.characters, 'character')}"
            self._block(sequence, "recall", [(line, "dim")], "dim")
        elif isinstance(event, Swapped):
            told = "" if event.same_prompt else "; it waited for this question, whose prompt begins anew"
            line = f"{event.what} {event.name} is carried out by {event.new} from here on (before: {event.old}){told}"
            self._block(sequence, "swap", [(line, "")], "bold")
        elif isinstance(event, PathEnded):
            told = one_line(event.text, 200) or "no answer"
            spans = [(f"{event.status} ", STATUS_STYLE.get(event.status, "")), (told, ""), (f"  {event.run}", "dim")]
            self._block(sequence, f"path {event.path}", spans, "cyan")
        elif isinstance(event, PathChosen):
            others = f", and {counted(len(event.agreeing), 'other')} agree" if event.agreeing else ""
            self._block(sequence, "chosen", [(f"path {event.path}, by {event.why}{others}", "")], "cyan")
        elif isinstance(event, PlanMade):
            reason = f"  because {event.reason}" if event.reason else ""
            self._block(sequence, "plan", [(f"{counted(len(event.steps), 'step')}{reason}", "dim")], "cyan")
            for number, step in enumerate(event.steps, start=1):
                mark, style = _STEPS[step.status]
                after = f"  after {', '.join(map(str, step.after))}" if step.after and self.whole else ""
                self.screen.block("", [(f"{mark} {number} ", style), (one_line(step.text, 200), ""), (after, "dim")])
        elif isinstance(event, HypothesisStated):
            told = f"{event.number} {event.status}: {one_line(event.text, 200)}"
            why = f"  {one_line(event.reason, 200)}" if event.reason else ""
            self._block(sequence, "suppose", [(told, ""), (why, "dim")], "cyan")
        elif isinstance(event, Stalled):
            first, last = (event.calls or (0,))[0], (event.calls or (0,))[-1]
            done = {
                "steer": f"{event.tool or 'the same call'} may not be called in the next turn",
                "roll-back": "they are taken out of the conversation",
                "stop": "the model is to conclude",
            }[event.action]
            self._block(sequence, "stalled", [(f"calls {first} to {last} brought nothing new: {done}", "yellow")], "yellow")
        elif isinstance(event, LimitsChanged):
            self._block(sequence, "budget", [(f"from here on {_limits(event.limits)}", "yellow")], "yellow")
        elif isinstance(event, ToolAgain):
            self._block(sequence, f"again {event.index}", [(f"attempt {event.attempt}: {event.why}", "yellow")], "yellow")
        elif isinstance(event, ToolBegun):
            self._block(sequence, f"begun {event.index}", [("as approved", "")], "yellow")
        elif isinstance(event, DecisionNeeded):
            self._needed(sequence, event)
        elif isinstance(event, GuardActed):
            spans = [(told_guard(event), "yellow" if event.action == "failed" else ""), (_change(event, self.whole), "dim")]
            self._block(sequence, "guard", spans, "yellow")
        elif isinstance(event, CallDecided):
            told = f": {self._cut(event.text)}" if event.text and event.decision in ("happened", "approve", "deny") else ""
            self._block(sequence, f"decided {event.index}", [(f"{event.decision}, by {event.by}{told}", "")], "yellow")
        elif self.whole:
            self._of_the_log(sequence, event)
        elif isinstance(event, MessageAdded) and event.name == "framework":
            self._block(sequence, "told", [(self._cut(event.content), "")], "yellow")

    def _room(self, sequence: int, label: str, line: str, event: ResultsHidden | StepsLeftOut) -> None:
        """What was taken from the model's context, and what stands for it."""
        kept = "\n".join([*event.pinned, *([event.text] if event.text else [])])
        self._block(sequence, label, [(line, "dim"), (f"\n{self._cut(kept)}" if kept else "", "")], "dim")

    def _needed(self, sequence: int, event: DecisionNeeded) -> None:
        """What is to be decided; of what is to be approved, all of it, and nothing of it hidden."""
        label = f"{'approve' if 'approve' in event.options else 'decide'} {event.index}"
        spans = [(event.why, "yellow")]
        if event.about == "answer":
            spans.insert(0, (f"{visible(self._answer)}\n", ""))
        elif event.about == "call" and event.arguments:
            name = self._calls.get(event.index, "").partition(" ")[0]
            spans = [(f"{name} ", "cyan"), (f"{exact(event.arguments)}\n", ""), *spans]
        self._block(sequence, label, spans, "yellow")

    def _turn(self, sequence: int, event: TurnEnded) -> None:
        self._answer = event.content.strip()
        thinking = (event.reasoning or "").strip()
        if thinking and self.reasoning and not self._streamed:
            self._block(sequence, "think", [(thinking if self.whole else self._cut(thinking, 12), "dim")], "dim")
        self._streamed = False
        if self.whole and event.content.strip():
            self._block(sequence, "content", [(event.content.strip(), "")])
        if self.whole and event.usage.prompt_tokens:
            self._block(sequence, "turn", [(joined(_accounts(event.usage), self.screen.width), "dim")], "dim")
        if event.finish_reason in ("length", "cancelled"):
            what = "cut at its limit of tokens" if event.finish_reason == "length" else "cancelled"
            self._block(sequence, "turn", [(what, "yellow")], "yellow")

    def printed(self, lines: Sequence[str]) -> None:
        """Show what a tool, or something else in this process, printed; it is no result."""
        self.screen.status(None)
        whose = f"{self._running}: " if self._running else ""
        self.screen.block("printed", [(whose + "\n".join(one_line(line, 200) for line in lines), "dim")], "dim")

    def _returned(self, sequence: int, event: ToolReturned) -> None:
        self._running = ""
        self._indices[sequence], self._results[event.index] = event.index, event.text
        if event.name == ANSWER and not self.whole and (event.ok or event.text.startswith("rejected: ")):
            return  # the verdict has said so
        spans = [(self._cut(event.text), "" if event.ok else "red")]
        if event.duration_ms >= 1000:
            spans.append((f"  ({event.duration_ms / 1000:.1f} s)", "dim"))
        if event.truncated and self.whole:
            spans.append((f"\n({event.full_bytes:,} bytes in all)", "dim"))
        self._block(sequence, f"result {event.index}", spans, "green" if event.ok else "red")

    def _verdict(self, sequence: int, event: VerdictGiven) -> None:
        word = "accepted" if event.accepted else "rejected"
        again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
        style = "green" if event.accepted else "red"
        self._block(sequence, "verdict", [(word + again, f"bold {style}")], style)
        for finding in unique(event.findings):
            self.screen.block("", self._finding(finding))

    def _finding(self, finding: Finding) -> Spans:
        word, style = _MARKS[finding.status]
        calls = [f"call {self._indices[event]}" for event in finding.events if event in self._indices]
        text = " ".join(part for part in (one_line(finding.subject, 100), one_line(finding.hint, 300)) if part)
        if finding.hint and finding.subject and finding.subject in finding.hint:
            text = one_line(finding.hint, 300)
        source = f" in {', '.join(calls)}" if calls else ""
        return [(f"{word} ", style), (text or finding.verifier, ""), (f"{source}  [{finding.verifier}]", "dim")]

    def _of_the_log(self, sequence: int, event: Event) -> None:
        if isinstance(event, RunStarted):
            first = [name for name in ("model", "backend", "numerics") if event.model.get(name)]
            rest = sorted(name for name in event.model if name not in first and event.model[name])
            parts = [event.model[name] for name in first] + [f"{name} {event.model[name]}" for name in rest]
            parts = [_HASH.sub(r"\1…", part) for part in parts]  # --json has it whole
            shown = joined([one_line(part, 100) for part in (*parts, f"seed {event.seed}")], self.screen.width)
            self._block(sequence, "model", [(shown, "")], "bold")
            self.screen.block("", [("tools " + ", ".join(event.tools), "dim")])
        elif isinstance(event, MessageAdded):
            label = {"user": "question", "assistant": "message"}.get(event.role, event.name or event.role)
            # the framework's assistant message says what the answer's event says, which follows
            content = one_line(event.content, 60) if event.role == "assistant" else event.content
            self._block(sequence, label, [(content, "" if event.role == "user" else "dim")], "bold")
        elif isinstance(event, AnswerGiven):
            self._block(sequence, "answer", [(event.text, "bold")], STATUS_STYLE[event.status])
            self.answer_details(event)
        elif isinstance(event, RunEnded):
            cost = f"{counted(event.tokens, 'token')}, {counted(event.calls, 'call')}, {event.seconds:.2f} s"
            line = f"{event.status}: {cost}"
            self._block(sequence, "end", [(line, STATUS_STYLE.get(event.status, ""))], "bold")
        elif isinstance(event, ModelSwitched):
            parts = [event.model[name] for name in ("model", "backend", "numerics", "switch") if event.model.get(name)]
            self._block(sequence, "model", [(joined(parts, self.screen.width), "")], "bold")
        elif isinstance(event, RunResumed):
            self._block(sequence, "resumed", [(_limits(event.limits), "dim")], "bold")
        elif isinstance(event, RunForked):
            told = [f"all before is that of {event.run} up to event {event.sequence}"]
            told += [] if event.replaced is None else [f"the result of call {event.replaced} given by hand"]
            told += [] if event.seed is None else [f"seed {event.seed}"]
            self._block(sequence, "forked", [(joined(told, self.screen.width), "")], "bold")
        elif isinstance(event, UnknownEvent):
            self._block(sequence, event.kind, [("written by another version of k2core; see --json", "dim")], "dim")

    def answer_details(self, answer: AnswerGiven) -> None:
        """Why it is not simply answered, and each claim with the calls that support it."""
        if answer.status != "answered":
            style = STATUS_STYLE[answer.status]
            self._block(None, answer.status, [(answer.reason or "no reason is known", style)], f"bold {style}")
        if answer.partial is not None:
            self._partial(answer.partial)
        for number, claim in enumerate(answer.claims):
            found = [event for one in answer.evidence if one.claim == number for event in one.events]
            calls = dict.fromkeys([*claim.evidence, *(self._indices[event] for event in found if event in self._indices)])
            self._block(None, "evidence" if number == 0 else "", [(one_line(claim.text, 300), "")], "bold")
            for index in calls:
                if index in self._calls:
                    asked = f"call {index}: {one_line(self._calls[index], 160)} → "
                    self.screen.block("", [(asked, "dim"), (self._result(index), "")])
                else:
                    self.screen.block("", [(f"call {index}: there is no such call", "red")])
            if not calls:
                self.screen.block("", [("no call is named for it", "dim")])

    def _partial(self, partial: Partial) -> None:
        """What nothing supports and what was not tried; what is known stands in the answer and with its evidence."""
        for label, lines in (("unverified", partial.unverified), ("not tried", partial.not_attempted)):
            for number, line in enumerate(lines):
                self._block(None, label if number == 0 else "", [(one_line(line, 300), "yellow")], "yellow")

    def remember(self, events: Sequence[Stored]) -> None:
        """Know calls and results of *events* without showing them: earlier questions of a continued run."""
        for stored in events:
            if isinstance(stored.event, ToolIntent):
                self._calls[stored.event.index] = f"{stored.event.name} {one_line(arguments_text(stored.event.arguments), 300)}"
            elif isinstance(stored.event, ToolReturned):
                self._indices[stored.sequence] = stored.event.index
                self._results[stored.event.index] = stored.event.text

    def _result(self, index: int) -> str:
        return one_line(self._results.get(index, "no result came back"), 200)

    def _cut(self, text: str, lines: int = 8) -> str:
        return text if self.whole else cut(text, lines, 100 * lines)

    def _block(self, sequence: int | None, label: str, spans: Spans, style: str = "") -> None:
        self.screen.block(f"{sequence or '':>3}  {label}" if self.whole else label, spans, style)


def _limits(limits: Mapping[str, float | None]) -> str:
    told = [f"{value:g} {name.replace('_', ' ')}" for name, value in limits.items() if value is not None]
    return f"budgets: {', '.join(told) or 'none'}"


def _accounts(usage: Usage) -> list[str]:
    """What a turn cost, in parts."""
    rate = usage.completion_tokens / usage.decode_seconds if usage.decode_seconds else 0.0
    times = {"queued": usage.queued_seconds, "prefill": usage.prefill_seconds, "masks": usage.mask_seconds}
    return [
        f"prompt {usage.prompt_tokens:,} ({100 * usage.hit_rate:.0f} % cached)",
        counted(usage.completion_tokens, "token") + (f", {rate:,.0f}/s" if rate else ""),
        *([f"{usage.accepted_tokens} of {usage.drafted_tokens} guessed"] if usage.drafted_tokens else []),
        *(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items() if seconds >= 5e-5),
    ]


def _asked(event: ToolIntent, whole: bool) -> str:
    """The arguments; of an answer its text and the number of its claims, which the verdict and the end tell in full."""
    if event.name == ANSWER and not whole:
        try:
            arguments = json.loads(event.arguments)
            claims = len(arguments["claims"])
            return f"{to_json(str(arguments['text']))} ({counted(claims, 'claim')})"
        except (ValueError, RecursionError, LookupError, TypeError):
            pass  # the registry tells the model what is wrong with it; it is shown as it was written
    return arguments_text(event.arguments)


def _answer_of(event: ToolIntent) -> str:
    """The text of a call of `answer`, whole."""
    try:
        return str(json.loads(event.arguments)["text"]) if event.name == ANSWER else ""
    except (ValueError, RecursionError, LookupError, TypeError):
        return event.arguments


def told_guard(event: GuardActed) -> str:
    """What a guard did, in words."""
    what = {"before_call": "call", "after_call": "the result of call", "on_call_error": "the error of call"}.get(event.hook)
    about = f"{what} {event.index}" if what is not None else event.hook.replace("_", " ")
    done = {"refused": "refused", "asked": "asks for approval of", "changed": "changed", "failed": "failed at"}[event.action]
    return f"{event.guard or 'approval'} {done} {about}: {event.why}"


def _change(event: GuardActed, whole: bool) -> str:
    """What became of what, where a guard changed something and everything is shown."""
    return f"\nbefore: {visible(event.before)}\nafter:  {visible(event.after)}" if whole and event.action == "changed" else ""


def unique(findings: Sequence[Finding]) -> list[Finding]:
    """Each finding once, what blocks the answer first."""
    seen: dict[tuple[str, str, str], Finding] = {}
    for finding in sorted(findings, key=lambda one: one.status not in ("refuted", "unsupported")):
        seen.setdefault((finding.status, finding.subject, finding.hint), finding)
    return list(seen.values())
