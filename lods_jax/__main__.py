import sys

from lods_jax.cli import main

sys.exit(main())
