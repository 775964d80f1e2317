"""`atlas-dist serve`: start, say where, stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_dist.app.show import standard_console

if TYPE_CHECKING:
    from atlas_dist.app.serve import Listening


def serve_folder(folder: Path, given: Mapping[str, Any], *, host: str, port: int, metrics_port: int, address: str) -> None:
    """Serve and print. Raises as `serve_bank`."""
    from atlas_dist.app.serve import serve_bank

    out = standard_console()
    out.print(f"starting Ray Serve for {folder} …", markup=False, soft_wrap=True)
    serve_bank(folder, given, on_ready=_show, host=host, port=port, metrics_port=metrics_port, address=address)
    out.print("stopped")


def _show(listening: Listening) -> None:
    token = '-H "Authorization: Bearer $ATLAS_SERVE_TOKEN" ' if listening.with_token else ""
    lines = [
        f"listening on {listening.url}: {', '.join(listening.tasks)}",
        f"  page     {listening.url}/docs",
        f"  metrics  {listening.metrics_url or 'port 8080 of every node'}",
        f"  try      curl {token}-F task={listening.tasks[0]} -F image=@PICTURE {listening.url}/v1/predict",
        "Ctrl-C stops it.",
    ]
    standard_console().print("\n".join(lines), markup=False, soft_wrap=True, highlight=False)
