"""Scenes: parameters and a differentiable renderer behind the four functions of `types.Scene`."""
