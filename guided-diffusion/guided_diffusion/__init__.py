"""The lip-sync diffusion network, its samplers, and video and sound in and out."""
