"""The policy inside SGLang's scheduler process: the only room that knows scheduler internals.

Everything here is written against the one release named in `sglang.srt.blendserve.SGLANG_VERSION`.
"""
