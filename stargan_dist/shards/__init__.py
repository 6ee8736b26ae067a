"""Shards: tar files of images, and the index that describes them."""
