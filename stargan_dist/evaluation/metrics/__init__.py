"""FID, KID, LPIPS and the networks that they use."""
