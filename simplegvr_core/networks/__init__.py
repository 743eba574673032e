"""The networks: transformer, attention, latent upsampler, autoencoders, and their checkpoints."""
