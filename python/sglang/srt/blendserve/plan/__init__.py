"""From prompts to a scan order (paper sections 5.1 and 5.2), with numpy and one compiled loop.

In the order of the paper:

- Section 5.1, the resource-aware prefix tree. `trie_build` finds the shared prefixes of the
  prompts, `prefix_tree` holds them as arrays, and `annotations` puts on each request and subtree
  what it costs (the densities rho of section 4).
- Section 5.2, the transformation of the tree. `layer_sort` (algorithm 1) sorts siblings by
  density. Node splits (algorithm 2) gained nothing and are left out. `merge` (step 3) joins
  neighbours into scheduling units, for pictures.
- `scan_order` does all of it: prompts in, a `Plan` out.
- Section 5.3, the dual scan: `scanner` hands the requests of a plan out from both sides. How many
  of each side is the policy's matter (room ``policy/``).

`radix_sort` is the stable sort that the tree is built on.
"""
