"""Records as people keep them: JSON, CSV, TSV and Parquet. The one reader of `init`, `shards pack` and `predict`.

Text is UTF-8, or what its byte order mark says. Lines are counted as editors count them, blank ones included. The types of
fields are checked by pydantic: what is null, a truth value or not a number is refused with its line, not turned into the text
`None`. Pictures within a table: data/parquet.py.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError

from atlas_dist.data.jsonrows import json_rows
from atlas_dist.data.leftout import shown
from atlas_dist.data.parquet import Embedded, read_rows
from atlas_dist.errors import DataError

RECORD_ENDS = ("jsonl", "ndjson", "csv", "tsv", "parquet", "json")
"""How files of records end."""

Finite = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Scalar = str | int | float | bool
_TEXT: TypeAdapter[str | int | float] = TypeAdapter(StrictStr | StrictInt | Finite)
_LABEL: TypeAdapter[Scalar] = TypeAdapter(Annotated[StrictStr, Field(min_length=1)] | StrictBool | StrictInt | Finite)
_NAME: TypeAdapter[str] = TypeAdapter(Annotated[StrictStr, Field(min_length=1)])
_TEXTS: TypeAdapter[list[str | int | float]] = TypeAdapter(list[StrictStr | StrictInt | Finite])

_BOMS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


_FOREIGN = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "Run `git lfs pull` in the data set."),
    (b"PK\3\4", "a zip or a spreadsheet, in spite of its name", "Save it as CSV, or unpack it."),
    (b"\x1f\x8b", "compressed with gzip", "Decompress it: gunzip."),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Decompress it: zstd -d."),
    (b"PAR1", "Parquet, in spite of its name", "Let its name end in .parquet."),
)

csv.field_size_limit(1 << 26)


@dataclass(frozen=True)
class Record:
    """One object of a file, and where it stands: "train.jsonl, line 12", and 12."""

    where: str
    values: Mapping[str, Any]
    number: int

    @property
    def untyped(self) -> bool:
        """Whether all its values are texts because its file, a table, knows nothing else."""
        return self.where.rpartition(",")[0].lower().endswith((".csv", ".tsv"))

    def text(self, field: str) -> str:
        """A text; a number counts as its digits. Raises DataError naming line and field."""
        return self._whole(field, str(self._checked(field, _TEXT, "a text")))

    def texts(self, field: str) -> tuple[list[str], list[str | int | float]]:
        """A list of texts: as texts, and as they were written. In CSV: a JSON list in the cell, or several columns by name."""
        if field not in self.values and "," in field:
            given: list[Any] = [self.text(name.strip()) for name in field.split(",")]
        else:
            given = self._list(field)
        return [self._whole(field, str(item)) for item in given], given

    def label(self, field: str) -> Scalar:
        """A class as it was written: a name, a number or a truth value."""
        value = self._checked(field, _LABEL, "a name or a number")
        if isinstance(value, str) and not label_key(value):
            self.refuse(f"{field!r} is {'empty' if not value else 'blank'}; a name or a number is wanted")
        return self._whole(field, value) if isinstance(value, str) else value

    def name(self, field: str) -> str:
        """The name of a file. Raises DataError naming line and field."""
        value = self.get(field)
        if isinstance(value, Mapping):
            self.refuse(f"{field!r} holds a picture itself", "Write the pictures to files and their names into the field.")
        return self._file(field, value)

    def pictures(self, field: str, folder: str = "") -> tuple[str, ...]:
        """The members of the source that are the field's picture, or its list of pictures: files below `folder`, or what the
        table itself holds."""
        value = self.get(field)
        if not isinstance(value, list):
            return (str(value) if isinstance(value, Embedded) else folder + self.name(field),)
        return tuple(str(item) if isinstance(item, Embedded) else folder + self._file(field, item) for item in value)

    def get(self, field: str) -> Any:
        """The value as it was written. Raises DataError: there is no such field."""
        if field not in self.values:
            near = next((name for name in self.values if name.strip().casefold() == field.casefold()), "")
            raise DataError(
                f"{self.where} has no field {field!r}: it has {sorted(self.values)[:20]}.",
                fix=f"Rename {near!r} to {field!r}, or name it in the converter's options." if near else "",
            )
        return self.values[field]

    def identifier(self, fallback: str) -> str:
        """The field `id` where it says something, else `fallback`."""
        value = self.values.get("id")
        return fallback if value is None or value == "" else self.text("id")

    def refuse(self, what: str, fix: str = "") -> NoReturn:
        """Raises DataError at this record's line."""
        raise DataError(f"{self.where}: {what}.", fix=fix)

    def _file(self, field: str, value: Any) -> str:
        return self._whole(field, self._checked(field, _NAME, "the name of a file", value))

    def _list(self, field: str) -> list[Any]:
        value = self.get(field)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                self.refuse(f"{field!r} is {_said(value)}; a list of texts is wanted")
        return list(self._checked(field, _TEXTS, "a list of texts", value))

    def _checked(self, field: str, adapter: TypeAdapter[Any], wanted: str, value: Any = ...) -> Any:
        given = self.get(field) if value is ... else value
        try:
            return adapter.validate_python(given)
        except ValidationError:
            self.refuse(f"{field!r} is {_said(given)}; {wanted} is wanted")

    def _whole(self, field: str, text: str) -> str:
        """Text that can be written down again. Raises DataError: half of a character that needs two."""
        try:
            text.encode()
        except UnicodeEncodeError:
            self.refuse(f"{field!r} holds half a character (a lone surrogate)")
        return text


