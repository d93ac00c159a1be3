"""Tabletop-12: a world of twelve procedural objects with captions and exact geometry, its diffusion prior and its classifier."""
