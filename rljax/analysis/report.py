"""The report of runs: one HTML file that needs nothing else, and asks for nothing.

What it shows lies in it as JSON, in which no ``<`` is left; its script puts text into the page as
text alone, and its content security policy lets neither another script run nor anything be loaded.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from rljax.host.metrics import json_text

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("charts.js", "explorer.js", "page.js")


def report_page(data: dict[str, Any]) -> str:
    """The page that shows what ``rljax.analysis.contents`` made."""
    style = (PAGE / "page.css").read_text("utf-8")
    script = "\n".join((PAGE / name).read_text("utf-8") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "STYLE": style, "DATA": embedded(data), "SCRIPT": script}
    pieces = (PAGE / "page.html").read_text("utf-8").split("%%")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def embedded(data: Any) -> str:
    """JSON that stands between the tags of a script, whatever texts it holds.

    >>> embedded("</script><!--")
    '"\\\\u003c/script\\\\u003e\\\\u003c!--"'
    """
    text = json_text(data)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _digest(text: str) -> str:
    """Of a script or style, as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
