"""The networks. They import torch alone."""
