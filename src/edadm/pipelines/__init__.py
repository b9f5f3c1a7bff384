"""Pipelines of the user's own: calibrating, quantizing and drawing from a folder that diffusers saved."""
