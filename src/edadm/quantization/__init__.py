"""The method: simulated quantization, TDAC calibration, FBR reconstruction and the quantized checkpoint."""
