"""What of a request changes nothing is told in the result, and what changes something is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from avila_diffusion.api import AvilaDiffusion
from avila_diffusion.request import GenerateRequest


def ask(**options: Any) -> GenerateRequest:
    values = {"prompt": "a cat", "steps": 3, "seed": 5, "width": 64, "height": 64, "guidance_scale": 3.0, **options}
    return GenerateRequest(**values)


IDLE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"sampler": "Euler"}, {"s_noise": 1.2}, "s_noise was not used; Euler adds noise between steps with s_churn above 0"),
    ({"sampler": "Euler"}, {"s_tmin": 1.0, "s_tmax": 3.0}, "s_tmin and s_tmax were not used"),
    ({"sampler": "Euler"}, {"ensd": 31337}, "ensd was not used"),
    ({"sampler": "DPM++ 2M"}, {"ensd": 31337}, "ensd was not used; DPM++ 2M adds no noise between steps"),
    ({"sampler": "Restart", "steps": 19}, {"ensd": 5}, "Restart goes back to more noise from 20 steps on"),
    ({"sampler": "Euler a", "eta": 0.0}, {"s_noise": 1.2, "ensd": 5}, "s_noise and ensd were not used"),
    ({"sampler": "DPM fast", "eta": 0.0}, {"s_noise": 1.2}, "with eta 0"),
    ({"sampler": "Euler", "schedule": "Exponential"}, {"rho": 3.0}, "the schedule Exponential takes only sigma_min, sigma_max"),
    ({"sampler": "Euler", "schedule": "Simple"}, {"rho": 3.0, "sigma_min": 0.1}, "rho and sigma_min were not used"),
    ({"sampler": "Euler"}, {"sigma_max": 9.0}, "sigma_max was not used; the schedule Uniform takes none of these"),
    ({"sampler": "DDIM"}, {"schedule": "Karras", "rho": 3.0}, "schedule Karras and rho were not used; DDIM chooses"),
    ({"sampler": "DPM fast"}, {"sigma_max": 9.0}, "sigma_max was not used; DPM fast chooses"),
    ({"sampler": "Euler"}, {"variation_seed": 5}, "variation_seed was not used; variation_strength is 0"),
    ({"sampler": "Euler"}, {"ngms_all": True}, "ngms_all was not used; ngms is 0"),
    ({"sampler": "Euler", "guidance_list": (3.0,) * 3}, {"guidance_list": (3.0,) * 5}, "the last 2 of guidance_list"),
    ({"sampler": "Euler", "guidance_scale": 1}, {"ngms": 9.0, "guidance_stop": 0.5}, "ngms and guidance_stop were not used"),
    ({"sampler": "Euler", "guidance_scale": 1}, {"guidance_rescale": 0.5, "skip_early": 0.5}, "because guidance is off"),
    ({"sampler": "Euler", "s_churn": 1.0, "s_tmin": 5.0}, {"s_tmax": 1.0}, "s_tmin 5 lies above s_tmax 1"),
]  # fmt: skip
USED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"sampler": "Euler", "s_churn": 1.0}, {"s_noise": 1.2}),
    ({"sampler": "Euler", "s_churn": 1.0}, {"ensd": 31337}),
    ({"sampler": "Euler a"}, {"s_noise": 1.2}),
    ({"sampler": "Euler a"}, {"ensd": 31337}),
    ({"sampler": "LCM"}, {"ensd": 31337}),
    ({"sampler": "Restart", "steps": 20}, {"ensd": 31337}),
    ({"sampler": "DDIM", "eta": 1.0}, {"ensd": 31337}),
    ({"sampler": "DPM fast", "eta": 1.0}, {"s_noise": 1.2}),
    ({"sampler": "DPM++ 2M"}, {"rho": 3.0}),
    ({"sampler": "Euler", "schedule": "Exponential"}, {"sigma_min": 0.1}),
    ({"sampler": "DDIM", "compat": "comfyui"}, {"schedule": "Karras"}),
    ({"sampler": "DPM fast", "compat": "comfyui", "schedule": "Karras"}, {"sigma_max": 9.0}),
    ({"sampler": "Euler a", "variation_strength": 0.5, "variation_seed": 4}, {"variation_seed": 5}),
    ({"sampler": "Euler", "negative_prompt": "rain"}, {"ngms": 99.0}),
    ({"sampler": "Euler", "negative_prompt": "rain", "ngms": 99.0}, {"ngms_all": True}),
]


@pytest.mark.parametrize(("base", "change", "told"), IDLE)
def test_what_changes_nothing_is_told(
    base: dict[str, Any], change: dict[str, Any], told: str, make_engine: Any, finish: Any
) -> None:
    engine = make_engine()
    if "s_churn" not in base:
        assert finish(engine.generate(ask(**base))).notes == ()
    made = finish(engine.generate(ask(**{**base, **change})))
    (note,) = made.notes
    assert told in note and "\n" not in note
    plain = {"s_churn": 0.0, "s_tmin": None} if "s_churn" in base else {}
    assert made.to_numpy().tobytes() == finish(engine.generate(ask(**{**base, **plain}))).to_numpy().tobytes()


@pytest.mark.parametrize(("base", "change"), USED)
def test_what_changes_something_is_not(
    base: dict[str, Any], change: dict[str, Any], make_engine: Any, finish: Any
) -> None:
    engine = make_engine()
    before, after = finish(engine.generate(ask(**base))), finish(engine.generate(ask(**{**base, **change})))
    assert after.notes == ()
    assert before.to_numpy().tobytes() != after.to_numpy().tobytes()


def test_without_a_model_most_fields_mean_nothing() -> None:
    plain = ask(steps=20, guidance_scale=7.0)
    (result,) = [one for one in AvilaDiffusion().generate(plain) if hasattr(one, "notes")]
    assert result.notes == ()
    asked = replace(plain, steps=3, sampler="Euler a", variation_seed=4)
    (result,) = [one for one in AvilaDiffusion().generate(asked) if hasattr(one, "notes")]
    assert result.notes == ("steps, sampler, variation_seed were not used; nothing of a model is in this picture",)
