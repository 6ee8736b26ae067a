"""StarGAN and StarGAN v2, trained on many GPUs and nodes, on data that does not fit one machine."""

__version__ = "0.1.0"
