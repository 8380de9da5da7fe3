"""Give the values of any node of a network's graph: :func:`featnet.create_feature_extractor`."""
