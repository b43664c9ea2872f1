"""Linear attention (Mamba, gated delta nets): not supported on the CPU by this package.

SGLang imports this module for hybrid models only, at start-up, so the refusal reaches the user
before any weight is loaded.
"""

raise ImportError(
    "linear-attention models (Mamba, Qwen3-Next, Kimi-Linear, ...) are not supported on the CPU by "
    "this sgl_kernel (sglang-blendserve-kernel): its causal_conv1d and gated-delta-rule kernels "
    "exist in Intel's AMX build only"
)
