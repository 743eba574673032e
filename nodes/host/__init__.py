"""ComfyUI, the host: what the nodes share of it."""
