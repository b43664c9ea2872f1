"""Tests of engines that are fed together."""