def read_records(data: bytes, name: str) -> Iterator[Record]:
    """The records of a file, by how its name ends; JSON lines where that says nothing.

    Raises:
        DataError: with file, line and column: another encoding, not JSON, a row of another length, a number that is none.
    """
    end = name.rpartition(".")[2].lower()
    if end == "parquet":
        return (Record(f"{name}, row {row}", values, row) for row, values in enumerate(read_rows(data, name), start=1))
    if end in ("csv", "tsv"):
        return _table(decode_text(data, name), name, "\t" if end == "tsv" else "")
    return (Record(*found) for found in json_rows(decode_text(data, name), name))


def decode_text(data: bytes, name: str) -> str:
    """The text of a file, without its byte order mark. Raises DataError with line and byte: it is neither UTF-8 nor marked."""
    encoding = next((encoding for mark, encoding in _BOMS if data.startswith(mark)), "utf-8")
    fix = "Save it as UTF-8, for example with `iconv -f latin1 -t utf-8`."
    foreign = next(((what, mend) for mark, what, mend in _FOREIGN if data.startswith(mark)), None)
    if foreign:
        raise DataError(f"{name} is {foreign[0]}.", fix=foreign[1])
    if encoding == "utf-8" and _every_other_is_zero(data[:200].rstrip(b"\0")):
        raise DataError(f"{name} looks like UTF-16 without a byte order mark.", fix="Save it as UTF-8.")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        place = f"line {line}, byte {column}" if encoding.startswith("utf-8") else f"byte {error.start}"
        raise DataError(f"{name}, {place}: not {encoding.upper().removesuffix('-SIG')} ({error.reason}).", fix=fix) from error
    return text.removeprefix("\ufeff")


def _every_other_is_zero(data: bytes) -> bool:
    return max(data[start::2].count(0) for start in (0, 1)) > len(data) // 4 > 0


def label_key(label: str) -> str:
    """What labels are compared by: composed accents, without spaces and invisible characters around them."""
    text = unicodedata.normalize("NFC", label)
    seen = [at for at, letter in enumerate(text) if not letter.isspace() and unicodedata.category(letter) != "Cf"]
    return text[seen[0] : seen[-1] + 1] if seen else ""


def label_forms(labels: Iterable[str]) -> dict[str, str]:
    """As `normal_forms`, of labels: those that look alike but for spaces or invisible characters around them are one, too; as
    it is written where everybody writes it alike, else without those."""
    groups: dict[str, set[str]] = {}
    for label in labels:
        groups.setdefault(label_key(label), set()).add(label)
    return {form: form if len(forms) == 1 else key for key, forms in groups.items() for form in forms}


def normal_forms(names: Iterable[str]) -> dict[str, str]:
    """name -> the one name of all that differ by Unicode normal form only (composed or separate accents): as it is written where
    everybody writes it alike, else composed."""
    groups: dict[str, set[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name), set()).add(name)
    return {form: form if len(forms) == 1 else composed for composed, forms in groups.items() for form in forms}


def _table(text: str, name: str, delimiter: str) -> Iterator[Record]:
    """Rows below a header. A comma separates, or what the header has in its place: semicolons (of European spreadsheets, which
    may say `sep=;` before), tabs or bars. Columns without a name are passed over."""
    said = _SEPARATOR.match(text)
    skipped = 1 if said else 0
    text = text[said.end() :] if said else text
    head = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])  # what stands in quotes separates nothing
    found = said[1] if said else next((mark for mark in ";\t|" if mark in head and "," not in head), ",")
    delimiter = delimiter or found
    # `a, "b, c"`: a quote behind a space opens a cell all the same
    mark = re.escape(delimiter)
    spaced = re.search(rf'(?m){mark} +"[^"\n]*"(?= *({mark}|\r?$))', text) is not None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    fields: list[str] = []
    begun = 1
    try:
        for row in reader:
            line, begun = begun + skipped, reader.line_num + 1
            where = f"{name}, line {line}"
            if not any(cell.strip() for cell in row):
                continue
            if not fields:
                fields = [cell.strip() for cell in row]
                named = [field for field in fields if field]
                if len(set(named)) != len(named):
                    raise DataError(f"{where}: two columns have one name: {', '.join(fields)}.")
            elif len(row) != len(fields):
                raise DataError(
                    f"{where}: {len(row)} cells, the header has {len(fields)}.",
                    fix='Quote cells that hold the separator: "one, two".',
                )
            else:
                yield Record(where, dict(zip(fields, row, strict=True)), line)
    except csv.Error as error:
        raise DataError(
            f"{name}, line {begun + skipped}: not a table ({error}).", fix="Double the quotes within quoted cells."
        ) from error


_SEPARATOR = re.compile(r"sep=([;,\t|])\r?\n")


def _said(value: Any) -> str:
    """A value as JSON says it, short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == "":
        return "empty"
    if isinstance(value, bytes | Embedded):
        return "bytes"
    if isinstance(value, list | dict) and _has_bytes(value):
        return f"a {'list' if isinstance(value, list) else 'group'} with bytes in it"
    return shown(repr(value)[:80])


def _has_bytes(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, bytes) or any(_has_bytes(item) for item in inner)
