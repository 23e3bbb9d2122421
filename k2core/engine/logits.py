"""Logits of prompts and greedy continuations, computed as a user's are: prompts in chunks, then token by token in the cache."""

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from k2core.interfaces import LoadedModel, SequenceInput, Want

CHUNK = 512  # tokens of a prompt per forward
ALL = Want(logits="all")


def logits_of(
    model: LoadedModel, prompts: Sequence[Sequence[int]], greedy: int = 0
) -> Generator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Per prompt its logits (tokens, vocab) float32, and the *greedy* most probable tokens that follow it, int64.

    Args:
        model: without other users; what is computed is freed again.
        prompts: token ids, at least one each.
        greedy: tokens to go on with; a tie goes to the lower id.

    Raises:
        K2Error: an id outside the vocabulary, or more tokens than the model has positions.
    """
    for prompt in prompts:
        handle = model.new_sequence()
        try:
            rows = [
                np.array(model.forward([SequenceInput(handle=handle, token_ids=prompt[at : at + CHUNK])], ALL).logits)
                for at in range(0, len(prompt), CHUNK)
            ]
            logits = np.concatenate(rows).astype(np.float32, copy=False)
            yield logits, np.array(_greedy(model, handle, logits[-1], greedy), np.int64)
        finally:
            model.free(handle)


def _greedy(model: LoadedModel, handle: int, last: NDArray[np.float32], count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        found.append(int(np.argmax(last)))
        if len(found) < count:
            last = np.asarray(model.forward([SequenceInput(handle=handle, token_ids=[found[-1]])]).logits)[-1]
    return found
