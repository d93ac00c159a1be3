"""Differentiable renderers: 3D Gaussians on tiles, and radiance fields along rays. Arrays in, arrays out; no parameters of their own."""
