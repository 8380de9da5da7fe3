"""Give the maps of a network that is there, as a module: extractors, hooks, discovery, necks."""
