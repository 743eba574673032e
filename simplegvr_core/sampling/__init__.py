"""Super-resolution of a latent: the pipeline, its steps, its latent files."""
