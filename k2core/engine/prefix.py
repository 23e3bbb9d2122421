"""Which tokens need no computing: a tree of the live sequences, and the longest beginning that a prompt shares with one.

A node is a run of token ids; the sequences that hold it are its members. From the root down, a path spells the beginning of
every member of its last node, so the longest shared beginning is found by walking down once, however many sequences live.

`PrefixTree.begin` picks what goes on where the prompt and the tree part:

- an idle sequence that ends there simply goes on;
- otherwise a fork of one that goes further: nothing of the parent is lost, and a backend that shares memory copies next to
  nothing. A backend whose forks are copies truncates an idle sequence instead, where little would be lost.

Only idle sequences are ever freed, the one used longest ago first.
"""

from collections.abc import Sequence

from attrs import define, field

from k2core.interfaces import LoadedModel

WORTH_KEEPING = 128  # where forks are copies: a tail of fewer tokens is cheaper to compute again than to copy all before it
_BLOCK = 256


@define(eq=False)
class _Node:
    """Token ids that some sequences share.

    Attributes:
        ids: the run; empty only in the root.
        end: length of the path from the root, this run included.
        parent: None in the root.
        children: by their first id.
        members: the live sequences that hold the whole run; never empty but in the root.
    """

    ids: list[int]
    end: int
    parent: "_Node | None"
    children: "dict[int, _Node]" = field(factory=dict)
    members: "set[LiveSequence]" = field(factory=set)


@define(kw_only=True, eq=False)
class LiveSequence:
    """A sequence in the model's cache.

    Attributes:
        handle: the model's.
        ids: the tokens in its cache; while in use, the tree may know of fewer.
        in_use: a turn runs on it; it is neither continued by another nor freed.
        used: when it was used last, by the tree's own count.
    """

    handle: int
    ids: list[int] = field(factory=list, repr=False)
    in_use: bool = False
    used: int = 0
    _node: _Node = field(repr=False)


