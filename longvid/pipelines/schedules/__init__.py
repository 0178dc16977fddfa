"""Which frames are denoised together, at which noise level: pure arithmetic."""
