"""Readers of amounts: their evidence, their gate, and their way to an export folder."""
