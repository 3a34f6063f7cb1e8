"""A step against the peers', each in an environment of its own."""
