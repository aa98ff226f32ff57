"""`python -m cspine_jax.cli`."""

import sys

from cspine_jax.cli import main

sys.exit(main())
