"""Landmarks of faces: networks that find them, and alignment by them."""
