"""Score-distillation 3D generation in JAX: LODS, SDS, VSD, DDS and their relatives over one interface.

Importing the package loads no jax, so that `lods --help` answers at once; import the modules that you need.
"""

__version__ = "0.1.0"
