"""The batch API over HTTP, inside SGLang's server."""
