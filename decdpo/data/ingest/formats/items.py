"""The items that people rated: a file with the text of each."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from decdpo.data.ingest.files.sources import written
from decdpo.data.ingest.formats.rated import RatedColumns
from decdpo.data.ingest.formats.values import Record, Unusable, name_of, text_of
from decdpo.data.ingest.opened import Opened
from decdpo.data.ingest.texts import Texts
from decdpo.errors import DataError

_TEXT = "text"


class Items:
    """The file of the items: texts go to disk, what else is wanted of them stays in memory."""

    def __init__(self, path: Path) -> None:
        self._opened = Opened(path)
        self.head = self._opened.sample()
        self._path = path
        self._codes: dict[str, int] = {}
        self._about: dict[str, Record] = {}
        self.rows = 0
        self.columns: tuple[str, str] = ("", "")

    def find_columns(self, ratings: Sequence[Record], rated: RatedColumns) -> RatedColumns:
        """Return ``rated`` with the column that names an item in both files.

        ratings : the first records of the ratings.

        Raises ``DataError`` if it, or the column of the texts, is not to be known.
        """
        known = {name: None for record in self.head for name in record}
        both = [name for record in ratings[:1] for name in record if name in known]
        text = rated.text or (_TEXT if _TEXT in known else None)
        item = rated.item or (both[0] if len(both) == 1 else None)
        if item is None or item not in known:
            what = f"the column {item!r} is not in" if item else f"{both or 'no columns'} are in"
            raise DataError(
                f"{what} the ratings and in {self._path} ({', '.join(known)})",
                "name with --item the column that names an item in both files",
            )
        others = [name for name in known if name != item]
        text = text or (others[0] if len(others) == 1 else None)
        if text is None or text not in known:
            raise DataError(
                f"{self._path} has no column {text or _TEXT!r}, but {', '.join(known)}",
                "name with --text the column of the items' texts",
            )
        self.columns = item, text
        return replace(rated, item=item)

    def load(self, texts: Texts, wanted: Sequence[str]) -> None:
        """Read every item. wanted : further columns that are used.

        Raises ``DataError`` naming the row if an item has no name or no text, or has two texts.
        """
        item, text = self.columns
        for self.rows, record in enumerate(self._opened.records(), 1):
            where = f"{self._path}, row {self.rows}"
            try:
                if isinstance(record, str):
                    raise Unusable(record)
                key, said = name_of(record.get(item)), text_of(record, text)
                if key is None:
                    raise Unusable(f"no {item}")
                if not said.strip():
                    raise Unusable(f"empty {text}")
            except Unusable as error:
                raise DataError(f"{where}: {error}", "mend the file of the items") from None
            code = texts.add(said)
            if self._codes.setdefault(key, code) != code:
                raise DataError(
                    f"{where}: item {key!r} has another text than before", "give it one text"
                )
            self._about[key] = {name: record[name] for name in wanted if name in record}

    def code(self, key: str) -> int:
        """Return the number of an item's text. Raises ``Unusable`` if there is no such item."""
        try:
            return self._codes[key]
        except KeyError:
            raise Unusable("item without a text") from None

    def about(self, key: Any) -> Mapping[str, Any]:
        """Return the wanted columns of an item; nothing of one that is not known."""
        return self._about.get(key, {}) if isinstance(key, str) else {}

    def report(self) -> dict[str, Any]:
        """Return what was read of the file, as the report says it of every source."""
        item, text = self.columns
        wanted = {name for about in self._about.values() for name in about}
        used = {"item": [item], "text": [text], **({"also": sorted(wanted)} if wanted else {})}
        known = {name: None for record in self.head for name in record}
        return {
            "file": written(self._path),
            "format": "items",
            "rows": self.rows,
            "columns_used": used,
            "columns_unused": [n for n in known if n not in {item, text, *wanted}],
            "prompt_cut_off": 0,
        }
