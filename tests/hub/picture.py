"""docs/example/hub*.png: `python -m tests.hub.picture`. What the pages look like in a browser."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .browsing import Browsing
from .conftest import ROOT
from .showcase import Showcase, spread

SHOTS = (
    ("hub", "/", "light", 1100, 1120),
    ("hub-commits", "/commits", "dark", 390, 844),
)
"""Name, page, scheme, width and height."""


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with Showcase.served(root) as case:
            hub = case.hub
        spread(hub)
        hub.start()
        try:
            with Browsing.begin(root / "profile") as browsing:
                for shot, path, scheme, width, height in SHOTS:
                    seen = browsing.see(hub.url + path, scheme, width, height)
                    seen.page.screenshot(path=folder / f"{shot}.png")
                    seen.close()
        finally:
            hub.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "example")
