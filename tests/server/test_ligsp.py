"""What an outside checker of local image servers finds (`ligsp check`, PyPI local-image-gen-security)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ligsp.__main__ import main

from .real import RealServer


@pytest.mark.parametrize("options", [[], ["--token", "correct horse"]])
def test_nothing_fails(tmp_path: Path, options: list[str]) -> None:
    server = RealServer(tmp_path / "data", None, "-m", "procedural", *options)
    report = tmp_path / "report.json"
    try:
        server.start()
        assert main(["check", server.url, "--json", str(report)]) == 0
    finally:
        server.stop()
    text = report.read_text(encoding="utf-8").lower()
    found = json.loads(text)
    assert '"fail": 0' in text or "fail" not in [
        one["status"] for target in found["targets"] for one in target["results"]
    ]
    kinds = [target["kind"] for target in found["targets"]]
    assert kinds == ["a1111"]
    passed = {one["id"]: one["status"] for target in found["targets"] for one in target["results"]}
    assert (passed["web-1"], passed["web-2"], passed["web-3"]) == ("pass", "pass", "pass")
    assert passed["net-1"] in ("pass", "unknown")  # the latter on a machine without a network
    assert passed["net-2"] == "pass"
