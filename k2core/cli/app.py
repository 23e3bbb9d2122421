"""What every command starts from: settings, logging, plugins; and groups whose default verb is ``list``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from k2core.cli.streams import Caught, kept_output, strangers_code

if TYPE_CHECKING:
    from k2core.cli.settings import Settings
    from k2core.errors import K2Error
    from k2core.plugins import Plugins


class App:
    """One invocation of ``k2``; no record of attrs, which ``k2 run --help`` need not import."""

    def __init__(self, general: Mapping[str, Any]) -> None:
        """Take what the general options gave, or will have given when the command begins."""
        self._general = general
        self._settings: Settings | None = None
        self.caught = Caught()

    def settings(self, **flags: Any) -> "Settings":
        """Settings in force with *flags* on top; configures logging."""
        from k2core.cli.logs import configure
        from k2core.cli.settings import Settings

        file = self._general.get("settings_file")
        level = self._general.get("log_level") or {0: None, 1: "info"}.get(self._general.get("verbose", 0), "debug")
        settings = Settings.load({"log_level": level, **flags}, file=Path(file) if file else None)
        configure(settings["log_level"])
        self._settings = settings
        return settings

    def plugins(self) -> "Plugins":
        """Every installed plugin that is not disabled; from here on stdout and stderr are kept from their code."""
        from k2core.plugins import Plugins

        settings = self._settings or self.settings()
        self.caught = click.get_current_context().with_resource(kept_output())
        with strangers_code():
            return Plugins.discover(disabled=settings["disable"])

    def where_from(self, error: "K2Error") -> str:
        """Which variable or file named the model, backend, tool or folder that *error* is about; empty for flags."""
        for name, told in (("model", "model '{}'"), ("backend", "backend '{}'"), ("tools", "tool '{}'"), ("docs", "use '{}'")):
            one = self._settings.values[name] if self._settings is not None else None
            if one is None or one.is_default or one.origin.startswith("flag"):
                continue
            for value in one.value if isinstance(one.value, tuple) else (one.value,):
                if told.format(value) in str(error):
                    return f" '{value}' is set by {one.origin}."
        return ""


class Nouns(click.Group):
    """A noun whose default verb is ``list`` (or `default`)."""

    def __init__(self, *args: Any, default: str = "list", **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default verb where there is none."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown verb is told the nearest."""
        if args[0] not in self.commands:
            from k2core.errors import UnknownName

            raise UnknownName("command", f"{ctx.info_name} {args[0]}", [f"{ctx.info_name} {name}" for name in self.commands])
        return super().resolve_command(ctx, args)
