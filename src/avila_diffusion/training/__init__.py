"""Training by the very modules of inference: VAE, UNet with its text tower, LoRA and textual inversion."""
