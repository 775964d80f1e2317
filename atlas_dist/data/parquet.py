"""Parquet: its rows as plain values, and the pictures that columns of it hold. The only file that knows pyarrow.

A column of bytes, or of {bytes, path} as Hugging Face data sets have them, is one of pictures; one of lists of these is one of
several pictures a row. They are no part of the rows: a row says where its picture is, and who wants it reads it. So a table is
listed without a picture in memory.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO

from atlas_dist.data.leftout import UnusableError
from atlas_dist.data.source import Source
from atlas_dist.data.temporary import temporary_disk
from atlas_dist.errors import DataError

PICTURE_CAP = 1 << 28
"""Largest picture that a table may hold, in bytes."""
_ROWS, _PICTURES = 1024, 32
"""Rows that are decoded at a time, without and with their pictures."""


@dataclass(frozen=True)
class Embedded:
    """A picture that a table holds. As a text: the name by which `WithEmbedded` reads it."""

    file: str
    row: int
    """From 0."""
    column: str
    item: int = -1
    """From 0, where the column holds lists."""

    def __str__(self) -> str:
        return f"{self.file}/{self.row}{f'.{self.item}' if self.item >= 0 else ''}/{self.column}"


def read_rows(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a table; in the place of each picture an `Embedded`, or its path where only that is there; in that of a class's
    number its name, where the table knows it as those of the Hub do (`ClassLabel`; -1 is no class). Raises DataError: it is no
    Parquet, or a number has no name."""
    row = 0
    classes: dict[str, list[str]] | None = None
    for batch, pictures in _batches(data, name, _ROWS):
        held = {column: _pictures_of(batch.column(column), Embedded(name, row, column)) for column in pictures}
        others = [column for column in batch.schema.names if column not in held]
        plain = {column: _values(batch.column(column), name, column, row) for column in others}
        classes = _class_names(batch.schema.metadata) if classes is None else classes
        for column in classes.keys() & plain.keys():
            plain[column] = [
                _class_name(value, classes[column], f"{name}, row {row + at + 1}: {column!r}")
                for at, value in enumerate(plain[column])
            ]
        for at in range(batch.num_rows):
            yield {column: known[at] for column, known in (*plain.items(), *held.items())}
            row += 1


class Pictures:
    """The pictures of one table. They are laid out in a nameless temporary file when the first is asked for: a table cannot be
    read at any one row. Safe to use from several threads."""

    def __init__(self, load: Callable[[], bytes], name: str) -> None:
        self._load, self._name = load, name
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._places: dict[Embedded, tuple[int, int]] = {}

    def read(self, place: Embedded) -> bytes:
        """The bytes of a picture. Raises DataError: there is none, or it is larger than `PICTURE_CAP`."""
        with self._lock:
            if self._file is None:
                with temporary_disk(f"the pictures of {self._name}"):
                    self._file = self._laid_out()
        begin, size = self._places.get(place, (0, -1))
        if size < 0:
            raise UnusableError(
                f"{self._name} has no picture in row {place.row + 1} of {place.column!r}.", reason="missing picture"
            )
        if size > PICTURE_CAP:
            raise UnusableError(
                f"{self._name}, row {place.row + 1}: the picture has {size} bytes, more than {PICTURE_CAP}.",
                reason="too large a file",
            )
        return os.pread(self._file.fileno(), size, begin)

    def of(self, place: Embedded) -> Held:
        """The picture at `place`, still unread."""
        return Held(self, place)

    def _laid_out(self) -> BinaryIO:
        file: BinaryIO = tempfile.TemporaryFile(prefix="atlas-pictures-")  # noqa: SIM115 - as long as this object
        end = row = 0
        for batch, pictures in _batches(self._load(), self._name, _PICTURES, only_pictures=True):
            for column in pictures:
                cells, places = _one_by_one(batch.column(column), Embedded(self._name, row, column))
                there, _ = _held(cells)
                contents = cells.field("bytes") if _is_struct(cells.type) else cells
                for at in (at for at, known in enumerate(there) if known):
                    content = contents[at].as_buffer()
                    self._places[places[at]] = (end, content.size)
                    if content.size <= PICTURE_CAP:
                        file.write(content)
                        end += content.size
            row += batch.num_rows
        file.flush()
        return file


@dataclass(frozen=True)
class Held:
    """A picture of a table, read when it is needed: as a `Path` is to a file."""

    pictures: Pictures
    place: Embedded

    def read_bytes(self) -> bytes:
        """Raises DataError as `Pictures.read`."""
        return self.pictures.read(self.place)

    def __str__(self) -> str:
        return str(self.place)


