"""The built-in profiles; a package, so that they are installed with the program."""
