"""Many images: a plan of shards, decoding in worker processes, results in open files, and back."""
