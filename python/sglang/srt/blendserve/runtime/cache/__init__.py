"""The annotated prefix cache."""
