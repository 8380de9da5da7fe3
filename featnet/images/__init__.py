"""Turn an image into an input, and maps into an image."""
