"""The scrape stage: a channel, or files that were handed in, become a ``posts`` artefact."""
