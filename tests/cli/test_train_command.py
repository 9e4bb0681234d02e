"""`avila train`: the result's path on stdout, progress on stderr, one line for what is wrong, Ctrl-C keeps the state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from avila_diffusion.cli import main
from avila_diffusion.images import Image

CONFIG = """
out = "vae.safetensors"
state = "state"
data = {{ folder = "pictures", size = 32 }}
model = {{ encoder_channels = [32, 32], decoder_channels = [32, 32] }}
train = {{ steps = {steps}, batch = 2, keep_every = 1000, sample_every = 1000 }}
"""


def prepare(folder: Path, steps: int) -> Path:
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image(np.full((32, 32, 3), 80 * number, np.uint8)).save_png(pictures / f"{number}.png")
    path = folder / "vae.toml"
    path.write_text(CONFIG.format(steps=steps), encoding="utf-8")
    return path


def test_a_run_says_where_the_result_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "vae", "--config", str(prepare(tmp_path, 2))]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()) == tmp_path / "vae.safetensors" and Path(out.strip()).exists()
    assert "step 2 of 2: reconstruction" in err
    rows = (tmp_path / "state" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rows[-1])["step"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "vae"], 2, "--config"),
        (["train", "vae", "--config", "none.toml"], 1, "cannot be read"),
        (["train", "gan", "--config", "none.toml"], 2, "invalid choice"),
        (["train", "vae", "--config", "vae.toml", "--minutes", "0"], 2, "above 0"),
        (["train", "lora", "--config", "vae.toml"], 2, "needs [model] base"),
        (["train", "unet", "--config", "vae.toml"], 2, "needs [model] vae"),
    ],
)
def test_one_line_for_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    prepare(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1


def heed_interrupts() -> None:
    """A shell lets what it starts in the background ignore them, tests too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that a test can send to one process alone")
def test_ctrl_c_keeps_the_state(tmp_path: Path) -> None:
    path = prepare(tmp_path, 10**6)
    command = [sys.executable, "-m", "avila_diffusion", "train", "vae", "--config", str(path)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    ) as process:
        assert process.stderr is not None
        assert "step 20 of 1,000,000" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopped after step" in err and "Traceback" not in err
    assert time.monotonic() - began < 50
    assert (tmp_path / "state" / "state.safetensors").exists() and not (tmp_path / "vae.safetensors").exists()
