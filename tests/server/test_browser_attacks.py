"""Pages of others, and texts of others, in a real browser against the real server."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .page_visit import Watch
from .real import RealServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REQUEST = {"prompt": "a sunset", "width": 64, "height": 64, "seed": 1}

ATTACK = """
async (target) => {
  const job = JSON.stringify({request: {prompt: "x", width: 64, height: 64}});
  const told = [];
  const paths = ["/api/v1/jobs", "/sdapi/v1/txt2img", "/v1/images/generations"];
  const bodies = [job, JSON.stringify({prompt: "x", width: 64, height: 64, steps: 1, size: "64x64"})];
  const attempt = async (name, work) => {
    try { told.push([name, await work()]); } catch (error) { told.push([name, "refused"]); }
  };
  for (const path of paths) {
    for (const body of bodies) {
      for (const type of ["application/json", "text/plain", "application/x-www-form-urlencoded"]) {
        for (const mode of ["cors", "no-cors"]) {
          for (const credentials of ["omit", "include"]) {
            await attempt(`fetch ${path} ${type} ${mode}`, async () => {
              const answer = await fetch(target + path, {
                method: "POST", body, mode, credentials, headers: {"Content-Type": type},
              });
              return answer.type === "opaque" ? "opaque" : await answer.text();
            });
          }
        }
      }
      navigator.sendBeacon(target + path, body);
      navigator.sendBeacon(target + path, new Blob([body], {type: "text/plain"}));
    }
    for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
      const frame = document.createElement("iframe");
      frame.name = "f" + Math.random();
      document.body.append(frame);
      const form = document.createElement("form");
      form.method = "post"; form.enctype = enctype; form.action = target + path; form.target = frame.name;
      const field = document.createElement("input");
      field.name = job.slice(0, -1) + ',"x":"'; field.value = '"}';
      form.append(field); document.body.append(form); form.submit();
    }
    for (const method of ["GET", "PUT", "DELETE", "PATCH"]) {
      await attempt(`${method} ${path}`, async () => (await fetch(target + path, {method})).text());
    }
    const image = new Image();
    await new Promise((done) => { image.onload = image.onerror = done; image.src = target + path + "?prompt=x"; });
  }
  for (const path of ["/api/v1/jobs?all=true", "/api/v1/models", "/sdapi/v1/options", "/openapi.json", "/metrics", "/"]) {
    await attempt(`read ${path}`, async () => (await fetch(target + path, {credentials: "include"})).text());
  }
  await attempt("script", () => new Promise((done, failed) => {
    const script = document.createElement("script");
    script.onload = () => done("loaded"); script.onerror = failed; script.src = target + "/page/main.js";
    document.body.append(script);
  }));
  await attempt("events", () => new Promise((done, failed) => {
    const source = new EventSource(target + "/api/v1/jobs/x/events");
    source.onopen = () => done("open"); source.onerror = () => { source.close(); failed(); };
  }));
  await attempt("socket", () => new Promise((done, failed) => {
    const socket = new WebSocket(target.replace("http", "ws") + "/api/v1/jobs");
    socket.onopen = () => done("open"); socket.onerror = failed;
  }));
  await new Promise((done) => setTimeout(done, 700));
  const frames = [...document.querySelectorAll("iframe")].map((frame) => {
    try { return frame.contentDocument ? frame.contentDocument.body.innerText : ""; } catch (error) { return ""; }
  });
  return {told, frames};
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--host-resolver-rules=MAP *.example 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=found, args=options)
        yield browser
        browser.close()


class Page(BaseHTTPRequestHandler):
    """An empty page, whatever is asked for."""

    def do_GET(self) -> None:
        content = b"<!doctype html><title>evil</title><body></body>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """The port of another server, whose pages attack."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as other:
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        yield int(other.server_address[1])
        other.shutdown()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    yield from running(tmp_path_factory, None)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    yield from running(tmp_path_factory, "correct horse")


def running(folders: pytest.TempPathFactory, token: str | None) -> Iterator[RealServer]:
    """A server, with a token perhaps."""
    folder = folders.mktemp("attacked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVILA_CACHE", str(folder / "cache"))
        options = [] if token is None else ["--token", token]
        with RealServer(folder / "data", None, "-m", "procedural", *options) as server:
            yield server


def jobs(server: RealServer, **headers: str) -> int:
    """How many were ever made, of all dialects."""
    counted = server.get("/metrics", **headers).decode()
    rows = [line for line in counted.splitlines() if line.startswith("avila_jobs_accepted_total")]
    return sum(int(float(row.rpartition(" ")[2])) for row in rows)


def refused(server: RealServer, **headers: str) -> int:
    """How many calls were, because of where they come from."""
    counted = server.get("/metrics", **headers).decode()
    rows = [line for line in counted.splitlines() if line.startswith('avila_calls_rejected_total{reason="origin"}')]
    return sum(int(float(row.rpartition(" ")[2])) for row in rows)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "evil.example"])
def test_a_page_on_another_port(browser: Browser, plain: RealServer, elsewhere: int, name: str) -> None:
    before = refused(plain)
    attack(browser, plain, f"http://{name}:{elsewhere}/")
    assert refused(plain) > before + 20  # the calls did arrive
    assert jobs(plain) == 0
    assert plain.get("/api/v1/jobs?all=true")["jobs"] == []


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_page_on_another_port_while_somebody_is_signed_in(
    browser: Browser, guarded: RealServer, elsewhere: int, name: str
) -> None:
    """Cookies know no ports: a page of 127.0.0.1 on another one has the cookie sent along."""
    attack(browser, guarded, f"http://{name}:{elsewhere}/", token="correct horse")
    assert jobs(guarded, Authorization="Bearer correct horse") == 0


