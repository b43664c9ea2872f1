"""Plans and runs in words and pictures: summaries, annotated trees, plots."""
