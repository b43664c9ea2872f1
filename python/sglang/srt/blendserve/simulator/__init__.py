"""A virtual device: predicts throughput without a GPU, behind SGLang's scheduler or without it."""
