"""Which memory a session has: the one that was chosen, else the one that its model expects, else `rules`."""

from attrs import frozen

from k2core.agent.window import WINDOW, Window
from k2core.errors import PluginError, UnknownName
from k2core.interfaces import Memory, MemoryView, ModelProfile, Room
from k2core.memory import Ask
from k2core.plugins import Plugins

DEFAULT_MEMORY = "rules"


@frozen(kw_only=True)
class MissingMemory:
    """Stands for a memory that nobody chose and that cannot be had: the run is told so when room is to be made."""

    name: str
    reason: str
    recalls: bool = False

    async def make_room(self, view: MemoryView, ask: Ask) -> Room:
        """Always fails, for the reason."""
        raise PluginError(self.reason)


def memory_of(plugins: Plugins, chosen: str | None, profile: ModelProfile) -> Memory:
    """The memory of a session.

    Args:
        plugins: where memories come from, but for the framework's own rules, which are always there.
        chosen: its name; None leaves it to the model.
        profile: of the model.

    Raises:
        UnknownName: there is no memory of the chosen name.
        PluginError: the chosen one does not load, or is none.
    """
    name = chosen or profile.memory or DEFAULT_MEMORY
    if name == WINDOW:
        return Window()
    try:
        return plugins.memory(name)
    except (UnknownName, PluginError) as error:
        if chosen is not None:
            raise
        return MissingMemory(name=name, reason=str(error))
