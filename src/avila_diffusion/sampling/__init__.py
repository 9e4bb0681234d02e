"""Sampling: numbers only, no network, no file, no text. Importing this package does not import torch.

names       what samplers and schedules are called, and the facts of each (no torch)
schedules   the training noise as a table, and the noise levels of a run
restarts    the way of Restart sampling through the noise levels
denoiser    one model call: prediction type, input scaling, timestep and dtype
guidance    several predictions of x0 to one
noise       the only place that draws numbers: all of an image's noise from its seed
brownian    the path whose increments SDE samplers add
samplers    the update rules, as generators
"""
