"""What a service was told of a run: a resumed run goes on there, and tells nothing twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rljax.host.files import write_whole
from rljax.host.secrets import redact

Kind = Literal["step", "eval"]


class Logged:
    """The service's id of the run, and the last step that it knows; kept in the run's folder.

    Another place, such as another server, knows nothing of it yet.
    """

    def __init__(self, file: Path, place: str):
        self._file = file
        self._told: dict[str, str | int] = {}
        if file.exists():
            self._told = json.loads(file.read_text(encoding="utf-8"))
        place = redact(place)
        if self._told.get("place") != place:
            self._told = {"place": place}

    def id(self, make: Callable[[], str]) -> tuple[str, bool]:
        """The id, and whether it is new: then ``make`` makes it."""
        is_new = "id" not in self._told
        if is_new:
            self._keep("id", make())
        return str(self._told["id"]), is_new

    def once(self, kind: Kind, step: int, log: Callable[[], None]) -> None:
        """Calls ``log``, unless a step as late as this was logged."""
        if step > int(self._told.get(kind, -1)):
            log()
            self._keep(kind, step)

    def _keep(self, name: str, value: str | int) -> None:
        self._told[name] = value
        write_whole(self._file, json.dumps(self._told) + "\n")
