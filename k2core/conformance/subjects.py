"""Which backends there are to check here, and why the others cannot be."""

from collections.abc import Iterator

from attrs import frozen

from k2core.conformance.kit import Subject
from k2core.errors import said
from k2core.interfaces import Available
from k2core.plugins import Plugins


@frozen(kw_only=True)
class Missing:
    """A backend, or one of its devices, that cannot be checked here."""

    name: str
    reason: str


def discovered(plugins: Plugins | None = None) -> Iterator[Subject | Missing]:
    """Every registered backend with every device that it has here and every numerics that it knows, in order of names.

    Args:
        plugins: None discovers the installed ones.
    """
    plugins = plugins or Plugins.discover()
    for entry in plugins.entries("backend"):
        try:
            backend = entry.make()
            probed = backend.probe()
        except Exception as error:  # a stranger's code may raise anything: it becomes a line of the report
            yield Missing(name=entry.name, reason=said(error))
            continue
        if not isinstance(probed, Available):
            yield Missing(name=entry.name, reason=probed.reason)
            continue
        for device in dict.fromkeys((probed.device, *probed.devices)):
            for numerics in backend.numerics:
                yield Subject(name=entry.name, backend=backend, device=device, numerics=numerics)
        for device, reason in probed.missing.items():
            yield Missing(name=f"{entry.name} on {device}", reason=reason)
