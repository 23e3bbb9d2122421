"""START HERE: every seam of k2core, as protocols and the records that cross them.

From the bottom up::

    Backend      probe, load a checkpoint           -> LoadedModel
    LoadedModel  forward(batch), fork, truncate     -> Step          token ids in, logits out; owns the cache memory
    MoEForward   route, experts                     -> Routing       the seam for conformance and for mixed placement
    Tokenizer    encode, decode                                      text <-> token ids
    ChatFormat   render, parser                                      messages <-> token ids
    ChatModel    generate(messages, tools, options) -> parts         all that the agent knows of a model
    Tool         a function with a JSON Schema and an effect class
    ToolRegistry declarations, call                 -> ToolResult
    Verifier     verify(answer, trajectory)         -> Verdict

Arrays across seams are NumPy on the CPU. Axes have fixed names: tokens, hidden, inner, experts, top_k, heads, vocab.
Async: `ChatModel.generate`. Either (a sync one goes to a worker thread with a deadline): `Tool`, `Verifier`. Sync, on the
engine's one thread: everything below `ChatModel`.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from attrs import field, frozen

from k2core.messages import Delta, Message, ToolCall, TurnEnd

Array = Any  # numpy.ndarray; not imported here so that listing things costs no numpy
Numerics = Literal["exact", "w4a16", "w4a8"]
Effect = Literal["pure", "read", "idempotent", "reversible", "external"]

# ── numerics ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@frozen(kw_only=True)
class Available:
    """A backend can work here."""

    device: str
    detail: str = ""


@frozen(kw_only=True)
class NotAvailable:
    """A backend cannot work here; `reason` names what is missing and what to do."""

    reason: str


@frozen(kw_only=True)
class Routing:
    """Which experts each token visits.

    Attributes:
        expert_ids: (tokens, top_k) int32, no duplicates within a row.
        weights: (tokens, top_k) float32, >= 0, normalised and scaled as the checkpoint's geometry says.
    """

    expert_ids: Array = field(eq=False)
    weights: Array = field(eq=False)


@frozen(kw_only=True)
class Want:
    """What a forward should return.

    Attributes:
        logits: ``"last"``: one row per sequence; ``"all"``: one row per new token; ``"none"``: no rows.
        routing: also each MoE layer's `Routing`.
        hidden: also the hidden state after the last norm, one row per new token.
    """

    logits: Literal["last", "all", "none"] = "last"
    routing: bool = False
    hidden: bool = False


@frozen(kw_only=True)
class SequenceInput:
    """New tokens of one sequence of a ragged batch.

    Attributes:
        handle: a live sequence of the model.
        token_ids: the ids to append, at least one.
    """

    handle: int
    token_ids: Sequence[int] = field(eq=False)


@frozen(kw_only=True)
class Step:
    """What a forward returned; rows follow the batch's order.

    Attributes:
        logits: (rows, vocab) float32; rows as `Want.logits` says.
        routing: one `Routing` per MoE layer over all new tokens, or None.
        hidden: (tokens, hidden) float32, or None.
    """

    logits: Array = field(eq=False)
    routing: tuple[Routing, ...] | None = field(default=None, eq=False)
    hidden: Array | None = field(default=None, eq=False)


class MoEForward(Protocol):
    """The routed experts of every MoE layer. Routing and experts are split on purpose.

    Routing is discrete: near-ties may flip between backends legitimately, so routing is compared tie-aware and experts are
    compared on the same routing.
    """

    def route(self, layer: int, x: Array) -> Routing:
        """Choose experts for normalised hidden states.

        Args:
            layer: index of the decoder layer (0-based; must be an MoE layer).
            x: (tokens, hidden) float32; unchanged.
        """
        ...

    def experts(self, layer: int, x: Array, routing: Routing) -> Array:
        """Weighted sum of the chosen experts, without the shared expert: (tokens, hidden) float32."""
        ...

    def forward(self, layer: int, x: Array) -> Array:
        """`experts` on `route`'s choice plus the shared expert: (tokens, hidden) float32."""
        ...


class LoadedModel(Protocol):
    """A checkpoint on a backend. Single-threaded: one engine thread calls it.

    Sequences are handles; the model owns their cache memory (the MLA latent: kv_lora_rank + rope values per token and layer,
    never expanded keys and values). A handle is valid from `new_sequence` or `fork` until `free`.

    Attributes:
        geometry: the checkpoint's geometry (`k2core.model.config.Geometry`).
        numerics: the rounding in force.
        batch_invariant: the same row gives the same bits whatever the threads, chunking, batch mates or prefix hits.
        fork_is_shared: a fork shares memory with its parent (else it copies).
        moe: the MoE seam.
    """

    geometry: Any
    numerics: Numerics
    batch_invariant: bool
    fork_is_shared: bool
    moe: MoEForward

    def new_sequence(self) -> int:
        """An empty sequence's handle."""
        ...

    def forward(self, batch: Sequence[SequenceInput], want: Want = ...) -> Step:
        """Append tokens to sequences and compute what *want* asks for.

        Raises:
            K2Error: an unknown handle, an id outside the vocabulary, an empty input, the same handle twice, or a sequence
                that would grow beyond the model's positions; nothing has changed then.
        """
        ...

    def length(self, handle: int) -> int:
        """Tokens in the sequence's cache."""
        ...

    def fork(self, handle: int, length: int) -> int:
        """A new sequence that holds the first *length* tokens; the parent is undisturbed."""
        ...

    def truncate(self, handle: int, length: int) -> None:
        """Forget everything after the first *length* tokens, as if never seen."""
        ...

    def free(self, handle: int) -> None:
        """Give the sequence's memory back; the handle is invalid afterwards."""
        ...

    def bytes_of(self, handle: int) -> int:
        """Cache bytes that freeing this handle would give back."""
        ...

    def info(self) -> Mapping[str, str]:
        """What a report should name: kernel path, threads, versions."""
        ...

    def close(self) -> None:
        """Give everything back; the model is unusable afterwards."""
        ...


