"""Sampling: numbers only, no network, no file, no text. Importing this package does not import torch.

names       what samplers and schedules are called (no torch); catalogue, schedule_catalogue: the facts of each
rows        the same facts as plain values, for programs (no torch)
tables      the training noise as a table; lcm: that of latent consistency models
levels      the schedules, as functions; published: lists of levels
schedules   the noise levels of a run; grids: those of samplers that have their own; restarts: the way of Restart
denoiser    one model call: prediction type, input scaling, timestep and dtype
guidance    several predictions of x0 to one
noise       the only place that draws numbers: all of an image's noise from its seed
brownian    the path whose increments SDE samplers add
samplers    the update rules, as generators
"""
