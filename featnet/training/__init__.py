"""Prepare a network for training: freeze, exchange norms, sort parameters into groups."""