class Backend(Protocol):
    """A way to run checkpoints on some hardware."""

    name: str

    def probe(self) -> Available | NotAvailable:
        """Whether it can work here. Must be cheap and must not import the heavy library."""
        ...

    def load(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> LoadedModel:
        """Load a checkpoint folder in the Hugging Face layout.

        Args:
            checkpoint: the folder with config.json and safetensors files.
            device: as `probe` names it.
            numerics: see `Numerics`.
            progress: called with (what, done, total) while something slow happens, e.g. compiling kernels.

        Raises:
            Unavailable: the backend cannot work here, or not with this device or numerics.
            CheckpointError: the folder is malformed.
        """
        ...


# ── language ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Tokenizer(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    control: Mapping[str, int]  # control token text -> id

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Token ids of *text*. With *control* off (the default) a literal ``<|im_end|>`` is plain text."""
        ...

    def decode(self, token_ids: Sequence[int], *, control: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. With *control* off, control tokens are left out."""
        ...

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The exact bytes of ids, control tokens as their text."""
        ...


class TurnParser(Protocol):
    """Incremental parser of one model turn, from the first id after the assistant header."""

    done: bool  # the end marker was seen

    def feed(self, token_ids: Sequence[int]) -> list[Delta]:
        """Deltas that became certain with these ids."""
        ...

    def finish(self) -> tuple[list[Delta], Message]:
        """Flush what is held back and return the whole turn; its `token_ids` are all ids fed."""
        ...


class ChatFormat(Protocol):
    """Messages to token ids and one model turn back to parts."""

    stop_ids: tuple[int, ...]

    def normalise(self, messages: Sequence[Message]) -> list[Message]:
        """The same conversation in the form that `render` sees: default system message, call ids renamed, history rule
        applied. Idempotent.

        Raises:
            FormatError: a tool message without a call, or a role out of place; names the message's index.
        """
        ...

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, generate: bool = True
    ) -> list[int]:
        """Token ids of the conversation; with *generate*, the header of the next assistant turn follows.

        Args:
            messages: the conversation; `Message.token_ids` of turns of the current chain are used verbatim.
            tools: declarations in OpenAI's form, ``{"type": "function", "function": {...}}``.
            generate: whether to open an assistant turn.
        """
        ...

    def parser(self, *, next_call_index: int = 0, tools: Sequence[str] = ()) -> TurnParser:
        """A parser for one turn.

        Args:
            next_call_index: number that the turn's first call should carry.
            tools: declared names; a call whose id lost its name is resolved by them.
        """
        ...


@frozen(kw_only=True)
class GenerateOptions:
    """How to generate one turn.

    Attributes:
        max_tokens: the most tokens to generate, thinking included.
        temperature: 0 is greedy.
        top_p: nucleus; 1 is off.
        min_p: least probability relative to the best; 0 is off.
        seed: of the counter-based random numbers.
        path: which of several parallel trajectories this is; part of the counter.
        max_reasoning_tokens: thinking beyond this many tokens stops the turn with ``length``; None is no limit.
    """

    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    path: int = 0
    max_reasoning_tokens: int | None = None


@frozen(kw_only=True)
class ModelProfile:
    """What the agent should know of a model.

    Attributes:
        system: the system text that the model expects; None leaves the agent's own.
        context: tokens of context the agent may fill.
        temperature: recommended temperature.
        description: one line for listings.
    """

    context: int
    system: str | None = None
    temperature: float = 1.0
    description: str = ""


class ChatModel(Protocol):
    """All that the agent knows of a model: the engine over a loaded model, a remote endpoint, or a script."""

    name: str
    profile: ModelProfile

    def generate(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: GenerateOptions
    ) -> AsyncIterator[Delta | TurnEnd]:
        """Stream one turn; the last part is a `TurnEnd`. Closing the iterator early cancels."""
        ...

    def identity(self) -> Mapping[str, str]:
        """What the journal records: model, backend, numerics, weights hash, kernel path."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


# ── tools ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@frozen(kw_only=True)
class Tool:
    """A function the model may call.

    Attributes:
        name: what the model writes; ``[A-Za-z_][A-Za-z0-9_-]{0,63}``.
        description: one line for the model.
        parameters: JSON Schema of the arguments object.
        effect: ``pure`` (same arguments, same result; may be cached), ``read`` (no effect, the result may change),
            ``idempotent`` (may be repeated with the same key), ``reversible`` (names its undo), ``external`` (never again
            unasked; the default).
        function: called with the validated arguments as keywords; returns text, or anything that is written as JSON.
        timeout_s: deadline of one call.
        control: handled by the loop itself (`answer`, `note`).
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = field(eq=False)
    function: Callable[..., Any] = field(eq=False)
    effect: Effect = "external"
    timeout_s: float = 10.0
    control: bool = False

    def declaration(self) -> dict[str, Any]:
        """The tool in OpenAI's form, as it goes into a prompt."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": self.parameters},
        }


