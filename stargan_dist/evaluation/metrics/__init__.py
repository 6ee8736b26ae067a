"""FID, KID and LPIPS, and the networks that they use."""
