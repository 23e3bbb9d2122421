"""START HERE: every seam of k2core, as protocols and the records that cross them. Import them from here.

From the bottom up::

    k2core.numerics   Backend      probe, load a checkpoint           -> LoadedModel
                      LoadedModel  forward(batch), fork, truncate     -> Step          token ids in, logits out
                      MoEForward   route, experts                     -> Routing       conformance and mixed placement
                      RoutedExperts experts alone, maybe another backend's
                      Warmup       what a backend may prepare ahead
                      Needs        what a backend may tell of memory
    k2core.language   Tokenizer    encode, decode                                      text <-> token ids
                      ChatFormat   render, parser                                      messages <-> token ids
                      ChatModel    generate(messages, tools, options) -> parts         all that the agent knows of a model
    k2core.calls      Tool         a function with a JSON Schema and an effect class
                      ToolRegistry declarations, call                 -> ToolResult
    k2core.answers    Verifier     verify(answer, trajectory)         -> Verdict
    k2core.guards     guards       before_call(call), and more hooks  -> Refusal, AskFirst, a change, or None
    k2core.memory     Memory       make_room(view, ask)               -> Room            when the context is nearly full

Arrays across seams are NumPy on the CPU. Axes have fixed names: tokens, hidden, inner, experts, top_k, heads, vocab.
Async: `ChatModel.generate`, `Memory.make_room`. Either (a sync one goes to a worker thread with a deadline): `Tool`,
`Verifier`, guards. Sync, on the engine's one thread: everything below `ChatModel`.
"""

from k2core.answers import Answer, Claim, Finding, Observation, Status, Trajectory, Verdict, Verifier
from k2core.calls import CallContext, Effect, PastCall, Tool, ToolContext, ToolOutput, ToolRegistry, ToolResult, current_call
from k2core.guards import AskFirst, ChangedArguments, ChangedResult, GuardedCall, GuardedStep, Refusal
from k2core.language import ChatFormat, ChatModel, GenerateOptions, ModelProfile, Prices, Tokenizer, TurnParser
from k2core.memory import MadeCall, Memory, MemoryView, Room, Shown
from k2core.numerics import (
    Array,
    Available,
    Backend,
    CacheMemory,
    LoadedModel,
    MoEForward,
    Needs,
    NotAvailable,
    Numerics,
    Progress,
    RoutedExperts,
    Routing,
    SequenceInput,
    Step,
    Want,
    Warmup,
)  # fmt: skip

__all__ = [
    "Answer", "Array", "AskFirst", "Available", "Backend", "CacheMemory", "CallContext", "ChangedArguments", "ChangedResult",
    "ChatFormat", "ChatModel", "Claim", "Effect", "Finding", "GenerateOptions", "GuardedCall", "GuardedStep", "LoadedModel",
    "MadeCall", "Memory", "MemoryView", "MoEForward", "ModelProfile", "Needs", "NotAvailable", "Numerics", "Observation",
    "PastCall", "Prices", "Progress", "Refusal", "Room", "RoutedExperts", "Routing", "SequenceInput", "Shown", "Status", "Step",
    "Tokenizer", "Tool", "ToolContext", "ToolOutput", "ToolRegistry", "ToolResult", "Trajectory", "TurnParser", "Verdict",
    "Verifier", "Want", "Warmup", "current_call",
]  # fmt: skip
