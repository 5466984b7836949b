"""The Typer commands, one file each."""
