"""`atlas-dist manifest`."""

from __future__ import annotations

import typer

from atlas_dist.app.manifest import Place, write_manifest


def print_manifest(overrides: list[str] | None, place: Place, *, many: bool) -> None:
    """Print the RayJob of a run, on standard output alone. Raises as `write_manifest`."""
    written = write_manifest(*(overrides or ()), place=place, many=many)
    if written.stands_for_another:
        typer.echo(f"No image was named: {written.image} stands for it. Name yours: --image, or ATLAS_IMAGE.", err=True)
    typer.echo(written.text, nl=False)