@frozen(kw_only=True)
class ToolContext:
    """What a tool's factory may ask for.

    Attributes:
        documents: folder given with ``--docs``, or None.
        data: k2core's folder for data of this user; may not exist yet.
    """

    documents: Path | None = None
    data: Path | None = None


@frozen(kw_only=True)
class ToolResult:
    """What came back from a call.

    Attributes:
        text: as the model sees it; failures start with ``error: ``.
        ok: whether the tool ran and returned.
        duration_ms: wall time.
        full_bytes: size before truncation, in bytes of UTF-8.
        truncated: whether the text was cut.
    """

    text: str
    ok: bool
    duration_ms: float = 0.0
    full_bytes: int = 0
    truncated: bool = False


class ToolRegistry(Protocol):
    """The tools of one session."""

    def names(self) -> tuple[str, ...]:
        """Sorted names."""
        ...

    def get(self, name: str) -> Tool:
        """The tool.

        Raises:
            UnknownName: with the known names and the nearest.
        """
        ...

    def declarations(self) -> list[dict[str, Any]]:
        """All tools in OpenAI's form, in name order."""
        ...

    async def call(self, call: ToolCall, *, most_s: float | None = None) -> ToolResult:
        """Validate and run, within *most_s* seconds; never raises for what the model or the tool did wrong."""
        ...


# ── verification ────────────────────────────────────────────────────────────────────────────────────────────────────────


@frozen(kw_only=True)
class Claim:
    """One statement of an answer with the calls that support it.

    Attributes:
        text: the statement.
        evidence: call indices (the IDX of ``functions.NAME:IDX``).
    """

    text: str
    evidence: tuple[int, ...] = ()


@frozen(kw_only=True)
class Answer:
    """What the model wants to conclude with."""

    text: str
    claims: tuple[Claim, ...] = ()


@frozen(kw_only=True)
class Observation:
    """A tool result that a verifier may use as evidence.

    Attributes:
        event: sequence number of the journal's event.
        index: the call's IDX.
        tool: the tool's name.
        arguments: JSON text of the arguments.
        text: what the model saw.
        ok: whether the call succeeded.
    """

    event: int
    index: int
    tool: str
    arguments: str
    text: str
    ok: bool


@frozen(kw_only=True)
class Trajectory:
    """What happened before the answer.

    Attributes:
        question: the user's text of this turn and of earlier turns, joined.
        question_event: the journal's event of the question.
        observations: tool results in order, those of earlier turns included.
    """

    question: str
    question_event: int
    observations: tuple[Observation, ...] = ()


Status = Literal["supported", "unsupported", "refuted", "unchecked"]


@frozen(kw_only=True)
class Finding:
    """What a verifier says about one claim or one detail of the answer.

    Attributes:
        verifier: who says so.
        subject: the number, name or equation looked at.
        status: ``supported`` and ``unchecked`` do not block an answer; ``unsupported`` and ``refuted`` do.
        hint: for the model, e.g. ``number 1082 is in no result``; empty when nothing is wrong.
        events: the journal's events it rests on.
        claim: index into `Answer.claims`, None for the answer's text.
    """

    verifier: str
    subject: str
    status: Status
    hint: str = ""
    events: tuple[int, ...] = ()
    claim: int | None = None


@frozen(kw_only=True)
class Verdict:
    """All findings on an answer."""

    findings: tuple[Finding, ...] = ()

    @property
    def accepted(self) -> bool:
        """No finding blocks the answer."""
        return not self.blocking

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """Findings that block, each hint once."""
        seen: dict[str, Finding] = {}
        for finding in self.findings:
            if finding.status in ("unsupported", "refuted"):
                seen.setdefault(finding.hint, finding)
        return tuple(seen.values())

    def render(self) -> str:
        """The result of the `answer` tool as the model sees it: ``accepted`` or ``rejected: …; …``."""
        return "accepted" if self.accepted else "rejected: " + "; ".join(finding.hint for finding in self.blocking)


@runtime_checkable
class Verifier(Protocol):
    """Checks an answer against what was observed."""

    name: str

    def verify(self, answer: Answer, trajectory: Trajectory) -> Verdict:
        """Findings on *answer*; sync or async. Must not call the model."""
        ...
