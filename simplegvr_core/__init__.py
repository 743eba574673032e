"""SimpleGVR in plain PyTorch: model, sampling, training and evaluation. Never imports ComfyUI."""
