"""Write docs/report.png: the head of a run's report, as a browser shows it. Needs the browser of `make test-pages`.

python -m scripts.report_picture runs/demo
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "report.png"
WIDTH, HEIGHT = 1280, 1500
"""Pixels of the picture."""


def take_picture(run: Path, target: Path) -> None:
    """Write the picture of a run's report."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from browser import Browser, browser_command

    with tempfile.TemporaryDirectory(prefix="steptool-picture-") as folder:
        command = browser_command(Path(folder))
        if command is None:
            raise SystemExit("no browser: make test-pages brings one")
        browser = Browser(command)
        try:
            browser.resize(WIDTH, HEIGHT)
            browser.prefer("light")
            browser.command("Emulation.setScrollbarsHidden", hidden=True)
            browser.open((run / "report.html").resolve())
            target.write_bytes(browser.screenshot())
        finally:
            browser.close()


if __name__ == "__main__":
    take_picture(Path(sys.argv[1]), PICTURE)
