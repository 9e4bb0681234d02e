"""Pictures from a prompt with no model and no torch: what the first command shows before a checkpoint is there.

`render.draw` gives the picture, `understand.describe` says what was understood of the words. How a picture is built is
told in docs/procedural.md.
"""
