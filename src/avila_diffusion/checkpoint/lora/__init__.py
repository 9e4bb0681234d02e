"""LoRA files: `files` reads one, `targets` names what it may change in a model, `apply` brings both together."""
