"""What to run, in which order, at which pace. Pure numpy: imports neither sglang nor torch.

`plan.build_plan` turns prompts and predicted output lengths into a scan order (prefix tree,
layer sort, node split, merge); `scanner`, `pacing` and `admission` decide step by step what of it
runs next; `lengths` predicts output lengths; `partition` deals a plan to ranks.
docs/algorithm.md explains the choices.
"""
