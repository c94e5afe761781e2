"""``turnout completion``: the script that makes a shell complete verbs, options and service names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from turnout.cli.formatting import examples


@click.command(
    epilog=examples(
        "turnout completion bash > ~/.local/share/bash-completion/completions/turnout",
        "turnout completion zsh > ~/.zfunc/_turnout         with ~/.zfunc in fpath",
        "turnout completion fish > ~/.config/fish/completions/turnout.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL. It asks turnout itself, so it never falls behind."""
    made = get_completion_class(shell)
    assert made is not None
    script = made(click.get_current_context().find_root().command, {}, "turnout", "_TURNOUT_COMPLETE")
    click.echo(script.source_template % script.source_vars())  # source() would start the shell to look at its version
