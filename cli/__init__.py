"""The control plane: the command line, the driver, and the clusters that it submits to."""
