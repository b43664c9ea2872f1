"""OpenAI Batch API: the file format, its validation and its result lines, and the service.

`protocol`, `lines`, `validation` and `results` are the format and import neither sglang nor
torch; `executor` answers one valid line with SGLang's own OpenAI handlers. The same code serves
``sglang-blendserve run`` and the HTTP service. docs/batch-format.md describes the format.
"""
