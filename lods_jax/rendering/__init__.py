"""Differentiable renderers: arrays and cameras in, images out. The parameters belong to the scenes."""
