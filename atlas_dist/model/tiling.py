"""Whether a backbone can see its pictures in n x n tiles (docs/method.md, Tiles of large pictures), and making it do so."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedTokenizerFast

from atlas_dist.errors import ConfigError
from atlas_dist.model.backbones import Architecture, PictureForm
from atlas_dist.model.load_errors import listed

MOST_TILES = 6
"""Along a side: tokenizers have names for the tiles of 6 x 6."""

LEAST_TEXT = 3
"""Tokens of a text at least, as `tasks.NAME.max_text` has it."""


def check_tiles(name: str, tiles: int, architecture: Architecture) -> None:
    """Raises ConfigError: so many tiles along a side cannot be, or the architecture has none. `name`: the backbone's."""
    if not 1 <= tiles <= MOST_TILES:
        raise ConfigError(
            f"Backbone {name!r} would cut pictures into {tiles} x {tiles} tiles.",
            fix=f"Set backbone.tiles to a number from 1 to {MOST_TILES}.",
        )
    if tiles > 1 and architecture.tiling is None:
        raise ConfigError(
            f"backbone.tiles is {tiles}, but backbone {name!r} ({architecture.name}) sees whole pictures only.",
            fix="Leave backbone.tiles out.",
        )


def cut_pictures(
    name: str, architecture: Architecture, model: nn.Module, tokenizer: PreTrainedTokenizerFast, form: PictureForm
) -> None:
    """Make a model see tiles where the form of its pictures has any. Raises ConfigError: its tokenizer has no names for them."""
    if form.tiles == 1 or architecture.tiling is None:
        return
    known = tokenizer.get_vocab()
    missing = [token for token in architecture.tiling.tokens(form.tiles) if token not in known]
    if missing:
        raise ConfigError(
            f"Backbone {name!r} would cut pictures into {form.tiles} x {form.tiles} tiles, but its tokenizer does not know "
            f"{listed(missing)}.",
            fix="Set backbone.tiles to fewer, or to 1: then pictures are seen whole, once.",
        )
    architecture.tiling.cut(model, form)


def check_room(name: str, architecture: Architecture, model: nn.Module, tiles: int) -> None:
    """Raises ConfigError: the tiles of a picture leave no room for a text."""
    left = architecture.limits(model).text_tokens
    if tiles > 1 and left < LEAST_TEXT:
        raise ConfigError(
            f"Backbone {name!r} has no room for a text beside {tiles} x {tiles} tiles: {max(0, left)} tokens are left of the "
            f"longest sequence that it reads (max_position_embeddings), {LEAST_TEXT} are the least.",
            fix=f"Set backbone.tiles below {tiles}.",
        )
