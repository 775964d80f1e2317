"""What atlas-dist does, as functions of settings that return frozen values: the Python API (`import atlas_dist as atlas`), and
what the commands of `cli/` call. Progress goes to an observer as events; whatever goes wrong is an AtlasError."""
