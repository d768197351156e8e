"""Servers and load tools that are not ours, each set up in an environment of its own, to be measured beside ours."""