class WithEmbedded:
    """A source together with the pictures that some of its tables hold, by the names that `Embedded` gives them."""

    def __init__(self, source: Source, *files: str) -> None:
        self._source, self._tables = source, {file: Pictures(partial(source.read, file), file) for file in files}

    def __reduce__(self) -> tuple[type[WithEmbedded], tuple[Source | str, ...]]:
        return WithEmbedded, (self._source, *self._tables)

    def read(self, name: str) -> bytes:
        place = self._place(name)
        return self._tables[place.file].read(place) if place is not None else self._source.read(name)

    def has(self, name: str) -> bool:
        return self._place(name) is not None or self._source.has(name)

    def names(self, under: str = "") -> Iterator[str]:
        return self._source.names(under)

    def stamp(self, name: str) -> str:
        place = self._place(name)
        return self._source.stamp(name if place is None else place.file)

    def _place(self, name: str) -> Embedded | None:
        """Where the picture of a table is; None of what is none."""
        for table in self._tables:
            row, _, column = name.removeprefix(f"{table}/").partition("/")
            row, dot, item = row.partition(".")
            if name.startswith(f"{table}/") and row.isdecimal() and column and (item.isdecimal() or not dot):
                return Embedded(table, int(row), column, int(item) if dot else -1)
        return None


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """column -> its classes' names by number, as tables written by the library `datasets` note them; {} of other tables."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {
            str(column): [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _class_name(value: Any, names: Sequence[str], where: str) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value == -1:
        return None
    if not 0 <= value < len(names):
        raise DataError(f"{where} is {value}; the table names the classes 0 to {len(names) - 1}.")
    return names[value]


def _batches(data: bytes, name: str, rows: int, *, only_pictures: bool = False) -> Iterator[tuple[Any, list[str]]]:
    """Record batches, each with the names of the columns that hold pictures."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        schema = file.schema_arrow
        if len(set(schema.names)) != len(schema.names):
            raise DataError(f"{name}: two columns have one name: {', '.join(schema.names)[:200]}.")
        pictures = [column.name for column in schema if _holds_pictures(_item_type(column.type))]
        for batch in file.iter_batches(rows, columns=pictures if only_pictures else None):
            yield batch, pictures
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is not readable as Parquet: {str(error).splitlines()[0][:200]}.") from error


def _values(cells: Any, name: str, column: str, first: int) -> list[Any]:
    """A column's cells as Python has them. What Python has no value for (a time of the year 40000, an unknown time zone) becomes
    a text or a number: a record need not use it.

    Raises:
        DataError: a text that is not UTF-8, or cells that are nothing at all.
    """
    import pyarrow

    try:
        return list(cells.to_pylist())
    except UnicodeDecodeError as error:
        row = first + next((at for at in range(len(cells)) if not _is_text(cells[at])), 0)
        raise DataError(f"{name}, row {row + 1}: {column!r} is not UTF-8.", fix="Write the texts as UTF-8.") from error
    except (pyarrow.ArrowException, OverflowError, ValueError):
        for kind in (pyarrow.string(), pyarrow.int64()):
            try:
                return list(cells.cast(kind).to_pylist())
            except (pyarrow.ArrowException, ValueError):
                continue
        raise DataError(f"{name}: the column {column!r} ({cells.type}) cannot be read.", fix="Leave it out.") from None


def _is_text(cell: Any) -> bool:
    try:
        cell.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _decoded(cells: Any) -> Any:
    """Without the dictionary that equal cells may be kept in."""
    import pyarrow

    return cells.dictionary_decode() if pyarrow.types.is_dictionary(cells.type) else cells


def _is_struct(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(kind))


def _holds_pictures(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        return _holds_pictures(kind.value_type)
    if _is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_pictures(kind.field("bytes").type)
    types = pyarrow.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _item_type(kind: Any) -> Any:
    """What lists of this type hold; the type itself where it is none of lists."""
    import pyarrow

    types = pyarrow.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return kind.value_type if lists else kind


def _one_by_one(cells: Any, first: Embedded) -> tuple[Any, list[Embedded]]:
    """The pictures of a column's cells one after the other, and the place of each; `first` is that of the first cell."""
    if _item_type(cells.type) is cells.type:
        return _decoded(cells), [replace(first, row=first.row + at) for at in range(len(cells))]
    counts = cells.value_lengths().to_pylist()
    places = [replace(first, row=first.row + at, item=item) for at, count in enumerate(counts) for item in range(count or 0)]
    return _decoded(cells.flatten()), places


def _pictures_of(cells: Any, first: Embedded) -> list[Any]:
    """For each cell its picture's place, or its path where only that is there; of a cell with a list, a list of these."""
    single, places = _one_by_one(cells, first)
    found = [place if there else path for place, there, path in zip(places, *_held(single), strict=True)]
    if _item_type(cells.type) is cells.type:
        return found
    rest = iter(found)
    return [None if count is None else list(itertools.islice(rest, count)) for count in cells.value_lengths().to_pylist()]


def _held(cells: Any) -> tuple[list[bool], list[str | None]]:
    """Of each cell, whether it has bytes, and its path."""
    if not _is_struct(cells.type):
        return cells.is_valid().to_pylist(), [None] * len(cells)
    known, filled = cells.is_valid().to_pylist(), cells.field("bytes").is_valid().to_pylist()
    paths = cells.field("path").to_pylist() if cells.type.get_field_index("path") >= 0 else [None] * len(cells)
    return [a and b for a, b in zip(known, filled, strict=True)], [p if a else None for a, p in zip(known, paths, strict=True)]
