"""Samples, metrics and latency of any callable U-Net."""
