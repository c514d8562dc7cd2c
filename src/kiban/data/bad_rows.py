"""What a reader does with rows that it cannot use."""

from __future__ import annotations

import json
from pathlib import Path

from kiban.data.tables import OnBadRow
from kiban.errors import DatasetError


class BadRows:
    """Stops at the first; with on_bad_row="skip" leaves them out, counts them, and writes JSON lines to quarantine."""

    def __init__(self, on_bad_row: OnBadRow, quarantine: Path | None) -> None:
        self.on_bad_row, self.quarantine = on_bad_row, quarantine
        self.bad_rows = 0
        self._first_bad: DatasetError | None = None

    def _begin(self) -> None:
        """Forget what an earlier reading found."""
        self.bad_rows, self._first_bad = 0, None
        if self.quarantine is not None:
            self.quarantine.unlink(missing_ok=True)

    def _bad(self, path: Path, line: int | None, offset: int | None, why: str, raw: str) -> None:
        """Raises DatasetError if bad rows are not left out."""
        error = DatasetError(path, line=line, offset=offset, why=why, hint="mend it, or pass --on-bad-row skip")
        if self.on_bad_row == "stop":
            raise error
        self.bad_rows += 1
        self._first_bad = self._first_bad or DatasetError(path, line=line, offset=offset, why=why)
        if self.quarantine is not None:
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            row = {"source": str(path), "line": line, "offset": offset, "why": why, "raw": raw}
            data = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")
            with self.quarantine.open("ab") as file:
                file.write(data + b"\n")
