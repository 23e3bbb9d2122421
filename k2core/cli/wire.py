"""The seam behind ``k2 tokens`` and ``k2 format``: a language as JSON values."""

from typing import Any, Protocol


class Wire(Protocol):
    """A language as JSON values: the module ``wire`` of the top-level package that a tokenizer or chat format comes from.

    It need not exist; ``k2 tokens`` and ``k2 format`` then say so. A value of the wrong shape raises `FormatError`, which names
    the place; an id outside the vocabulary raises `TokenizerError`. Keys of a result are always there.
    """

    def encode(self, tokenizer: Any, text: Any, control: bool = False) -> dict[str, Any]:
        """``{"ids": [int], "count": int}`` of a text; see `Tokenizer.encode`."""
        ...

    def decode(self, tokenizer: Any, ids: Any, control: bool = True) -> dict[str, Any]:
        """``{"text": str, "utf8": bool}`` of a list of ids or ``{"ids": [int]}``; ``utf8``: their bytes are valid UTF-8."""
        ...

    def render(self, chat_format: Any, data: Any) -> dict[str, Any]:
        """``{"text": str, "ids": [int], "count": int}`` of a prompt; see `ChatFormat.render`.

        Args:
            chat_format: over the model's tokenizer.
            data: ``{"messages": [...], "tools": [...], "generate": bool}`` in OpenAI's form, or the messages alone.
        """
        ...

    def parse(self, chat_format: Any, data: Any) -> dict[str, Any]:
        """One model turn from its chunks; see `ChatFormat.parser`.

        Args:
            chat_format: as for `render`.
            data: ``{"chunks": [...], "next_call_index": int, "tools": [...], "thinking": bool}`` or the chunks alone, all texts
                or all lists of ids; ``tools`` are declarations or names, ``thinking``: the prompt has opened the thinking.

        Returns:
            ``content``, ``reasoning_content`` (null without thinking), ``tool_calls`` and ``finish_reason`` of the turn in
            OpenAI's form, ``deltas`` (per chunk a list in that form) and ``flushed`` (the deltas after the last chunk).
        """
        ...
