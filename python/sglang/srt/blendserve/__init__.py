"""BlendServe for SGLang: resource-aware scheduling of offline batches that keeps prefix sharing.

Rooms, arrows pointing down only: `runtime`, `batch`, `offline`, `simulator` and `report` use
`planner`; `planner` uses numpy and nothing else. `plugin` is the one place that touches
SGLang's registries. Importing this package imports neither sglang's heavy modules nor torch.
"""

__version__ = "0.1.0"

SGLANG_VERSION = "0.5.17"
"""The one SGLang release whose scheduler internals `runtime` was written against."""
