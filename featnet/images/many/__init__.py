"""Many images: a plan of shards, decoding in worker processes, results in open files, and back.

Above that the workers of a Ray cluster, which compute such shards, or columns of a dataset.
"""
