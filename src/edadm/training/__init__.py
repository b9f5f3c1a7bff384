"""Training of the embedded checkpoints: outside the default pipeline, run once, committed under ``assets/``."""
