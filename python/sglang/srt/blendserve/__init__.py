"""BlendServe for SGLang: resource-aware scheduling of offline batches that keeps prefix sharing.

The rooms follow the paper: `cost` (section 4), `plan` (5.1 and 5.2), `lengths`, `pool` and `policy`
(5.3) need numpy, scipy and numba alone; `runtime` puts them into SGLang's scheduler. `answering`
turns lines of a batch file into results, for the command `run` and for the batch API in `server`.
docs/development.md lists all rooms and which may import which; docs/walkthrough.md follows a line
and a scheduling pass through them.

`plugin` is the one place that touches SGLang's registries. Importing this package imports neither
SGLang's heavy modules nor torch.
"""

__version__ = "0.1.0"
