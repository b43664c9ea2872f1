"""One attention kernel for the prompts and the decodes of a mixed step."""
