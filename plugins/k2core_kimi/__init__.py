"""The Kimi K2 family's language: its tokenizer and its chat format."""

from k2core.hookspecs import Register, hookimpl


@hookimpl
def register_tokenizers(register: Register) -> None:
    """The family's tiktoken vocabulary, read from a checkpoint folder."""
    register("k2core_kimi.tokenizer:KimiTokenizer.open", name="kimi", summary="tiktoken vocabulary of the Kimi K2 family")


@hookimpl
def register_chat_formats(register: Register) -> None:
    """The family's frames, thinking and tool sections."""
    register("k2core_kimi.chat_format:KimiChatFormat", name="kimi", summary="chat format of Kimi K2 Thinking")
