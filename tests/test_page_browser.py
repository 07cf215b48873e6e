"""The report's page in a real browser, driven over the pipe of its DevTools: what it loads, draws and complains of."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from threading import Timer
from typing import Any

import matplotlib.image
import pytest

from physrep.page import Picture, page
from physrep.report import write
from physrep.tables import table
from tests.test_report import rows, several

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-pipe"]
OFF = ["gpu", "dev-shm-usage", "quic", "background-networking", "component-update", "sync"]
found = [path for path in map(shutil.which, BROWSERS) if path]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not found, reason=f"no browser here: {', '.join(BROWSERS)} not found"),
]

LOOK = """(() => {
    const root = document.documentElement, wide = [...document.querySelectorAll(".wide")]
    return {
        images: [...document.images].map(image => image.complete ? image.naturalWidth : 0),
        overflow: root.scrollWidth - root.clientWidth,
        lost: wide.filter(box => box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX != "auto").length,
        color: getComputedStyle(document.body).color,
    }
})()"""


class Browser:
    """A headless browser; it reads commands from its descriptor 3 and writes answers and events to 4."""

    def __init__(self, profile: Path) -> None:
        line = ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh"]
        line += [found[0], *FLAGS, *(f"--disable-{name}" for name in OFF), f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.count, self.events, self.rest = 0, list[dict[str, Any]](), b""

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = self.process.stdout.read1()
            assert part, "the browser has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are kept."""
        self.count += 1
        asked = {"id": self.count, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self.process.stdin.write(json.dumps(asked).encode() + b"\0")
        self.process.stdin.flush()
        while (said := self.read()).get("id") != self.count:
            self.events.append(said)
        assert "result" in said, said
        return said["result"]

    def look(self, path: Path, width: int = 1400, scheme: str = "light") -> dict[str, Any]:
        """Open a file in a window of this width and say what was seen, requested and complained of."""
        guard = Timer(120, self.process.kill)  # a pipe has no timeout
        guard.start()
        try:
            seen = self.open(path.as_uri(), width, scheme)
        finally:
            guard.cancel()
        of = {name: [e["params"] for e in self.events if e["method"] == name] for name in (
            "Network.requestWillBeSent", "Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"
        )}  # fmt: skip
        urls = [event["request"]["url"] for event in of.pop("Network.requestWillBeSent")]
        outside = [url for url in urls if not url.startswith("data:") and url != path.as_uri()]
        return seen | {"outside": outside, "complaints": [event for events in of.values() for event in events]}

    def open(self, url: str, width: int, scheme: str) -> dict[str, Any]:
        """Open an address in a window of its own until it is loaded, keep what happens, and return what LOOK finds."""
        self.events.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable", session)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        dark = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", session, features=[dark])
        self.call("Page.navigate", session, url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())
        seen = self.call("Runtime.evaluate", session, expression=LOOK, returnByValue=True)["result"]["value"]
        self.call("Target.closeTarget", targetId=target)
        return seen


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of two sections with tables of all kinds, a curve, warnings and long names."""
    out = tmp_path_factory.mktemp("report")
    run = out / "a_run_whose_folder_has_a_rather_long_name-shear_flow-jepa-conv-seed0"
    run.mkdir()
    (run / "metrics.csv").write_text("step,name,value\n0,valid/loss,2\n9,valid/loss,1\n9,probe/mse,0.5\n")
    made = several(["statistics", "random", "supervised", "jepa"], ["ridge"], seeds=1)
    made += rows("jepa", labels=0.1) + rows("random", layer="stage1") + rows("jepa", layer="stage1")
    made += rows("jepa", fingerprint="beef", run=str(run))
    missing = ["Missing: of 4 planned runs 1 failed.", f"Failed: {run.name}: {'/'.join(['path'] * 60)}"]
    write("dev & more", table(made, resamples=20), out, missing)
    return out / "report.html"


@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_its_window_and_is_whole_by_itself(browser, report, width):
    seen = browser.look(report, width)
    assert len(seen["images"]) == 7  # four figures, two, and the curves
    assert all(seen["images"])
    assert (seen["outside"], seen["complaints"], seen["overflow"], seen["lost"]) == ([], [], 0, 0)


def test_the_page_follows_the_readers_colours(browser, report):
    colors = {scheme: browser.look(report, scheme=scheme)["color"] for scheme in ("light", "dark")}
    assert colors == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}


@pytest.mark.parametrize(
    ("spoiled", "what"),
    [
        ("<img src='data:image/png;base64,AAAA'>", "images"),
        ("<img src='http://127.0.0.1:9/logo.png'>", "outside"),
        ("<link rel=stylesheet href=style.css>", "outside"),
        ("<div style='width: 3000px'>wide</div>", "overflow"),
        ("<script>throw new Error('no')</script>", "complaints"),
        ("<script>console.error('no')</script>", "complaints"),
    ],
)
def test_a_page_that_is_not_so_is_caught(browser, tmp_path, spoiled, what):
    sections = table(several(["random", "jepa"], probes=["ridge"]), resamples=5)
    matplotlib.image.imsave(picture := io.BytesIO(), [[0, 1]], format="png")
    text = page("dev", sections, [[Picture("two cells", picture.getvalue())]])
    (tmp_path / "page.html").write_text(text)
    whole = browser.look(tmp_path / "page.html")
    assert whole["images"] == [2] and not any(whole[key] for key in ("outside", "complaints", "overflow"))
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{spoiled}</body>"))
    seen = browser.look(tmp_path / "page.html")
    assert not all(seen["images"]) if what == "images" else seen[what]
