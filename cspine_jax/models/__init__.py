"""Networks (flax nnx). `create(name, ...)` builds a backbone; `slices.SliceModel` puts document B's heads on one."""

from cspine_jax.models.backbones import Backbone, create, names

__all__ = ["Backbone", "create", "names"]