def attack(browser: Browser, server: RealServer, page: str, token: str | None = None) -> None:
    """Let a page try everything; nothing of the server may be read by it."""
    context = browser.new_context()
    context.set_default_timeout(30_000)
    try:
        if token is not None:
            tab = context.new_page()
            tab.goto(server.url + "/")
            sign_in = "t => fetch('/api/v1/session', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: t})"
            assert tab.evaluate(f'({sign_in})(\'{{"token": "{token}"}}\').then(a => a.status)') == 200
            assert tab.evaluate("fetch('/api/v1/jobs').then(a => a.status)") == 200
        tab = context.new_page()
        tab.goto(page)
        found = tab.evaluate(f"({ATTACK})({server.url!r})")
    finally:
        context.close()
    assert {outcome for _, outcome in found["told"]} <= {"refused", "opaque"}, found["told"]
    assert "".join(found["frames"]).strip() == ""


def test_a_name_that_was_made_to_point_here(browser: Browser, plain: RealServer) -> None:
    """DNS rebinding: to the browser the page and the server are of one origin."""
    before = jobs(plain)
    context = browser.new_context()
    try:
        tab = context.new_page()
        answer = tab.goto(f"http://rebound.example:{plain.port}/")
        assert answer is not None and answer.status == 421
        post = "fetch('/api/v1/jobs', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}'})"
        assert tab.evaluate(f"{post}.then(a => a.status)") == 421
        assert tab.evaluate("fetch('/api/v1/jobs').then(a => a.status)") == 421
    finally:
        context.close()
    assert jobs(plain) == before


HTML = "<img src=x onerror='window.xss=1'><script>window.xss=2</script><svg onload='window.xss=3'>"
SHORT = "<img src=x onerror=xss=4>"


@pytest.mark.skipif(sys.platform == "win32", reason="names of files hold no < there")
def test_texts_of_others_stay_texts(browser: Browser, tmp_path: Path, models_folder: Path) -> None:
    """Prompts, names of models, styles and problems with HTML in them, on the page under its own policy."""
    models = tmp_path / "models"
    (models / "Stable-diffusion").mkdir(parents=True)
    shutil.copy(
        models_folder / "Stable-diffusion" / "tiny.safetensors", models / "Stable-diffusion" / f"{SHORT}.safetensors"
    )
    (models / "styles.csv").write_text(
        f'name,prompt,negative_prompt\n"{SHORT}","{SHORT}, {{prompt}}",""\n', encoding="utf-8"
    )
    with RealServer(tmp_path / "data", models) as server:
        made = []
        for values in ({}, {"model": "procedural"}, {"model": "procedural", "task": SHORT}):
            request = {**REQUEST, "prompt": HTML, "steps": 2}
            request |= {} if values else {"negative_prompt": HTML}
            status, job = server.post("/api/v1/jobs", {"request": request, **values})
            assert status == 202, job
            made.append(job["id"])
        until = time.monotonic() + 60
        while time.monotonic() < until:
            states = {server.get(f"/api/v1/jobs/{id}")["state"] for id in made}
            if states <= {"done", "failed"}:
                break
            time.sleep(0.05)
        assert states == {"done"}
        show(browser, server, len(made))


def show(browser: Browser, server: RealServer, pictures: int) -> None:
    """Look at everything; no script may have run."""
    context = browser.new_context(locale="en-US", viewport={"width": 1280, "height": 860})
    context.set_default_timeout(15_000)
    try:
        tab = context.new_page()
        watch = Watch(server.url)
        watch.follow(tab)
        answer = tab.goto(server.url + "/")
        assert answer is not None and "script-src 'self'" in answer.headers["content-security-policy"]
        tab.wait_for_function("n => document.querySelectorAll('#gallery-grid img').length === n", arg=pictures)
        for number in range(pictures):
            tab.click(f"#gallery-grid li:nth-child({number + 1}) button")
            tab.wait_for_selector("#viewer[open]")
            assert HTML in tab.inner_text("#viewer") or SHORT in tab.inner_text("#viewer")
            tab.keyboard.press("Escape")
        tab.click("#about-model")
        tab.wait_for_selector("#report-lines")
        tab.keyboard.press("Escape")
        newest = server.get("/api/v1/jobs?all=true")["jobs"][0]
        data = server.call("GET", newest["results"][0]["url"])[1]
        tab.set_input_files("#read-file", {"name": SHORT + ".png", "mimeType": "image/png", "buffer": data})
        tab.wait_for_selector("#metadata", state="visible")
        assert HTML in tab.inner_text("#metadata-values")
        tab.keyboard.press("Escape")
        assert tab.evaluate("window.xss") is None
        assert tab.evaluate("document.querySelectorAll('img[onerror], svg[onload], body script').length") == 0
        assert watch.wrong == []
        answer = tab.goto(server.url + newest["url"])  # what is JSON is shown as text
        assert answer is not None and answer.headers["x-content-type-options"] == "nosniff"
        assert tab.evaluate("window.xss") is None
    finally:
        context.close()
