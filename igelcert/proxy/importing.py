"""Devices from CSV, all or none: read and checked first, step by step, then written at once."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

import sqlalchemy as sa

from ..errors import SettingsError
from . import devices
from .audit import actor
from .context import Context
from .database import now
from .devices import Token
from .schema import devices as device_table

__all__ = ["MAX_SHEET", "Import", "token_sheet"]

MAX_DEVICES = 100_000
MAX_SHEET = 4_000_000  # octets
STEP = 500  # rows between two words of progress
COLUMNS = {"unit_id", "directory", "hostname"}


class Import:
    """A sheet with the heading unit_id, directory, hostname (the last two may be missing).

    SettingsError names the line.
    """

    def __init__(self, text: str) -> None:
        text = text.removeprefix("\ufeff")
        self.total = max(0, len(text.splitlines()) - 1)  # lines, not quite rows: for progress alone
        self._reader = csv.DictReader(io.StringIO(text), strict=True, delimiter=_delimiter(text))
        try:
            columns = [name.strip().lower() for name in self._reader.fieldnames or ()]
        except csv.Error as err:
            raise SettingsError("line 1", f"is not CSV: {err}") from None
        if "unit_id" not in columns or not set(columns) <= COLUMNS or len(set(columns)) != len(columns):
            raise SettingsError("line 1", "is not the heading unit_id,directory,hostname")
        self._reader.fieldnames = columns
        self._rows: list[tuple[int, str, str, str]] = []

    def check(self) -> Iterator[int]:
        """Reads and checks every row; tells how many are done, now and then. Once, before `write`."""
        units: set[str] = set()
        names: dict[str, str] = {}
        places: dict[str, str] = {}
        while True:
            try:
                row = next(self._reader, None)
                if row is None:
                    break
                self._row(row, units, names, places)
            except SettingsError as err:
                raise self._at(self._reader.line_num, err) from None
            except csv.Error as err:
                raise SettingsError(f"line {self._reader.line_num}", f"is not CSV: {err}") from None
            if len(self._rows) % STEP == 0:
                yield len(self._rows)
        yield len(self._rows)

    def _row(
        self,
        row: dict[str | None, str | None],
        units: set[str],
        names: dict[str, str],
        places: dict[str, str],
    ) -> None:
        if None in row:
            raise SettingsError("", "has more fields than the heading")
        if len(self._rows) >= MAX_DEVICES:
            raise SettingsError("", f"more than {MAX_DEVICES} devices at once")
        unit_id = devices.check_unit((row["unit_id"] or "").strip())
        given = (row.get("directory") or "/").strip()
        if given not in places:
            places[given] = devices.check_directory(given)
        hostname = (row.get("hostname") or "").strip()
        if unit_id in units:
            raise SettingsError("--unit-id", f"{unit_id} is in this file twice")
        units.add(unit_id)
        if hostname:
            devices.check_hostname_text(hostname)
            if owner := names.get(hostname.lower()):
                raise SettingsError("--hostname", f"{hostname} is the host name of device {owner}")
            names[hostname.lower()] = unit_id
        self._rows.append((self._reader.line_num, unit_id, places[given], hostname))

    def write(self, context: Context) -> list[Token]:
        """Adds them all, each with its registration token."""
        moment = now()
        with context.db.begin() as connection:
            known: dict[str, str] = {}
            taken: dict[str, str] = {}
            for row in connection.execute(sa.select(device_table.c.unit_id, device_table.c.hostname)):
                known[row.unit_id] = row.hostname
                taken.setdefault(row.unit_id.lower(), row.unit_id)
                if row.hostname:
                    taken[row.hostname.lower()] = row.unit_id
            for _, unit_id, _, _ in self._rows:
                taken.setdefault(unit_id.lower(), unit_id)
            for line, unit_id, _directory, hostname in self._rows:
                if unit_id in known:
                    raise SettingsError(f"line {line}", f"unit-id: {unit_id} is known already")
                if hostname and (owner := taken.get(hostname.lower(), unit_id)) != unit_id:
                    raise SettingsError(
                        f"line {line}", f"hostname: {hostname} is the host name of device {owner}"
                    )
            made = devices.insert_many(
                connection,
                [
                    devices.fresh_row(unit_id, directory, hostname)
                    for _, unit_id, directory, hostname in self._rows
                ],
                moment,
            )
            context.db.record(connection, actor(), "device import", f"{len(made)} devices")
        return made

    @staticmethod
    def _at(line: int, err: SettingsError) -> SettingsError:
        return SettingsError(f"line {line}", str(err).removeprefix("--"), hint=err.hint)


def token_sheet(made: Iterable[Token]) -> str:
    """CSV with unit_id, token, expires."""
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(("unit_id", "token", "expires"))
    writer.writerows((token.unit_id, token.token, token.expires) for token in made)
    return sheet.getvalue()


def _delimiter(text: str) -> str:
    head = text.partition("\n")[0]
    return ";" if ";" in head and "," not in head else ","