@define(kw_only=True, eq=False)
class PrefixTree:
    """The live sequences of one model. Single-threaded, as the model is.

    Attributes:
        model: owner of the cache memory.
        most_blocks: of the cache, held to by `make_room`; None is no limit.
        prompt_tokens: tokens of all prompts so far.
        cached_tokens: those that were in a cache already.
        computed_tokens: tokens that went through the model, generated and wrongly guessed ones included.
    """

    model: LoadedModel
    most_blocks: int | None = None
    prompt_tokens: int = field(default=0, init=False)
    cached_tokens: int = field(default=0, init=False)
    computed_tokens: int = field(default=0, init=False)
    _root: _Node = field(init=False, repr=False)
    _live: list[LiveSequence] = field(factory=list, init=False)
    _clock: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._root = _Node([], 0, None)

    @property
    def live(self) -> tuple[LiveSequence, ...]:
        """All sequences, those in use too."""
        return tuple(self._live)

    def shared(self, prompt: Sequence[int]) -> int:
        """How many tokens of *prompt* some sequence holds, the last token never counted."""
        return self._match(prompt)[1]

    def begin(self, prompt: Sequence[int]) -> LiveSequence:
        """A sequence, now in use, that holds a beginning of *prompt*, as long as one is known, but never all of it.

        At least the last token of the prompt is left to compute, since its logits are wanted.

        Args:
            prompt: at least one token.
        """
        node, shared = self._match(prompt)
        if not shared:
            sequence = self._add(self.model.new_sequence(), 0, self._root, [])
        else:
            idle = [one for one in node.members if not one.in_use]
            nearest = min(idle, key=lambda one: len(one.ids), default=None)
            lost = 0 if nearest is None else len(nearest.ids) - shared
            if nearest is not None and (not lost or (lost < WORTH_KEEPING and not self.model.fork_is_shared)):
                if lost:
                    self.model.truncate(nearest.handle, shared)
                    self._cut(nearest, shared)
                sequence = nearest
            else:
                parent = max(node.members, key=lambda one: one.used)
                self._touch(parent)
                sequence = self._add(self.model.fork(parent.handle, shared), shared, self._at(node, shared), parent.ids)
        sequence.in_use = True
        self._touch(sequence)
        self.prompt_tokens += len(prompt)
        self.cached_tokens += shared
        return sequence

    def extend(self, sequence: LiveSequence, token_ids: Sequence[int], *, refused: int = 0) -> None:
        """Note that the model has appended *token_ids* to *sequence*, and *refused* more that were truncated again."""
        self.computed_tokens += len(token_ids) + refused
        sequence.ids.extend(token_ids)
        node = sequence._node
        is_own = node.parent is not None and not node.children and len(node.members) == 1
        if is_own and node.end + len(token_ids) == len(sequence.ids):
            node.ids.extend(token_ids)
            node.end += len(token_ids)
        elif len(token_ids) > 1:  # a prompt, which others may wait for; generated tokens can wait for the turn's end
            self._insert(sequence)

    def release(self, sequence: LiveSequence) -> None:
        """The turn on *sequence* is over: it stays for the next one that shares it, until `make_room` frees it."""
        sequence.in_use = False
        self._insert(sequence)
        self._touch(sequence)

    def give_up(self, sequence: LiveSequence, prompt: Sequence[int]) -> None:
        """Undo a `begin`: the turn cannot have its place yet."""
        self.prompt_tokens -= len(prompt)
        self.cached_tokens -= len(sequence.ids)
        if sequence.ids:
            self.release(sequence)
        else:
            self.drop(sequence)

    def drop(self, sequence: LiveSequence) -> None:
        """Free *sequence*, e.g. because its cache is no longer known."""
        self._live.remove(sequence)
        self._cut(sequence, 0)
        self._root.members.discard(sequence)
        self.model.free(sequence.handle)

    def make_room(self, blocks: int) -> bool:
        """Free idle sequences until *blocks* more fit; False where even freeing all of them would not do."""
        if self.most_blocks is None:
            return True
        while self.model.used_blocks() + blocks > self.most_blocks:
            idle = [one for one in self._live if not one.in_use]
            if not idle:
                return False
            self.drop(min(idle, key=lambda one: one.used))
        return True

    def clear(self) -> None:
        """Free every sequence."""
        for sequence in self.live:
            self.drop(sequence)

    def __len__(self) -> int:
        return len(self._live)

    def _touch(self, sequence: LiveSequence) -> None:
        self._clock += 1
        sequence.used = self._clock

    def _add(self, handle: int, length: int, node: _Node, ids: list[int]) -> LiveSequence:
        sequence = LiveSequence(handle=handle, ids=ids[:length], node=node)
        self._live.append(sequence)
        above: _Node | None = node
        while above is not None:
            above.members.add(sequence)
            above = above.parent
        return sequence

    def _match(self, prompt: Sequence[int]) -> tuple[_Node, int]:
        """The last node on the way along *prompt*, and how far it goes."""
        node, at, most = self._root, 0, len(prompt) - 1
        while at < most and (child := node.children.get(prompt[at])) is not None:
            length = common_prefix(child.ids, prompt, most - at, at)
            node, at = child, at + length
            if length < len(child.ids):
                break
        return node, at

    def _at(self, node: _Node, length: int) -> _Node:
        """The node that ends at *length*, which is on *node* or at its end."""
        return node if length == node.end else _split(node, length - (node.end - len(node.ids)))

    def _insert(self, sequence: LiveSequence) -> None:
        """Bring the tree up to all that *sequence* holds."""
        node, at, ids = sequence._node, sequence._node.end, sequence.ids
        while at < len(ids):
            child = node.children.get(ids[at])
            if child is None:
                child = node.children[ids[at]] = _Node(ids[at:], len(ids), node)
            else:
                length = common_prefix(child.ids, ids, len(ids) - at, at)
                if length < len(child.ids):
                    child = _split(child, length)
            child.members.add(sequence)
            node, at = child, child.end
        sequence._node = node

    def _cut(self, sequence: LiveSequence, length: int) -> None:
        """Take *sequence* out of everything after *length*."""
        del sequence.ids[length:]
        node = sequence._node
        while node.end > length:
            if node.end - len(node.ids) < length:
                _split(node, length - (node.end - len(node.ids)))
                node = sequence._node
            assert node.parent is not None  # only the root has none, and it ends at 0
            node.members.discard(sequence)
            if not node.members:
                del node.parent.children[node.ids[0]]
            node = sequence._node = node.parent


def _split(node: _Node, length: int) -> _Node:
    """Cut *node* after *length* of its ids; it keeps the first part and is returned, a child takes the rest."""
    rest = _Node(node.ids[length:], node.end, node, node.children, set(node.members))
    for child in rest.children.values():
        child.parent = rest
    for member in node.members:
        if member._node is node:
            member._node = rest
    node.end -= len(rest.ids)
    node.ids = node.ids[:length]
    node.children = {rest.ids[0]: rest}
    return node


def common_prefix(one: Sequence[int], other: Sequence[int], limit: int, start: int = 0) -> int:
    """How many tokens *one* shares with what *other* (of the same sequence type) has from *start* on, at most *limit*."""
    most = min(len(one), len(other) - start, limit)
    at = 0
    # whole blocks are compared in C, and the block where they part is halved until little of it is left to walk
    while at < most:
        end = min(at + _BLOCK, most)
        if one[at:end] != other[start + at : start + end]:
            while end - at > 8:
                middle = (at + end) // 2
                if one[at:middle] == other[start + at : start + middle]:
                    at = middle
                else:
                    end = middle
            while one[at] == other[start + at]:
                at += 1
            return at
        at = end
    return max(0, most)
