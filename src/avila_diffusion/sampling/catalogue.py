"""The samplers there are: a row each, with every fact that is not its update rule. No torch.

The keys are ComfyUI's and k-diffusion's names; the display names are AUTOMATIC1111's (Forge's for what that lacks), which
stand in the metadata of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grid = Literal["schedule", "ddim", "unipc", "range"]
Calls = Literal["one", "two", "three", "extra", "restart", "adaptive"]

ETA = ("eta",)
S_NOISE = ("s_noise",)
CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")


@dataclass(frozen=True, kw_only=True)
class SamplerInfo:
    """One sampler.

    key: of the function in `samplers.SAMPLERS`. name: as AUTOMATIC1111 writes it. aliases: other names it is known by.
    automatic: key of the schedule that "Automatic" means for it.
    grid: where its noise levels come from: the chosen schedule ("schedule"), DDIM's own timesteps ("ddim"), as many
        levels uniform in time ("unipc"), or the two ends of the noise only ("range"). The last three ignore the schedule.
    denoiser: "lcm" where x0 is predicted on the 50 timesteps of latent consistency models, with their boundary scaling.
    order: of convergence to the solution of the probability-flow ODE, None where noise is added or it is not fixed.
    calls: model calls a step: one, two (one for a step to 0), HeunPP2's three, one more for the whole run ("extra"),
        Restart's, or as many as the error asks for ("adaptive").
    second_order: counted as two model calls a step in prompt schedules, as AUTOMATIC1111 does.
    stochastic: draws noise between steps at its default options. brownian: that noise is increments of a Brownian path.
    options: which of eta, s_noise, s_churn, s_tmin and s_tmax it takes. eta: the default of the first.
    discard_penultimate: one more level is computed and the last before 0 is left out.
    ends: "zero", or the last level of its grid ("lowest"), which is then not 0. table: takes the model's noise table.
    uncond: wants the unguided prediction too (CFG++). guidance_divisor: what the guidance scale is divided by for it.
    text_start: the first latent is noise * sigma ("scaled") or unit noise of the variance-preserving process, which is
        noise * sqrt(1 + sigma^2) ("unit").
    image_start: the picture is noised to the first level of the run ("first"), or in the variance-preserving process
        to the level above it ("above"), as AUTOMATIC1111 does for DDIM and its kin.
    """

    key: str
    name: str
    aliases: tuple[str, ...]
    paper: str
    automatic: str = "uniform"
    grid: Grid = "schedule"
    denoiser: Literal["table", "lcm"] = "table"
    order: int | None = None
    calls: Calls = "one"
    second_order: bool = False
    stochastic: bool = False
    brownian: bool = False
    options: tuple[str, ...] = ()
    eta: float | None = None
    discard_penultimate: bool = False
    ends: Literal["zero", "lowest"] = "zero"
    uncond: bool = False
    guidance_divisor: float = 1.0
    table: bool = False
    text_start: Literal["scaled", "unit"] = "scaled"
    image_start: Literal["first", "above"] = "first"

    @property
    def uses_eta(self) -> bool:
        """Whether the sampler takes an eta at all."""
        return "eta" in self.options


_SAMPLERS = (
    SamplerInfo(
        key="dpmpp_2m",
        name="DPM++ 2M",
        aliases=(
            "k_dpmpp_2m",
            "dpm++2m",
            "DPM-Solver++(2M)",
            "sample_dpmpp_2m",
            "DPMSolverMultistepScheduler",
            "EDMDPMSolverMultistepScheduler",
        ),
        paper="Lu et al. 2022, DPM-Solver++, arXiv:2211.01095, algorithm 2",
        automatic="karras",
        order=2,
    ),
    SamplerInfo(
        key="dpmpp_sde",
        name="DPM++ SDE",
        aliases=("k_dpmpp_sde", "dpmpp_sde_gpu", "dpm++sde", "sample_dpmpp_sde", "DPMSolverSDEScheduler"),
        paper="DPM-Solver++(2S) of Lu et al. 2022, arXiv:2211.01095, on the SDE, by Crowson (k-diffusion)",
        automatic="karras",
        calls="two",
        second_order=True,
        stochastic=True,
        brownian=True,
        options=ETA + S_NOISE,
        eta=1.0,
    ),
    SamplerInfo(
        key="dpmpp_2m_sde",
        name="DPM++ 2M SDE",
        aliases=("k_dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpm++2m_sde", "dpm++2m_sde_bt", "sample_dpmpp_2m_sde"),
        paper="SDE-DPM-Solver++(2M) of Lu et al. 2022, arXiv:2211.01095, midpoint (k-diffusion)",
        automatic="exponential",
        stochastic=True,
        brownian=True,
        options=ETA + S_NOISE,
        eta=1.0,
    ),
    SamplerInfo(
        key="dpmpp_2m_sde_heun",
        name="DPM++ 2M SDE Heun",
        aliases=("k_dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu"),
        paper="SDE-DPM-Solver++(2M) of Lu et al. 2022, arXiv:2211.01095, Heun (k-diffusion)",
        automatic="exponential",
        stochastic=True,
        brownian=True,
        options=ETA + S_NOISE,
        eta=1.0,
    ),
    SamplerInfo(
        key="dpmpp_2s_ancestral",
        name="DPM++ 2S a",
        aliases=(
            "k_dpmpp_2s_a",
            "k_dpmpp_2s_ancestral",
            "dpm++2s_a",
            "sample_dpmpp_2s_ancestral",
        ),
        paper="DPM-Solver++(2S) of Lu et al. 2022, arXiv:2211.01095, with the ancestral step of Euler a (k-diffusion)",
        automatic="karras",
        calls="two",
        second_order=True,
        stochastic=True,
        options=ETA + S_NOISE,
        eta=1.0,
    ),
    SamplerInfo(
        key="dpmpp_3m_sde",
        name="DPM++ 3M SDE",
        aliases=("k_dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "sample_dpmpp_3m_sde"),
        paper="DPM-Solver++(3M) of Lu et al. 2022, arXiv:2211.01095, on the SDE, by Crowson (k-diffusion)",
        automatic="exponential",
        stochastic=True,
        brownian=True,
        options=ETA + S_NOISE,
        eta=1.0,
        discard_penultimate=True,
    ),
    SamplerInfo(
        key="euler_ancestral",
        name="Euler a",
        aliases=(
            "k_euler_a",
            "k_euler_ancestral",
            "euler_a",
            "sample_euler_ancestral",
            "EulerAncestralDiscreteScheduler",
        ),
        paper="Song et al. 2021, arXiv:2010.02502, in the noise levels of Karras et al. 2022 (k-diffusion)",
        stochastic=True,
        options=ETA + S_NOISE,
        eta=1.0,
    ),
    SamplerInfo(
        key="euler",
        name="Euler",
        aliases=("k_euler", "sample_euler", "EulerDiscreteScheduler", "EDMEulerScheduler"),
        paper="Karras et al. 2022, arXiv:2206.00364, algorithm 2 without the correction",
        order=1,
        options=CHURN,
    ),
    SamplerInfo(
        key="lms",
        name="LMS",
        aliases=("k_lms", "sample_lms", "LMSDiscreteScheduler"),
        paper="linear multistep (Adams-Bashforth) of order 4 on the ODE of Karras et al. 2022, by Crowson (k-diffusion)",
        order=4,
    ),
    SamplerInfo(
        key="heun",
        name="Heun",
        aliases=("k_heun", "sample_heun", "HeunDiscreteScheduler"),
        paper="Karras et al. 2022, arXiv:2206.00364, algorithm 2",
        order=2,
        calls="two",
        second_order=True,
        options=CHURN,
    ),
    SamplerInfo(
        key="heunpp2",
        name="HeunPP2",
        aliases=("heun++2", "heunpp", "k_heunpp2", "sample_heunpp2"),
        paper="Heun's method with up to three weighted slopes, by Hosik Choi (ComfyUI and Forge)",
        order=1,
        calls="three",
        options=CHURN,
    ),
    SamplerInfo(
        key="dpm_2",
        name="DPM2",
        aliases=("k_dpm_2", "DPM-Solver-2", "kdpm_2", "sample_dpm_2", "KDPM2DiscreteScheduler"),
        paper="Lu et al. 2022, DPM-Solver, arXiv:2206.00927, as the midpoint rule of Karras et al. 2022 (k-diffusion)",
        automatic="karras",
        order=2,
        calls="two",
        second_order=True,
        options=CHURN,
        discard_penultimate=True,
    ),
    SamplerInfo(
        key="dpm_2_ancestral",
        name="DPM2 a",
        aliases=(
            "k_dpm_2_a",
            "k_dpm_2_ancestral",
            "dpm2_a",
            "kdpm_2_a",
            "kdpm_2_ancestral",
            "sample_dpm_2_ancestral",
            "KDPM2AncestralDiscreteScheduler",
        ),
        paper="DPM2 with the ancestral step of Euler a (k-diffusion)",
        automatic="karras",
        calls="two",
        second_order=True,
        stochastic=True,
        options=ETA + S_NOISE,
        eta=1.0,
        discard_penultimate=True,
    ),
    SamplerInfo(
        key="dpm_fast",
        name="DPM fast",
        aliases=("k_dpm_fast", "sample_dpm_fast"),
        paper="Lu et al. 2022, DPM-Solver, arXiv:2206.00927, DPM-Solver-fast (k-diffusion)",
        grid="range",
        stochastic=True,
        options=ETA + S_NOISE,
        eta=1.0,
        ends="lowest",
    ),
    SamplerInfo(
        key="dpm_adaptive",
        name="DPM adaptive",
        aliases=("k_dpm_ad", "k_dpm_adaptive", "sample_dpm_adaptive"),
        paper="Lu et al. 2022, DPM-Solver, arXiv:2206.00927, DPM-Solver-12 and -23 with step size control (k-diffusion)",
        grid="range",
        calls="adaptive",
        stochastic=True,
        options=ETA + S_NOISE,
        eta=1.0,
        ends="lowest",
    ),
    SamplerInfo(
        key="restart",
        name="Restart",
        aliases=("k_restart", "restart_sampler"),
        paper="Xu et al. 2023, Restart Sampling, arXiv:2306.14878",
        automatic="karras",
        calls="restart",
        second_order=True,
        stochastic=True,
        options=S_NOISE,
    ),
    SamplerInfo(
        key="ddim",
        name="DDIM",
        aliases=("k_ddim", "DDIMScheduler", "DDIMParallelScheduler"),
        paper="Song et al. 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502, equation 12",
        order=1,
        text_start="unit",
        image_start="above",
        grid="ddim",
        options=ETA,
        eta=0.0,
        ends="lowest",
    ),
    SamplerInfo(
        key="ddim_cfgpp",
        name="DDIM CFG++",
        aliases=("k_ddim_cfgpp", "ddim_cfg_pp"),
        paper="Chung et al. 2024, CFG++, arXiv:2406.08070, algorithm 2",
        grid="ddim",
        options=ETA,
        eta=0.0,
        ends="lowest",
        uncond=True,
        guidance_divisor=12.5,
        text_start="unit",
        image_start="above",
    ),
    SamplerInfo(
        key="plms",
        name="PLMS",
        aliases=("k_plms", "pndm", "PNDMScheduler"),
        paper="Liu et al. 2022, Pseudo Numerical Methods, arXiv:2202.09778, linear multistep part (LDM)",
        order=2,
        grid="ddim",
        calls="extra",
        ends="lowest",
        text_start="unit",
        image_start="above",
    ),
    SamplerInfo(
        key="uni_pc",
        name="UniPC",
        aliases=("k_uni_pc", "unipc_bh1"),
        paper="Zhao et al. 2023, UniPC, arXiv:2302.04867, B1(h)",
        order=2,
        grid="unipc",
        ends="lowest",
        text_start="unit",
        image_start="above",
    ),
    SamplerInfo(
        key="uni_pc_bh2",
        name="UniPC bh2",
        aliases=("k_uni_pc_bh2", "UniPCMultistepScheduler"),
        paper="Zhao et al. 2023, UniPC, arXiv:2302.04867, B2(h)",
        order=2,
        grid="unipc",
        ends="lowest",
        text_start="unit",
        image_start="above",
    ),
    SamplerInfo(
        key="lcm",
        name="LCM",
        aliases=("k_lcm", "sample_lcm", "LCMScheduler"),
        paper="Luo et al. 2023, Latent Consistency Models, arXiv:2310.04378, algorithm 3",
        denoiser="lcm",
        stochastic=True,
    ),
    SamplerInfo(
        key="tcd",
        name="TCD",
        aliases=("k_tcd", "TCDScheduler"),
        paper="Zheng et al. 2024, Trajectory Consistency Distillation, arXiv:2402.19159, algorithm 4",
        automatic="sgm_uniform",
        stochastic=True,
        options=ETA,
        eta=0.3,
        table=True,
    ),
    SamplerInfo(
        key="ddpm",
        name="DDPM",
        aliases=("k_ddpm", "sample_ddpm", "DDPMScheduler", "DDPMParallelScheduler"),
        paper="Ho et al. 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239, equations 6 and 7",
        stochastic=True,
    ),
    SamplerInfo(
        key="deis",
        name="DEIS",
        aliases=("k_deis", "sample_deis", "DEISMultistepScheduler"),
        paper="Zhang & Chen 2022, DEIS, arXiv:2204.13902, tAB of order 3 (ComfyUI)",
    ),
    SamplerInfo(
        key="ipndm",
        name="IPNDM",
        aliases=("k_ipndm", "sample_ipndm", "IPNDMScheduler"),
        paper="Zhang & Chen 2022, arXiv:2204.13902, appendix H.2: improved PNDM of order 4 (ComfyUI)",
        order=2,
    ),
    SamplerInfo(
        key="ipndm_v",
        name="IPNDM_V",
        aliases=("k_ipndm_v", "sample_ipndm_v"),
        paper="Zhang & Chen 2022, arXiv:2204.13902: improved PNDM of order 4 for steps of unequal length (ComfyUI)",
    ),
    SamplerInfo(
        key="er_sde",
        name="ER-SDE",
        aliases=("k_er_sde", "sample_er_sde", "er-sde-solver-3"),
        paper="Cui et al. 2023, ER-SDE-Solver-3, arXiv:2309.06169",
        stochastic=True,
        options=S_NOISE,
    ),
    SamplerInfo(
        key="sa_solver",
        name="SA-Solver",
        aliases=("k_sa_solver", "sample_sa_solver", "SASolverScheduler"),
        paper="Xue et al. 2023, SA-Solver, arXiv:2309.05019, algorithm 1",
        stochastic=True,
        options=ETA + S_NOISE,
        eta=1.0,
        table=True,
    ),
    SamplerInfo(
        key="euler_cfg_pp",
        name="Euler CFG++",
        aliases=("k_euler_cfg_pp", "sample_euler_cfg_pp", "euler_cfgpp"),
        paper="Euler on Chung et al. 2024, CFG++, arXiv:2406.08070 (ComfyUI)",
        uncond=True,
    ),
    SamplerInfo(
        key="euler_ancestral_cfg_pp",
        name="Euler a CFG++",
        aliases=("euler_a_cfg_pp", "k_euler_ancestral_cfg_pp", "sample_euler_ancestral_cfg_pp"),
        paper="Euler a on Chung et al. 2024, CFG++, arXiv:2406.08070 (ComfyUI)",
        stochastic=True,
        options=ETA + S_NOISE,
        eta=1.0,
        uncond=True,
    ),
)  # fmt: skip

SAMPLERS: dict[str, SamplerInfo] = {info.key: info for info in _SAMPLERS}
"""Key → row."""
